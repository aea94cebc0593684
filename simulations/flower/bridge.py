"""as_flower: any of our strategies inside another ServerApp, with our ClientApp at the nodes.

assembly = assemble(compose.resolve(["strategy=fedgen"]).config)
strategy = as_flower(assembly.experiment)
strategy.start(grid, strategy.initial_arrays, num_rounds=20)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from logging import INFO, WARNING, getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedkd import engine, rounds, seeds
from fedkd.border import admission, checks, settling
from fedkd.configuration import naming
from fedkd.engine import ClientId, ClientState, Failure, Job, Reply, Result
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment, RunState
from fedkd.maths import metrics
from fedkd.payload import Payload, Weights
from fedkd.problem import Problem
from fedkd.strategy import Cohort
from fedkd.student import Student
from simulations.flower import codec, grid_engine

_LOG = getLogger("flwr")


def as_flower(experiment: Experiment, patience: float = grid_engine.PATIENCE) -> "Bridge":
    """One of our strategies as a Flower strategy.

    `start` takes its `initial_arrays`, or arrays with the same names and shapes. A strategy with E exchanges takes E of
    Flower's rounds for each of ours. Cohorts, seeds and quorum come from the experiment's configuration.
    """
    return Bridge(experiment, patience)


@dataclass(frozen=True, kw_only=True)
class _WarmStart(Problem):
    """A problem whose students start from given entries."""

    entries: Weights

    def initial(self, client: int | None = None) -> Student:
        return super().initial(client).load(self.entries)


class Bridge(Strategy):
    """Flower's hooks around our transitions. It holds the run's state, because Flower cannot."""

    def __init__(self, experiment: Experiment, patience: float) -> None:
        self.experiment, self.patience = experiment, patience
        self.state = rounds.begin(experiment)
        self._before = self.state  # of the current round
        self._cohort: tuple[ClientId, ...] = ()  # of the next exchange; empty after one below the quorum
        self._sent: list[tuple[Message, Job]] = []  # the grid gives a message its id
        self._nodes: tuple[int, ...] = ()

    @property
    def initial_arrays(self) -> ArrayRecord:
        """The global student before the first round; if the algorithm has none, every client's initial weights."""
        served = self.experiment.strategy.evaluation_payload(rounds.begin(self.experiment).server, None)
        weights = served.weights if served is not None else None
        return codec.encode_weights(weights or self.experiment.problem.initial().weights)

    def summary(self) -> None:
        config = self.experiment.config
        cohort = config.clients_per_round or config.clients
        name = naming.of(config.strategy)
        _LOG.log(INFO, "\t└──> fedkd: %s, %d of %d clients per round", name, cohort, config.clients)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of one exchange. Only the first round reads `arrays`; later ones use the state."""
        if server_round == 1:
            self.state, self._nodes = self._begin(arrays), ()
        number, exchange = self._clock(server_round)
        if exchange == 0:
            self._before, self._cohort = self.state, rounds.draw_cohort(self.experiment.config, number)
        if not self._cohort:
            return []
        payloads = self.experiment.strategy.plan(self.state.server, Cohort(self._cohort, number, exchange))
        jobs = [
            Job(
                task="train",
                client=client,
                round=number,
                payload=payload,
                state=rounds.remembered(client, self.state.clients, self._before.clients),
                exchange=exchange,
            )
            for client, payload in sorted(payloads.items())
        ]
        return self._send(jobs, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next state. Below the quorum the state at the round's start stays, as in Flower's strategies."""
        strategy, config = self.experiment.strategy, self.experiment.config
        number, exchange = self._clock(server_round)
        settled = self._settle(self._results(replies), number, exchange)
        usable, failures = settled.replies, settled.failures
        counts: dict[str, Any] = {"replies": len(usable), "failures": len(failures)}
        if len(usable) < config.quorum:
            _LOG.log(WARNING, "round %d: %d usable replies, quorum is %d", number, len(usable), config.quorum)
            self.state, self._cohort = self._before, ()
            return None, MetricRecord(counts)
        self._cohort = tuple(reply.client for reply in usable)
        server, numbers = settled.server, settled.findings
        clients = {**self.state.clients, **{reply.client: reply.state for reply in usable}}
        self.state = RunState(number, server, clients)
        served = strategy.evaluation_payload(server, None)
        arrays = codec.encode_weights(served.weights) if served is not None and served.weights else None
        terms = metrics.mean_by_name([reply.numbers for reply in usable])
        return arrays, MetricRecord({**counts, **_floats(terms), **_floats(numbers)})

    def _settle(self, pairs: Sequence[tuple[Job, Result]], number: int, exchange: int) -> settling.Settled:
        """The result of an exchange; below the quorum the state stays unchanged."""
        experiment, state, quorum = self.experiment, self.state, self.experiment.config.quorum
        jobs = {job.client: job for job, _ in pairs}
        here = Cohort(self._cohort, number, exchange)
        admitted = admission.admit(experiment, state.server, here, jobs, [result for _, result in pairs])
        settled = settling.Settled(state.server, {}, admitted.replies, [])
        if len(admitted.replies) >= quorum:
            stream = seeds.stream(experiment.config.seed, "aggregate", round=number).child(exchange)
            settled = settling.settle(
                experiment.strategy,
                state.server,
                jobs,
                admitted.replies,
                admitted.ratios,
                quorum,
                stream,
                lambda replied: None,
            )
        failures = [*admitted.failures, *settled.failures]
        _warn(failures)
        return replace(settled, failures=failures)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last exchange of a round: send every client the student that it uses."""
        experiment = self.experiment
        number, exchange = self._clock(server_round)
        if exchange + 1 < experiment.strategy.exchanges or number % experiment.config.evaluate.every:
            return []
        served = {
            c: experiment.strategy.evaluation_payload(self.state.server, c) for c in range(experiment.config.clients)
        }
        jobs = [
            Job(
                task="evaluate",
                client=client,
                round=number,
                payload=payload or Payload(),
                state=self.state.clients.get(client, ClientState()),
            )
            for client, payload in served.items()
        ]
        return self._send(jobs, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Accuracy over clients, each on its own test split."""
        classes = self.experiment.problem.classes
        checked = (checks.admit_evaluation(job, result, classes) for job, result in self._results(replies))
        usable = _replies(checked)
        if not usable:
            return None
        counts = [reply.num_examples for reply in usable]
        accuracy = metrics.over_clients([reply.numbers["correct"] for reply in usable], counts)
        loss = sum(reply.numbers["loss_sum"] for reply in usable) / sum(counts)
        named = {f"accuracy-{name.replace('_', '-')}": value for name, value in accuracy.items()}
        return MetricRecord({**_floats(named), "loss": loss, "num-examples": sum(counts)})

    def _clock(self, server_round: int) -> tuple[int, int]:
        """Our round, from 1, and exchange, from 0, for one of Flower's rounds."""
        before, exchange = divmod(server_round - 1, self.experiment.strategy.exchanges)
        return before + 1, exchange

    def _begin(self, arrays: ArrayRecord) -> RunState:
        experiment = self.experiment
        own = experiment.problem.initial().weights
        given = {name: codec.decode_tensor(array, f"initial_arrays: '{name}'") for name, array in arrays.items()}
        for name, value in given.items():
            if name not in own or value.shape != own[name].shape:
                raise ConfigError(
                    f"initial_arrays: '{name}' {tuple(value.shape)} is no entry of the student",
                    mend="give as_flower(...).initial_arrays, or trained weights with the same names and shapes",
                )
        facts = {field.name: getattr(experiment.problem, field.name) for field in fields(Problem)}
        return rounds.begin(replace(experiment, problem=_WarmStart(**facts, entries=given)))

    def _send(self, jobs: Sequence[Job], grid: Grid) -> list[Message]:
        self._nodes = self._nodes or grid_engine.find_nodes(grid, self.patience)
        messages = grid_engine.messages(jobs, lambda client: self._nodes[client % len(self._nodes)])
        self._sent = [(message, job) for job, message in messages]
        return [message for message, _ in self._sent]

    def _results(self, replies: Iterable[Message]) -> list[tuple[Job, Result]]:
        """Every sent job with its result, in order of client: float sums must not depend on arrival."""
        by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
        pairs: list[tuple[Job, Result]] = []
        for message, job in self._sent:
            reply = by_message.get(message.metadata.message_id)
            missing = engine.failed(job, f"client {job.client} did not answer before the timeout", "late")
            pairs.append((job, missing if reply is None else grid_engine.read(reply, job)))
        self._sent = []
        return pairs


def _replies(results: Iterable[Result]) -> list[Reply]:
    results = list(results)
    _warn([result for result in results if isinstance(result, Failure)])
    return [result for result in results if isinstance(result, Reply)]


def _warn(failures: Iterable[Failure]) -> None:
    for failure in failures:
        _LOG.log(WARNING, "client %d failed in round %d: %s", failure.client, failure.round, failure.what)


def _floats(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items()}
