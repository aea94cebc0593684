"""The life of a round: one loop for all algorithms and all engines.

A round is a transaction: state in, admitted replies in, state out. Nothing outside the RunState is remembered, so
resuming, repeating and parallel runs are the same thing.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import torch

from fedkd import border, metrics, privacy, seeds
from fedkd.config import RunConfig
from fedkd.engine import ClientId, ClientState, Engine, Failure, Job, Reply, Task, failed
from fedkd.errors import RunError
from fedkd.payload import KINDS, Payload, Weights
from fedkd.problem import Problem
from fedkd.strategy import Cohort, Strategy
from fedkd.training import num_pooled_parts


@dataclass(frozen=True)
class Experiment:
    """What a run plays: configuration, problem and the server half."""

    config: RunConfig
    problem: Problem
    strategy: Strategy[Any]
    num_pooled: int  # samples of the pooled test set; 0: there is none
    probe_labels: torch.Tensor | None = None  # (N,) int64: true labels of the probe images
    label_laws: torch.Tensor | None = (
        None  # (K, C): label distribution of each client's training data; for measures only
    )


@dataclass(frozen=True)
class RunState:
    """All that a run is between two rounds."""

    round: int  # rounds played
    server: Any
    clients: Mapping[ClientId, ClientState]  # of those that have trained


@dataclass(frozen=True)
class Round:
    """A round played: the state after it and what it leaves for the ledger."""

    state: RunState
    row: dict[str, Any]  # deterministic: the same bytes for the same configuration
    clients: list[dict[str, Any]]  # a row a client, deterministic
    failures: list[Failure]
    timings: dict[str, float]  # seconds, machine facts


@dataclass
class _Tally:
    """What the exchanges of one round add up to."""

    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    rows: dict[ClientId, dict[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    local_accuracy: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(
        default_factory=lambda: {"clients": 0.0, "server": 0.0, "evaluation": 0.0, "busy": 0.0}
    )


def begin(experiment: Experiment) -> RunState:
    """The state before the first round."""
    problem = experiment.problem
    return RunState(0, experiment.strategy.init(problem, seeds.stream(problem.seed, "server")), {})


def play(experiment: Experiment, engine: Engine, state: RunState) -> Round:
    """Play the next round. Raises RunError if fewer clients than the quorum reply usefully; `state` is untouched."""
    start = time.perf_counter()
    number = state.round + 1
    tally = _Tally()
    server, clients = state.server, dict(state.clients)
    cohort = draw_cohort(experiment.config, number)
    for exchange in range(experiment.strategy.trips(number)):
        part = Cohort(cohort, number, exchange)
        server, cohort = _exchange(experiment, engine, server, clients, state.clients, part, tally)
    after = RunState(number, server, clients)
    accuracy = _evaluate(experiment, engine, after, tally)
    tally.timings["total"] = time.perf_counter() - start
    row = _row(number, tally, accuracy) | privacy.row(experiment.config.privacy, clients)
    return Round(after, row, _client_rows(number, tally), tally.failures, tally.timings)


def draw_cohort(config: RunConfig, number: int) -> tuple[ClientId, ...]:
    """The clients of a round, ascending: from (seed, round) alone, so all strategies meet the same."""
    size = config.clients_per_round or config.clients
    generator = seeds.stream(config.seed, "cohort", round=number).numpy()
    return tuple(sorted(int(c) for c in generator.choice(config.clients, size, replace=False)))


def remembered(
    client: ClientId, now: Mapping[ClientId, ClientState], before: Mapping[ClientId, ClientState]
) -> ClientState:
    """A client's memory in an exchange: as the last one left it, but with the clock of before the round.

    Its last round is an earlier one in all exchanges of this one, so that all of them have the same learning rate.
    """
    last_round = before.get(client, ClientState()).last_round
    return replace(now.get(client, ClientState()), last_round=last_round)


def _exchange(
    experiment: Experiment,
    engine: Engine,
    server: Any,
    clients: dict[ClientId, ClientState],
    before: Mapping[ClientId, ClientState],
    cohort: Cohort,
    tally: _Tally,
) -> tuple[Any, tuple[ClientId, ...]]:
    """One trip down and up; gives the server's next state and the clients that go on."""
    strategy, config = experiment.strategy, experiment.config
    start = time.perf_counter()
    payloads = strategy.plan(server, cohort)
    jobs = {
        client: Job(
            task="train",
            client=client,
            round=cohort.round,
            exchange=cohort.exchange,
            payload=payload,
            state=remembered(client, clients, before),
        )
        for client, payload in sorted(payloads.items())
    }
    asked = time.perf_counter()
    results = list(engine.run(list(jobs.values()), config.engine.deadline))
    answered = time.perf_counter()
    replies, failures = _admit(experiment, server, cohort, jobs, results)
    _count(tally, jobs, replies, failures)
    quorum = 1 if strategy.pools_data else config.quorum  # one client trains for all
    _check_quorum(quorum, cohort, len(jobs), replies, failures)
    _measure_drift(experiment, tally, jobs, replies)
    stream = seeds.stream(config.seed, "aggregate", round=cohort.round).child(cohort.exchange)
    server, numbers = strategy.aggregate(server, replies, stream)
    tally.numbers |= numbers
    clients |= {reply.client: reply.state for reply in replies}
    tally.timings["clients"] += answered - asked
    tally.timings["busy"] += sum(reply.seconds for reply in replies)
    tally.timings["server"] += asked - start + time.perf_counter() - answered
    return server, tuple(reply.client for reply in replies)


def _admit(
    experiment: Experiment,
    server: Any,
    cohort: Cohort,
    jobs: Mapping[ClientId, Job],
    results: Sequence[Reply | Failure],
) -> tuple[list[Reply], list[Failure]]:
    """Replies and failures, both by client: float sums must not depend on who answered first."""
    problem, strategy = experiment.problem, experiment.strategy
    kinds, probe = strategy.asks(cohort), min(experiment.config.evaluate.probe, experiment.num_pooled)
    replies: list[Reply] = []
    failures: list[Failure] = []
    for job, result in _pair(list(jobs.values()), results):
        expected = border.Expectation(
            kinds=kinds,
            classes=problem.classes,
            latent=problem.of(job.client).latent,
            weights=job.payload.weights,
            reference=job.payload.reference,
            probe=probe,
        )
        admitted = border.admit(result, job, expected, partial(strategy.inspect, server, job))
        if isinstance(admitted, Failure):
            failures.append(admitted)
        else:
            replies.append(admitted)
    return replies, failures


def _count(tally: _Tally, jobs: Mapping[ClientId, Job], replies: Sequence[Reply], failures: Sequence[Failure]) -> None:
    """Bytes by kind and a row a client. Up counts admitted replies: the size of what was refused is only a claim."""
    for client, job in jobs.items():
        row = tally.rows.setdefault(client, {"state": "ok", "bytes_down": 0, "bytes_up": 0})
        for kind, size in job.payload.num_bytes().items():
            tally.down[kind] = tally.down.get(kind, 0) + size
            row["bytes_down"] += size
    for reply in replies:
        row = tally.rows[reply.client]
        row["examples"] = reply.num_examples
        row["numbers"] = row.get("numbers", {}) | dict(reply.numbers)
        for kind, size in reply.payload.num_bytes().items():
            tally.up[kind] = tally.up.get(kind, 0) + size
            row["bytes_up"] += size
    for failure in failures:
        state = "rejected" if failure.is_rejected else "late" if failure.cause == "late" else "failed"
        tally.rows[failure.client] |= {"state": state, "cause": failure.cause, "reason": failure.what}
    tally.failures += failures


def _check_quorum(
    quorum: int, cohort: Cohort, asked: int, replies: Sequence[Reply], failures: Sequence[Failure]
) -> None:
    if len(replies) >= quorum:
        return
    causes = ", ".join(dict.fromkeys(f"client {f.client}: {f.what}" for f in failures[:3]))
    rejected = sum(failure.is_rejected for failure in failures)
    raise RunError(
        f"round {cohort.round}: only {len(replies)} of {asked} clients replied usefully, quorum is {quorum} "
        f"({len(failures) - rejected} failed, {rejected} rejected: {causes})",
        mend=f"The state of round {cohort.round - 1} is safe",
        failures=tuple(failures),
    )


def _measure_drift(
    experiment: Experiment, tally: _Tally, jobs: Mapping[ClientId, Job], replies: Sequence[Reply]
) -> None:
    """How far clients stand apart after training and, after the first exchange, how they do on their own labels."""
    probed = [reply for reply in replies if reply.probe is not None]
    probes = [reply.probe for reply in probed if reply.probe is not None]
    labels, laws = experiment.probe_labels, experiment.label_laws
    if probes:
        tally.drift["function"] = metrics.function_drift(torch.stack(probes), experiment.problem.classes)
    if probes and labels is not None and laws is not None and not tally.local_accuracy:
        its = laws[[reply.client for reply in probed]]
        tally.local_accuracy = metrics.local_accuracy(torch.stack(probes), labels, its)
    pairs = [(jobs[r.client].payload.weights, r.payload.weights) for r in replies]
    full = [(sent, back) for sent, back in pairs if sent and back and sent.keys() == back.keys()]
    if full and all(_shapes(sent) == _shapes(full[0][0]) for sent, _ in full):
        tally.drift |= metrics.weight_drift([sent for sent, _ in full], [back for _, back in full])


def _shapes(weights: Weights) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _evaluate(experiment: Experiment, engine: Engine, state: RunState, tally: _Tally) -> dict[str, Any]:
    """Accuracy of the served students: each client's on its own test split, the global one on the pooled test set."""
    config, strategy = experiment.config, experiment.strategy
    start = time.perf_counter()
    jobs: list[Job] = []
    same: dict[tuple[int, ...], Payload] = {}  # by identity of what is in them: sent once a worker
    pooled = strategy.served(state.server, None)
    is_pooled_due = _is_due(state.round, config.evaluate.pooled_every, config.rounds)
    if _is_due(state.round, config.evaluate.every, config.rounds):
        for client in range(config.clients):
            own = state.clients.get(client, ClientState())
            served = strategy.served(state.server, client) or Payload()
            payload = same.setdefault(tuple(id(getattr(served, kind)) for kind in KINDS), served)
            jobs.append(Job(task="evaluate", client=client, round=state.round, payload=payload, state=own))
        if pooled is None and is_pooled_due and config.evaluate.common and experiment.num_pooled:
            jobs += [replace(job, task="evaluate_common") for job in jobs]
    if pooled is not None and is_pooled_due:
        payload = with_statistics(experiment.problem, pooled, state)
        for part in range(num_pooled_parts(experiment.num_pooled)):
            jobs.append(Job(task="evaluate_pooled", client=part, round=state.round, payload=payload))
    results = list(engine.run(jobs, config.engine.deadline)) if jobs else []
    classes = experiment.problem.classes
    found = [border.admit_evaluation(job, result, classes) for job, result in _pair(jobs, results)]
    tally.timings["evaluation"] = time.perf_counter() - start
    tally.failures += [result for result in found if isinstance(result, Failure)]
    done = [(job, result) for job, result in zip(jobs, found, strict=True) if isinstance(result, Reply)]
    trained = range(config.clients) if strategy.pools_data else state.clients.keys()
    return _accuracy(done, experiment.num_pooled, trained, tally)


def _pair(jobs: Sequence[Job], results: Sequence[Reply | Failure]) -> list[tuple[Job, Reply | Failure]]:
    """Jobs with their results, in the order of the jobs.

    Of two results for a job the first counts, one that nobody asked for none: whom a reply is from is its own claim.
    """
    by_key: dict[tuple[str, ClientId], Reply | Failure] = {}
    for result in results:
        by_key.setdefault((result.task, result.client), result)
    return [(job, by_key.get((job.task, job.client)) or failed(job, "no result came", "lost")) for job in jobs]


def _accuracy(
    done: Sequence[tuple[Job, Reply]], num_pooled: int, trained: Collection[ClientId], tally: _Tally
) -> dict[str, Any]:
    """By client, of all and of those that have trained yet; and pooled.

    Of a pooled test set that was not classified whole there is nothing: its parts differ.
    """
    accuracy: dict[str, Any] = {}
    of_trained: dict[str, Any] = {}
    by_task = {task: [reply for job, reply in done if job.task == task] for task in get_args(Task)}
    for name, task, column in (("clients", "evaluate", "accuracy"), ("common", "evaluate_common", "common")):
        if replies := by_task[task]:
            accuracy[name] = _over_clients(replies)
        if took_part := [reply for reply in replies if reply.client in trained]:
            of_trained[name] = _over_clients(took_part)
        for reply in replies:
            row = tally.rows.setdefault(reply.client, {"state": "idle"})
            row[column] = reply.numbers["correct"] / reply.num_examples
    if of_trained:
        accuracy["trained"] = {"count": len(trained), **of_trained}
    pooled = by_task["evaluate_pooled"]
    if pooled and sum(reply.num_examples for reply in pooled) == num_pooled:
        accuracy["global"] = sum(reply.numbers["correct"] for reply in pooled) / num_pooled
        accuracy["loss"] = sum(reply.numbers["loss_sum"] for reply in pooled) / num_pooled
    judged = pooled if "global" in accuracy else by_task["evaluate_common"]
    if counts := [reply.by_label for reply in judged if reply.by_label is not None]:
        accuracy["by_class"] = metrics.by_class(counts)
    return accuracy


def _over_clients(replies: Sequence[Reply]) -> dict[str, float]:
    return metrics.over_clients([r.numbers["correct"] for r in replies], [r.num_examples for r in replies])


def with_statistics(problem: Problem, served: Payload, state: RunState) -> Payload:
    """The global student with the mean of the clients' BatchNorm statistics, where these stay with the clients.

    A student that the server trained has its own, which fit it.
    """
    missing = [name for name in problem.statistic_names if name not in (served.weights or {})]
    if problem.statistics != "local" or not missing:
        return served
    kept = [state.clients[client].kept for client in sorted(state.clients)]
    statistics = metrics.mean_statistics(kept, missing)
    return replace(served, weights={**(served.weights or {}), **statistics})


def _is_due(number: int, every: int, rounds: int) -> bool:
    return number % every == 0 or number == rounds


def _row(number: int, tally: _Tally, accuracy: Mapping[str, Any]) -> dict[str, Any]:
    states = [row["state"] for row in tally.rows.values()]
    return {
        "round": number,
        "cohort": sorted(client for client, row in tally.rows.items() if row["state"] != "idle"),
        "clients": {state: states.count(state) for state in ("ok", "failed", "late", "rejected")},
        "accuracy": dict(accuracy),
        "terms": metrics.mean_by_name([row["numbers"] for _, row in sorted(tally.rows.items()) if "numbers" in row]),
        "server": tally.numbers,
        "drift": tally.drift,
        "local_accuracy": tally.local_accuracy,
        "bytes": {"down": tally.down, "up": tally.up},
    }


def _client_rows(number: int, tally: _Tally) -> list[dict[str, Any]]:
    return [{"round": number, "client": client, **row} for client, row in sorted(tally.rows.items())]
