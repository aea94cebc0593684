"""Evaluation: whose students a round judges, on which images, and what comes of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, get_args

from fedkd import border, engine, metrics, seeds, training
from fedkd.config import RunConfig
from fedkd.engine import ClientId, ClientState, Engine, Failure, Job, Reply, Task
from fedkd.payload import KINDS, Payload
from fedkd.problem import Problem

if TYPE_CHECKING:
    from fedkd.rounds import Experiment, RunState

_KINDS = attrgetter(*KINDS)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave."""

    accuracy: dict[str, Any]  # of clients, on common images, global
    clients: dict[ClientId, dict[str, float]] = field(default_factory=dict)  # what each client's row says of it
    failures: list[Failure] = field(default_factory=list)


def evaluate(
    experiment: "Experiment", runner: Engine, state: "RunState", watch: engine.Watch = engine.unwatched
) -> Evaluated:
    """Accuracy of the served students: each client's on its own test split, the global one on the pooled test set."""
    jobs = [*_due(experiment, state)]
    deadline = experiment.config.engine.deadline
    results = engine.results(runner, jobs, deadline, "evaluation", watch) if jobs else []
    pairs = [each for pair in engine.pair(jobs, results) for each in border.singly(*pair)]
    classes = experiment.problem.classes
    found = [(job, border.admit_evaluation(job, result, classes)) for job, result in pairs]
    failures = [result for _, result in found if isinstance(result, Failure)]
    done = [(job, result) for job, result in found if isinstance(result, Reply)]
    trained = range(experiment.config.clients) if experiment.strategy.pools_data else state.clients.keys()
    return Evaluated(_accuracy(done, experiment.num_pooled, trained), _of_clients(done), failures)


def with_statistics(problem: Problem, served: Payload, state: "RunState") -> Payload:
    """The global student with the mean of the clients' BatchNorm statistics, where these stay with the clients.

    A student that the server trained has its own, which fit it.
    """
    missing = [name for name in problem.statistic_names if name not in (served.weights or {})]
    if problem.statistics != "local" or not missing:
        return served
    kept = [state.clients[client].kept for client in sorted(state.clients)]
    statistics = metrics.mean_statistics(kept, missing)
    return replace(served, weights={**(served.weights or {}), **statistics})


def num_pooled_parts(num_samples: int) -> int:
    """Jobs that one evaluation on the pooled test set takes."""
    return -(-num_samples // training.POOLED_PART)


def _due(experiment: "Experiment", state: "RunState") -> Iterator[Job]:
    """The jobs of this round's evaluation."""
    config, number = experiment.config.evaluate, state.round
    pooled = experiment.strategy.served(state.server, None)
    is_pooled_due = _is_due(number, config.pooled_every, experiment.config.rounds)
    if _is_due(number, config.every, experiment.config.rounds):
        own = _own_jobs(experiment, state)
        yield from _together(experiment, [job for job in own if _has_tests(experiment, job.client)])
        if pooled is None and is_pooled_due and config.common and experiment.num_pooled:
            yield from (replace(job, task="evaluate_common") for job in own)
    if pooled is not None and is_pooled_due:
        payload = with_statistics(experiment.problem, pooled, state)
        for part in range(num_pooled_parts(experiment.num_pooled)):
            yield Job(task="evaluate_pooled", client=part, round=number, payload=payload)


def _is_due(number: int, every: int, rounds: int) -> bool:
    return number % every == 0 or number == rounds


def judged_clients(config: RunConfig, num_tests: Sequence[int] | None) -> Sequence[ClientId]:
    """Whose students are judged: all, or a sample of those with test samples, the same in every round."""
    size, everybody = config.evaluate.clients, range(config.clients)
    able = [client for client in everybody if num_tests is None or num_tests[client]]
    if not 0 < size < len(able):
        return everybody
    generator = seeds.stream(config.seed, "judged").numpy()
    return sorted(able[place] for place in generator.choice(len(able), size, replace=False))


def _has_tests(experiment: "Experiment", client: ClientId) -> bool:
    """Whether a client has test samples of its own; devices, of which nobody knows, are asked."""
    return experiment.num_tests is None or experiment.num_tests[client] > 0


def _own_jobs(experiment: "Experiment", state: "RunState") -> list[Job]:
    """One job per client: its student on its own test split."""
    fresh, same = ClientState(), dict[tuple[Any, ...], Payload]()
    jobs = []
    for client in judged_clients(experiment.config, experiment.num_tests):
        served = experiment.strategy.served(state.server, client) or Payload()
        payload, own = _one_of(same, served), state.clients.get(client, fresh)
        jobs.append(Job(task="evaluate", client=client, round=state.round, payload=payload, state=own))
    return jobs


def _one_of(same: dict[tuple[Any, ...], Payload], served: Payload) -> Payload:
    """An earlier payload made of the same objects, if there is one, else this one: so it is sent to a worker once.

    `same` keeps what it knows alive, so that no identity is given twice.
    """
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


def _together(experiment: "Experiment", jobs: Sequence[Job]) -> Iterator[Job]:
    """The same work in fewer jobs: one student is loaded once and classifies many clients' images in one pass.

    Which clients share a job follows from their data alone, so all engines classify the same batches.
    """
    if experiment.num_tests is None or experiment.own_logits:
        yield from jobs
        return
    groups: dict[tuple[str, Payload], list[Job]] = {}
    for job in jobs:
        if _is_shared(experiment.problem, job):
            groups.setdefault((experiment.problem.architecture(job.client), job.payload), []).append(job)
        else:
            yield job
    for alike in groups.values():
        for part in _parts(alike, experiment.num_tests):
            clients = tuple(job.client for job in part)
            yield Job(
                task="evaluate_shared",
                client=clients[0],
                round=part[0].round,
                payload=part[0].payload,
                clients=clients,
            )


def _is_shared(problem: Problem, job: Job) -> bool:
    """Whether the student has nothing of the client's own: all of its architecture with its payload have the same."""
    if problem.common_init and not job.state.kept:
        return True
    return problem.of(job.client).entry_names <= (job.payload.weights or {}).keys()


def _parts(jobs: Sequence[Job], num_tests: Sequence[int]) -> Iterator[list[Job]]:
    """Consecutive jobs whose images are about as many as a part of the pooled test set: work for several workers."""
    part, images = list[Job](), 0
    for job in jobs:
        part.append(job)
        images += num_tests[job.client]
        if images >= training.POOLED_PART:
            yield part
            part, images = [], 0
    if part:
        yield part


def _accuracy(done: Sequence[tuple[Job, Reply]], num_pooled: int, trained: Collection[ClientId]) -> dict[str, Any]:
    """By client, of all and of those that have trained yet; and pooled.

    There is no pooled accuracy unless all of the pooled test set was classified: its parts differ.
    """
    accuracy: dict[str, Any] = {}
    of_trained: dict[str, Any] = {}
    by_task = {task: [reply for job, reply in done if job.task == task] for task in get_args(Task)}
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


def _of_clients(done: Sequence[tuple[Job, Reply]]) -> dict[ClientId, dict[str, float]]:
    found: dict[ClientId, dict[str, float]] = {}
    for name, task in (("accuracy", "evaluate"), ("common", "evaluate_common")):
        for reply in (reply for job, reply in done if job.task == task):
            found.setdefault(reply.client, {})[name] = reply.numbers["correct"] / reply.num_examples
    return found
