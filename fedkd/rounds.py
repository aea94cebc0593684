"""A round: one loop for all algorithms and all engines.

A round is a transaction: state in, admitted replies in, state out. Only the RunState carries memory, so resuming,
repeating and parallel runs need no special care.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedkd import engine, seeds
from fedkd.border import admission, settling
from fedkd.config import RunConfig
from fedkd.engine import ClientId, ClientState, Engine, Failure, Job, Reply
from fedkd.errors import RunError
from fedkd.experiment import Experiment, RunState
from fedkd.maths import metrics
from fedkd.payload import Weights
from fedkd.standing import Standing
from fedkd.strategy import Cohort
from fedkd.training import evaluation
from fedkd.wrappers import privacy


@dataclass(frozen=True)
class Round:
    """A finished round: the state after it, and its rows for the ledger."""

    state: RunState
    row: dict[str, Any]  # deterministic: the same bytes for the same configuration
    clients: list[dict[str, Any]]  # one row per client, deterministic
    failures: list[Failure]
    timings: dict[str, float]  # seconds, machine facts
    unmeasured: dict[str, str] = field(default_factory=dict)  # metrics without a value, and why


@dataclass
class _Tally:
    """Sums over the exchanges of one round."""

    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    rows: dict[ClientId, dict[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    local_accuracy: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    is_unsettled: bool = False  # an exchange gave no finite state
    timings: dict[str, float] = field(
        default_factory=lambda: {"clients": 0.0, "server": 0.0, "evaluation": 0.0, "busy": 0.0}
    )


def begin(experiment: Experiment) -> RunState:
    """The state before the first round."""
    problem = experiment.problem
    return RunState(0, experiment.strategy.init(problem, seeds.stream(problem.seed, "server")), {})


def run_round(experiment: Experiment, runner: Engine, state: RunState, watch: engine.Watch = engine.unwatched) -> Round:
    """Run the next round. Raises RunError if fewer clients than the quorum reply usefully; `state` stays unchanged."""
    start = time.perf_counter()
    number = state.round + 1
    tally = _Tally()
    server, clients = state.server, dict(state.clients)
    absent = state.standing.absent(number)
    members = draw_cohort(experiment.config, number, absent)
    for exchange in range(experiment.strategy.num_exchanges(number)):
        cohort = Cohort(members, number, exchange)
        server, members = _exchange(experiment, runner, server, clients, state, cohort, tally, watch)
        if tally.is_unsettled:  # the round does not change the state
            server, clients = state.server, dict(state.clients)
            break
    after = RunState(number, server, clients, _standing_after(experiment, state.standing, number, tally))
    accuracy = _evaluate(experiment, runner, after, tally, watch)
    tally.timings["total"] = time.perf_counter() - start
    row = _row(number, tally, accuracy) | privacy.row(experiment.config.privacy, clients)
    row |= {"left_out": sorted(absent)} if absent else {}
    client_rows = [{"round": number, "client": client, **row} for client, row in sorted(tally.rows.items())]
    return Round(after, row, client_rows, tally.failures, tally.timings, tally.unmeasured)


def draw_cohort(config: RunConfig, number: int, absent: frozenset[ClientId] = frozenset()) -> tuple[ClientId, ...]:
    """The clients of a round, ascending: (seed, round) alone decide. Raises RunError if all clients are absent."""
    here = [client for client in range(config.clients) if client not in absent]
    if not here:
        raise RunError(
            f"round {number}: all clients are left out", mend="start a new run without the clients that sent bad values"
        )
    size = min(config.clients_per_round or config.clients, len(here))
    generator = seeds.stream(config.seed, "cohort", round=number).numpy()
    return tuple(sorted(here[int(place)] for place in generator.choice(len(here), size, replace=False)))


def remembered(
    client: ClientId, now: Mapping[ClientId, ClientState], before: Mapping[ClientId, ClientState]
) -> ClientState:
    """A client's memory in an exchange; `last_round`, and so the learning rate, is the same in the whole round."""
    last_round = before.get(client, ClientState()).last_round
    return replace(now.get(client, ClientState()), last_round=last_round)


def _exchange(
    experiment: Experiment,
    runner: Engine,
    server: Any,
    clients: dict[ClientId, ClientState],
    before: RunState,
    cohort: Cohort,
    tally: _Tally,
    watch: engine.Watch,
) -> tuple[Any, tuple[ClientId, ...]]:
    """One trip down and up. Returns the server's next state and the clients of the next exchange."""
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
            state=remembered(client, clients, before.clients),
        )
        for client, payload in sorted(payloads.items())
    }
    asked = time.perf_counter()
    results = engine.results(runner, list(jobs.values()), config.engine.deadline, "clients", watch)
    answered = time.perf_counter()
    watch("server", 0, 0)
    admitted = admission.admit(experiment, server, cohort, jobs, results)
    quorum = 1 if strategy.pools_data else config.quorum  # with pooled data, one client trains for all
    admission.check_quorum(quorum, cohort, len(jobs), admitted)
    stream = seeds.stream(config.seed, "aggregate", round=cohort.round).child(cohort.exchange)
    settled = settling.settle(
        strategy,
        server,
        jobs,
        admitted.replies,
        admitted.ratios,
        quorum,
        stream,
        lambda replied: _next_cohort(experiment, cohort, replied, before.standing),
    )
    _tally_exchange(tally, jobs, settled.replies, [*admitted.failures, *settled.failures])
    tally.is_unsettled = not settled.replies
    if settled.replies:
        _measure_drift(experiment, tally, jobs, settled.replies)
    tally.numbers |= settled.findings
    clients |= {reply.client: reply.state for reply in settled.replies}
    tally.timings["clients"] += answered - asked
    tally.timings["busy"] += sum(reply.seconds for reply in settled.replies)
    tally.timings["server"] += asked - start + time.perf_counter() - answered
    return settled.server, tuple(reply.client for reply in settled.replies)


def _next_cohort(experiment: Experiment, cohort: Cohort, replied: tuple[ClientId, ...], standing: Standing) -> Cohort:
    """The cohort after this exchange. The last round has one too: it must not differ in a longer run."""
    number = cohort.round
    if cohort.exchange + 1 < experiment.strategy.num_exchanges(number):
        return Cohort(replied, number, cohort.exchange + 1)
    return Cohort(draw_cohort(experiment.config, number + 1, standing.absent(number + 1)), number + 1)


def _standing_after(experiment: Experiment, standing: Standing, number: int, tally: _Tally) -> Standing:
    """The clients' standing after a round. With pooled data, the only training client is never excluded."""
    config, replied = experiment.config, {client for client, row in tally.rows.items() if row["state"] == "ok"}
    after = standing.unsettled_once_more(number, tally.failures) if tally.is_unsettled else standing.settled()
    if experiment.strategy.pools_data:
        return after
    return after.after(number, tally.failures, replied, config.border, config.clients, config.quorum)


def _tally_exchange(
    tally: _Tally, jobs: Mapping[ClientId, Job], replies: Sequence[Reply], failures: Sequence[Failure]
) -> None:
    """Count bytes by kind and add client rows. Up counts only admitted replies: a refused one's size is a claim."""
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


def _measure_drift(
    experiment: Experiment, tally: _Tally, jobs: Mapping[ClientId, Job], replies: Sequence[Reply]
) -> None:
    """Measure the drift between clients after training and, after the first exchange, accuracy on own labels."""
    probed = [reply for reply in replies if reply.probe is not None]
    probes = [reply.probe for reply in probed if reply.probe is not None]
    labels, distributions = experiment.probe_labels, experiment.label_distributions
    if probes:
        tally.drift["function"] = metrics.function_drift(torch.stack(probes), experiment.problem.classes)
    if probes and labels is not None and distributions is not None and not tally.local_accuracy:
        chosen = distributions[[reply.client for reply in probed]]
        tally.local_accuracy = metrics.local_accuracy(torch.stack(probes), labels, chosen)
    pairs = [(jobs[r.client].payload.weights, r.payload.weights) for r in replies]
    full = [(sent, back) for sent, back in pairs if sent and back and sent.keys() == back.keys()]
    if full and all(_shapes(sent) == _shapes(full[0][0]) for sent, _ in full):
        tally.drift |= metrics.weight_drift([sent for sent, _ in full], [back for _, back in full])


def _shapes(weights: Weights) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _evaluate(
    experiment: Experiment, runner: Engine, state: RunState, tally: _Tally, watch: engine.Watch
) -> dict[str, Any]:
    """Accuracy of the current students; values of a single client go to its row."""
    start = time.perf_counter()
    evaluated = evaluation.evaluate(experiment, runner, state, watch)
    tally.timings["evaluation"] = time.perf_counter() - start
    tally.failures += evaluated.failures
    tally.unmeasured = evaluated.unmeasured
    for client, numbers in evaluated.clients.items():
        tally.rows.setdefault(client, {"state": "idle"}).update(numbers)
    return evaluated.accuracy


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
