"""Evaluation: which students a round evaluates, on which images, and the resulting accuracy."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple, get_args

import torch

from fedkd import engine, seeds
from fedkd.border import checks
from fedkd.config import RunConfig
from fedkd.engine import ClientId, ClientState, Engine, Failure, Job, Reply, Result, Task
from fedkd.experiment import Experiment, RunState
from fedkd.maths import metrics, scores
from fedkd.payload import KINDS, Payload
from fedkd.problem import Problem
from fedkd.training import forward

_KINDS = attrgetter(*KINDS)


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation."""

    accuracy: dict[str, Any]  # of clients, on common images, global
    clients: dict[ClientId, dict[str, float]] = field(default_factory=dict)  # values for each client's row
    failures: list[Failure] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)  # metrics without a value, and why


def evaluate(
    experiment: Experiment, runner: Engine, state: RunState, watch: engine.Watch = engine.unwatched
) -> Evaluated:
    """Accuracy of the current students: each client's on its own test split, the global one on the pooled test set."""
    jobs = [*_due(experiment, state)]
    deadline = experiment.config.engine.deadline
    results = engine.results(runner, jobs, deadline, "evaluation", watch) if jobs else []
    classes = experiment.problem.classes
    admitted: list[Result] = []
    for job, result in engine.pair(jobs, results):
        shared = bool(job.clients)
        admitted += checks.admit_shared(job, result) if shared else [checks.admit_evaluation(job, result, classes)]
    failures = [result for result in admitted if isinstance(result, Failure)]
    done = [result for result in admitted if isinstance(result, Reply)]
    trained = range(experiment.config.clients) if experiment.strategy.pools_data else state.clients.keys()
    accuracy = _accuracy(done, experiment.num_pooled, trained)
    unmeasured = _measure(experiment, state.round, done, accuracy) if "global" in accuracy else {}
    return Evaluated(accuracy, _of_clients(done), failures, unmeasured)


def _measure(experiment: Experiment, number: int, done: Sequence[Reply], accuracy: dict[str, Any]) -> dict[str, str]:
    """Add the configured metrics to the accuracy. Returns those without a value, null there, and why."""
    names, y = experiment.config.evaluate.metrics, experiment.pooled_labels
    if not names or y is None:
        return {}
    logits = torch.cat([reply.logits for reply in done if reply.logits is not None])
    values = scores.of(names, logits, y, seeds.stream(experiment.config.seed, "metric", round=number))
    reasons = {name: value for name, value in values.items() if isinstance(value, str)}
    measured = {name: None if name in reasons else value for name, value in values.items()}
    if "confusion" in measured:
        accuracy["confusion"] = measured.pop("confusion")
    accuracy["metrics"] = measured
    return reasons


def with_statistics(problem: Problem, served: Payload, state: RunState) -> Payload:
    """The global student, with the mean of the clients' BatchNorm statistics if these stay local and it has none."""
    missing = [name for name in problem.statistic_names if name not in (served.weights or {})]
    if problem.statistics != "local" or not missing:
        return served
    kept = [state.clients[client].kept for client in sorted(state.clients)]
    statistics = metrics.mean_statistics(kept, missing)
    return replace(served, weights={**(served.weights or {}), **statistics})


def num_pooled_parts(num_samples: int) -> int:
    """How many jobs one evaluation on the pooled test set takes."""
    return -(-num_samples // forward.POOLED_PART)


def _due(experiment: Experiment, state: RunState) -> Iterator[Job]:
    """The jobs of this round's evaluation."""
    config, number = experiment.config.evaluate, state.round
    pooled = experiment.strategy.evaluation_payload(state.server, None)
    is_pooled_due = _is_due(number, config.pooled_every, experiment.config.rounds)
    if _is_due(number, config.every, experiment.config.rounds):
        own, tests = _own(experiment, state), experiment.num_tests  # None: only devices know their data
        yield from _together(experiment, number, [one for one in own if tests is None or tests[one.client]])
        if pooled is None and is_pooled_due and config.common and experiment.num_pooled:
            yield from (Job(task="evaluate_common", round=number, **student._asdict()) for student in own)
    if pooled is not None and is_pooled_due:
        payload = with_statistics(experiment.problem, pooled, state)
        for part in range(num_pooled_parts(experiment.num_pooled)):
            yield Job(
                task="evaluate_pooled", client=part, round=number, payload=payload, wants_logits=bool(config.metrics)
            )


def _is_due(number: int, every: int, rounds: int) -> bool:
    return number % every == 0 or number == rounds


def evaluated_clients(config: RunConfig, num_tests: Sequence[int] | None) -> Sequence[ClientId]:
    """The evaluated clients: all, or a sample of those with test samples, the same in every round."""
    size, clients = config.evaluate.clients, range(config.clients)
    able = [client for client in clients if num_tests is None or num_tests[client]]
    if not 0 < size < len(able):
        return clients
    generator = seeds.stream(config.seed, "judged").numpy()
    return sorted(able[place] for place in generator.choice(len(able), size, replace=False))


class _Own(NamedTuple):
    """The payload and the state that make up a client's student."""

    client: ClientId
    payload: Payload
    state: ClientState


def _own(experiment: Experiment, state: RunState) -> list[_Own]:
    """The students of the evaluated clients."""
    fresh, same = ClientState(), dict[tuple[Any, ...], Payload]()
    students = []
    for client in evaluated_clients(experiment.config, experiment.num_tests):
        served = experiment.strategy.evaluation_payload(state.server, client) or Payload()
        students.append(_Own(client, _one_of(same, served), state.clients.get(client, fresh)))
    return students


def _one_of(same: dict[tuple[Any, ...], Payload], served: Payload) -> Payload:
    """An earlier payload of the same objects, if any, so that a worker gets it once. `same` keeps objects alive."""
    kinds = _KINDS(served)
    shallow = tuple(map(id, kinds))
    if shallow not in same:
        payload = same.setdefault(tuple(map(_identities, kinds)), served)
        if payload is not served:
            return payload
        same[shallow] = served
    return same[shallow]


def _identities(kind: Any) -> Any:
    return tuple((name, id(entry)) for name, entry in kind.items()) if isinstance(kind, Mapping) else id(kind)


def _together(experiment: Experiment, number: int, students: Sequence[_Own]) -> Iterator[Job]:
    """Jobs for students on their own test splits: a shared student classifies many clients' images in one job.

    The data alone decide which clients share a job, so all engines classify the same batches.
    """
    problem, num_tests = experiment.problem, experiment.num_tests
    groups: dict[tuple[str, Payload], list[ClientId]] = {}
    for own in students:
        if num_tests is not None and not experiment.personal_predictor and _is_shared(problem, own):
            groups.setdefault((problem.architecture(own.client), own.payload), []).append(own.client)
        else:
            yield Job(task="evaluate", round=number, **own._asdict())
    for (_, payload), clients in groups.items():
        for part in _parts(clients, num_tests or ()):
            yield Job(task="evaluate_shared", client=part[0], round=number, payload=payload, clients=tuple(part))


def _is_shared(problem: Problem, own: _Own) -> bool:
    """Whether the student has no entry of the client's own: all clients of its architecture and payload share it."""
    if problem.common_init and not own.state.kept:
        return True
    return problem.of(own.client).entry_names <= (own.payload.weights or {}).keys()


def _parts(clients: Sequence[ClientId], num_tests: Sequence[int]) -> Iterator[list[ClientId]]:
    """Consecutive clients with about as many images as a part of the pooled test set, to share work among workers."""
    part, images = list[ClientId](), 0
    for client in clients:
        part.append(client)
        images += num_tests[client]
        if images >= forward.POOLED_PART:
            yield part
            part, images = [], 0
    if part:
        yield part


def _accuracy(done: Sequence[Reply], num_pooled: int, trained: Collection[ClientId]) -> dict[str, Any]:
    """Accuracy over all clients, over those that have trained, and pooled, which needs all parts of the test set."""
    accuracy: dict[str, Any] = {}
    of_trained: dict[str, Any] = {}
    by_task = {task: [reply for reply in done if reply.task == task] for task in get_args(Task)}
    for name, task in (("clients", "evaluate"), ("common", "evaluate_common")):
        if replies := by_task[task]:
            accuracy[name] = _over_clients(replies)
        if took_part := [reply for reply in replies if reply.client in trained]:
            of_trained[name] = _over_clients(took_part)
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


def _of_clients(done: Sequence[Reply]) -> dict[ClientId, dict[str, float]]:
    by_client: dict[ClientId, dict[str, float]] = {}
    for name, task in (("accuracy", "evaluate"), ("common", "evaluate_common")):
        for reply in (reply for reply in done if reply.task == task):
            by_client.setdefault(reply.client, {})[name] = reply.numbers["correct"] / reply.num_examples
    return by_client
