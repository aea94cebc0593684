"""Drives one run: runs its rounds, records each, commits some, and leaves a consistent folder however it ends."""

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch

from fedkd import rounds
from fedkd.config import RunConfig
from fedkd.configuration.resolved import Resolved
from fedkd.engine import Engine, Failure
from fedkd.errors import FedkdError, FolderError, RunError
from fedkd.experiment import Experiment, RunState
from fedkd.payload import Payload
from fedkd.record import checkpoint, ledger
from fedkd.record.ledger import Ledger
from fedkd.rounds import Round
from fedkd.training.site import LocalSite
from simulations import assemble
from simulations.assemble import Assembly
from simulations.engines import choose
from simulations.engines.choose import Notify
from simulations.run import advice, assignments, exclusion, extension, run_folder, summary
from simulations.run.console_text import Head, closing, head, measured, round_line
from simulations.run.progress import Screen
from simulations.run.rounds_csv import RoundsCsv
from simulations.run.run_folder import RunFolder
from simulations.run.tracking import Tracking
from simulations.system import machine
from simulations.system.interrupts import Interrupts, Stop


@dataclass(frozen=True)
class ExecutionTarget:
    """A place to run that no configuration names: Flower's grids.

    `connect` makes the engine for the site of this process.
    """

    connect: Callable[[LocalSite, Notify], Engine]
    assemble: Callable[[RunConfig], Assembly] = assemble.assemble
    commit_each_round: bool = False  # overrides `checkpoint.every`: devices keep only their newest states


THREADS = 1  # per operation: with two threads, sums have other bits
_MACHINE_CAUSES = {"raised", "late", "lost"}  # causes whose text differs between machines
_LONGEST_REASON = 300  # characters of a failure in the ledger
_LONGEST_FAILURE = 100  # characters of a failure on the screen


class Driver:
    """One run in one process. `run` may be called once."""

    def __init__(
        self,
        resolved: Resolved,
        folder: RunFolder,
        screen: Screen,
        *,
        debug: bool,
        target: ExecutionTarget | None = None,
    ) -> None:
        self.resolved = resolved
        self.config: RunConfig = resolved.config
        self.digest = resolved.digest()
        self.folder, self.screen, self.debug, self.target = folder, screen, debug, target
        self.began = time.perf_counter()
        self.earlier = 0.0  # seconds spent by earlier processes
        self.engine_facts: Callable[[], Mapping[str, Any]] = dict
        self.state: RunState | None = None
        self.committed = -1  # round of the last commit
        self.is_pooled = False  # whether the headline figure is a global student's, on the pooled test set
        self.client_student = "own"
        self.lengths: Mapping[str, int] = {}  # of the ledger after the last whole round
        self.rows: list[ledger.Row] = []
        self.timings: list[ledger.Row] = []
        self.unmeasured: set[str] = set()  # metrics without a value, of which a warning came

    def run(self, excluded: exclusion.Exclusion = exclusion.NOBODY) -> dict[str, Any]:
        """Run until the last round, Ctrl-C or an error, and return the summary. Raises FedkdError."""
        with ExitStack() as stack:
            stack.callback(self.screen.close)
            with run_folder.writing(self.folder.path):
                self.ledger = Ledger(self.folder.path)
                self.rounds_csv = RoundsCsv(self.folder.path)
                self.tracking = Tracking(self.resolved, self.folder, self._head("").line(), self._warn)
            self._read_ledger()
            stack.callback(self.ledger.close)
            stack.callback(self.tracking.close)
            self.interrupts = stack.enter_context(Interrupts())
            try:
                return self._run(stack, excluded)
            except Stop:
                return self._stop()
            except RunError as error:
                raise self._fail(error) from error
            except BaseException as error:
                self._save_after(error)
                raise

    def _run(self, stack: ExitStack, excluded: exclusion.Exclusion) -> dict[str, Any]:
        torch.set_num_threads(THREADS)
        config = self.config
        self.screen.phase(f"loading {config.data.name} for {config.clients} clients")
        assembly = (self.target.assemble if self.target else assemble.assemble)(config)
        assignments.keep(self.folder, assembly, config.students.name)
        for text in assembly.warnings:
            self._warn(text)
        for text in assembly.notes:
            self._notify(text, "note")
        self._compare_arithmetic()
        state = self._state(assembly, excluded)
        self._note_students(assembly.experiment, state)
        self.screen.phase("starting the engine")
        engine, sentence = self._engine(assembly.site)
        stack.callback(engine.close)
        self.engine_facts = lambda: {"chosen": sentence, **engine.facts()}
        self._event("start" if not state.round else "resume", round=state.round, engine=sentence)
        self._begin(self._head(sentence.removeprefix("engine: ")))
        while state.round < config.rounds:
            done = rounds.run_round(assembly.experiment, engine, state, self.screen.progress)
            with self.interrupts.deferred():
                _check_not_diverged(done)
                self._record(done)
                exclusion.report(state, done.state, config.border.quarantine_after, self._warn)
                state = self.state = done.state
                if state.round % self._commit_every() == 0:
                    self._commit()
            self._warn_of_metrics(done)
            self._show_round(done)
        self.interrupts.hold()
        return self._finish()

    # --- beginning -------------------------------------------------------------------------------------------------

    def _compare_arithmetic(self) -> None:
        """Record what determines the last bits of a sum; on a resume, warn if it has changed."""
        cpu = torch.backends.cpu.get_cpu_capability()
        now = {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "cpu": cpu}
        then = self.folder.info().get("arithmetic", now)
        changed = [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]
        if changed:
            self._warn(f"arithmetic has changed ({', '.join(changed)}): results may differ from an unbroken run's")
        self.folder.note(arithmetic=now)

    def _state(self, assembly: Assembly, excluded: exclusion.Exclusion) -> RunState:
        """The state to continue from; cuts the ledger and the curves to it."""
        earlier = extension.earlier(self.folder.info())
        commit = checkpoint.load(self.folder.checkpoints, assembly.experiment, self.digest, self._warn, earlier)
        state = excluded.apply(self.folder, commit.state if commit else rounds.begin(assembly.experiment), self._warn)
        with run_folder.writing(self.folder.path):
            self.ledger.cut(commit.lengths if commit else {})
            self.lengths = self.ledger.lengths()
            self._read_ledger()
            self.rounds_csv.restart(self.rows)
            self.tracking.restart(self.rows, self.timings)
        self.earlier = sum(row["total"] for row in self.timings)
        self.state, self.committed = state, state.round if commit else -1
        return state

    def _note_students(self, experiment: Experiment, state: RunState) -> None:
        """Note in run.json which students are evaluated, and how: a partial ledger does not show it."""
        has_global = experiment.strategy.evaluation_payload(state.server, None) is not None
        self.is_pooled = has_global and experiment.num_pooled > 0
        if self.config.evaluate.metrics and not self.is_pooled:
            self._warn("evaluate.metrics has no effect: there is no global student, or no pooled test set")
        self.client_student = "global" if has_global and experiment.strategy.serves == "global" else "own"
        self.folder.note(statistics=statistics_policy(experiment, state), client_student=self.client_student)

    def _read_ledger(self) -> None:
        self.rows = ledger.rows(self.folder.path / "metrics.jsonl")
        self.timings = ledger.rows(self.folder.path / "timings.jsonl")

    def _engine(self, site: LocalSite) -> tuple[Engine, str]:
        """The engine, and a sentence that names it and gives the reason."""
        if self.target is not None:
            engine = self.target.connect(site, self._notify)
            return engine, f"engine: {engine.name}"
        config = self.config
        wanted = dataclasses.replace(config.engine, name="inline") if self.debug else config.engine
        return choose.make(wanted, site, estimate=lambda: choose.estimate(config, site), notify=self._notify)

    def _commit_every(self) -> int:
        return 1 if self.target is not None and self.target.commit_each_round else self.config.checkpoint.every

    def _head(self, engine: str) -> Head:
        return head(self.resolved, self.folder.path, engine, self.client_student)

    # --- a round ---------------------------------------------------------------------------------------------------

    def _record(self, done: Round) -> None:
        """Append the rows of a round. If the disk is full, those of earlier rounds stay whole."""
        timings = {"round": done.state.round, "at": time.time(), **done.timings, "memory": machine.peak() / 1e6}
        with run_folder.writing(self.folder.path):
            self.ledger.append("clients.jsonl", [_portable(row) for row in done.clients])
            self.ledger.append("timings.jsonl", [timings])
            self.ledger.append("metrics.jsonl", [done.row])
            self.tracking.write(done.row, timings)
            self.rounds_csv.write(done.row)
        self._log_failures(done.failures)
        self.rows.append(done.row)
        self.timings.append(timings)
        self.lengths = self.ledger.lengths()

    def _log_failures(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            text = f"round {failure.round}, {failure.task}, {failure.cause}: {failure.what}"
            self._event("failure", **{k: getattr(failure, k) for k in ("round", "client", "task", "cause", "what")})
            if failure.task == "evaluate_pooled":
                self.folder.log(f"{_sender(failure)}: {text}\n{failure.detail}")
            else:
                self.folder.log_error(failure.client, f"{text}\n{failure.detail}")

    def _warn_of_metrics(self, done: Round) -> None:
        """Once for each metric that has no value."""
        for name in sorted(done.unmeasured.keys() - self.unmeasured):
            self._warn(f"round {done.state.round}: evaluate.metrics: {name} is null: {done.unmeasured[name]}")
        self.unmeasured |= done.unmeasured.keys()

    def _commit(self) -> None:
        """Commit the state after the last round; a resume continues from it."""
        if self.state is None or self.state.round == self.committed:
            return
        start = time.perf_counter()
        accuracy = self.rows[-1]["accuracy"] if self.rows else {}
        with run_folder.writing(self.folder.path):
            lengths = self.ledger.sync()
            score = measured(accuracy).get("global" if self.is_pooled else "clients.mean")
            checkpoint.commit(self.folder.checkpoints, self.state, lengths, self.digest, score)
            checkpoint.prune(self.folder.checkpoints, self.config.checkpoint.keep)
        self.committed = self.state.round
        self.folder.note(round=self.committed)
        self._event("commit", round=self.committed, seconds=round(time.perf_counter() - start, 4))

    # --- endings ---------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        self._commit()
        totals = self._summarise("done")
        self._end(closing(totals, self._head("")))
        return totals

    def _stop(self) -> dict[str, Any]:
        """After a signal: abandon the current round, save those before it."""
        caught = self.interrupts.caught
        self._commit()
        totals = {**self._summarise("stopped"), "signal": caught.name if caught else "SIGINT"}
        by = "a request to terminate" if totals["signal"] == "SIGTERM" else "Ctrl-C"
        resume = f"fedkd resume {self.folder.path}"
        self._end([f"stopped  after round {totals['rounds']} by {by}; everything is saved.  {resume}"])
        return totals

    def _fail(self, error: RunError) -> RunError:
        """The same error, with advice on how to continue."""
        with suppress(FolderError):
            self._log_failures(error.failures)
        advised = advice.after(error.failures, self.config, self.folder.path, on_devices=self.target is not None)
        self._save_after(error, mend=advised.text, replays=advised.replays)
        mend = f"The state of round {self.state.round if self.state else 0} is safe. {advised.text}"
        return RunError(error.what, where=error.where, mend=mend, failures=error.failures)

    def _save_after(self, error: BaseException, **facts: Any) -> None:
        """Save what can be saved after an error, without hiding the error."""
        self.screen.close()
        self.folder.log("".join(traceback.format_exception(error)))
        with suppress(OSError, FedkdError):
            if self.state is not None:
                self.ledger.cut(self.lengths)  # rows of a round that failed while being recorded
                self._commit()
        error = machine.explained(error)
        with suppress(OSError, FedkdError):
            what = error.headline if isinstance(error, FedkdError) else str(error)
            self._summarise("failed", error=what or type(error).__name__, **facts)

    def _summarise(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write summary.json and the state in run.json."""
        totals = {"run": str(self.folder.path), "status": status, **summary.of_rows(self.rows, self.timings), **facts}
        totals |= {key: self.folder.info().get(key) for key in ("statistics", "client_student")}
        totals["seconds"]["total"] = self.earlier + time.perf_counter() - self.began
        self.folder.write_json("summary.json", totals)
        self.folder.note(state=status, round=totals["rounds"], engine=self.engine_facts(), **facts)
        self._event(status, round=totals["rounds"], **facts)
        self.tracking.finish(totals)
        return totals

    # --- output for people: the screen and log.txt -------------------------------------------------------------------

    def _begin(self, head: Head) -> None:
        self.folder.log(f"{head.line()}   {head.engine}")
        self.screen.begin(head, self.rows)

    def _show_round(self, done: Round) -> None:
        seconds, failure = done.timings["total"], _failure_text(done.failures)
        self.folder.log(round_line(done.row, seconds, failure, self._head(""), verbose=True))
        self.screen.round(done.row, seconds, failure)

    def _end(self, lines: Sequence[str]) -> None:
        self.folder.log("\n".join(lines))
        self.screen.end(lines)

    def _event(self, event: str, **facts: Any) -> None:
        with run_folder.writing(self.folder.path):
            self.ledger.append(ledger.EVENTS, [{"at": round(time.time(), 3), "event": event, **facts}])
        self.folder.log(" ".join([event, *(f"{name}={value}" for name, value in facts.items())]))

    def _warn(self, text: str) -> None:
        self._notify(text, "warn")

    def _notify(self, text: str, urgency: str) -> None:
        self.screen.note(text) if urgency == "note" else self.screen.warn(text)
        self._event(urgency, what=text)


def statistics_policy(experiment: Experiment, state: RunState) -> str:
    """The BatchNorm statistics of evaluated students: `average`, `local`, or `none` if they have none.

    Also `local` if the strategy serves no statistics: clients then keep their own.
    """
    problem, strategy = experiment.problem, experiment.strategy
    has_global = strategy.evaluation_payload(state.server, None) is not None
    clients = [None] if has_global else range(problem.clients)
    names = {client: problem.of(client).statistic_names for client in clients}
    if not any(names.values()):
        return "none"
    for client in clients:
        served = strategy.evaluation_payload(state.server, client) or Payload()
        if {*names[client]} & {*(served.weights or {}), *(served.samples or {})}:
            return problem.statistics
    return "local"


def _check_not_diverged(done: Round) -> None:
    """Raises RunError if the served students are no longer finite: further rounds are useless."""
    bad = [f for f in done.failures if f.task != "train" and f.cause == "non_finite"]
    if any(f.task == "evaluate_pooled" for f in bad) or (bad and not measured(done.row["accuracy"])):
        what = f"round {done.state.round}: training has diverged, the test loss is not finite ({bad[0].what})"
        raise RunError(what, failures=tuple(bad))


def _portable(row: ledger.Row) -> ledger.Row:
    """A client's row without machine facts, such as addresses, paths or processes in the text of an exception."""
    if "reason" not in row:
        return row
    if row["cause"] not in _MACHINE_CAUSES:
        return {**row, "reason": row["reason"][:_LONGEST_REASON]}
    kept = {key: value for key, value in row.items() if key != "reason"}
    return {**kept, "reason": row["reason"].partition(":")[0]} if row["cause"] == "raised" else kept


def _failure_text(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    last = failures[-1]
    text = " ".join(last.what.split())
    how = "rejected" if last.is_rejected else "late" if last.cause == "late" else "failed"
    return f"{_sender(last)} {how} in round {last.round}: {text[:_LONGEST_FAILURE]}"


def _sender(failure: Failure) -> str:
    is_pooled = failure.task == "evaluate_pooled"
    return f"part {failure.client} of the pooled test set" if is_pooled else f"client {failure.client}"
