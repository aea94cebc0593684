"""A run as lines for people: sums up the rows of the ledger. Free of torch."""

import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedkd
from fedkd.configuration import compose, naming
from fedkd.configuration.resolved import Resolved

_BARS = "▁▂▃▄▅▆▇█"
_LATE = 10  # rounds in the mean of a summary
_ETA_ROUNDS = 10  # rounds whose mean duration predicts the rest
_LONG = 2  # seconds: a round that takes longer shows what it does

_STATISTICS = {  # (primary figure, BatchNorm statistics that students are evaluated with) -> note
    ("global", "average"): "   (BatchNorm statistics averaged)",
    ("global", "local"): "   (BatchNorm statistics: each client's own; global student: their mean)",
    ("clients.mean", "average"): "   (BatchNorm statistics averaged)",
    ("clients.mean", "local"): "   (BatchNorm statistics: each client's own)",
}

_NAMES = {  # (primary figure, student that clients use) -> name, and what the accuracy is of
    ("global", "own"): ("global accuracy", ""),
    ("global", "global"): ("global accuracy", ""),
    ("clients.mean", "own"): ("personal accuracy", "   (each client's own student on its own test split, mean)"),
    ("clients.mean", "global"): ("accuracy", "   (the global student on each client's own test split, mean)"),
}

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stays the same during a run."""

    run: str
    strategy: str
    data: str
    partition: str
    clients: int
    per_round: int
    rounds: int
    folder: str
    engine: str
    option: str = ""  # of conf/strategy, if the run uses it unchanged
    has_curves: bool = True  # in tb/
    code: tuple[str, ...] = ()  # the user's files in the folder
    client_student: str = "own"  # evaluated on a client's test split: its `own` student, or the `global` one

    def line(self) -> str:
        return (
            f"fedkd {fedkd.__version__}  run {self.run}   strategy {self.strategy}   {self.data} {self.partition}   "
            f"{self.clients} clients, {self.per_round} per round"
        )


@dataclass
class History:
    """The run so far: sums up the rows of the ledger."""

    rounds: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)  # `global` and `clients.mean`, as far as measured
    latest: dict[str, Any] = field(default_factory=dict)  # the newest accuracy of each sort
    drift: Row = field(default_factory=dict)
    local_accuracy: Row = field(default_factory=dict)
    server: Row = field(default_factory=dict)
    terms: Row = field(default_factory=dict)
    privacy: Row = field(default_factory=dict)
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    last_failure: str = ""
    seconds: list[float] = field(default_factory=list)  # of the rounds of this process

    def add(self, row: Row) -> None:
        """Add one row of metrics.jsonl."""
        self.rounds = row["round"]
        accuracy = row["accuracy"]
        self.latest |= accuracy
        for name, value in measured(accuracy).items():
            self.curves.setdefault(name, []).append(value)
        self.drift, self.server, self.terms = row["drift"], row["server"], row["terms"]
        self.privacy = row.get("privacy", {})
        self.local_accuracy = row.get("local_accuracy", {})  # older ledgers have none
        self.up.update(row["bytes"]["up"])
        self.down.update(row["bytes"]["down"])
        self.states.update(row["clients"])

    def left(self, rounds: int) -> float | None:
        """Seconds until the last round, predicted from the newest rounds; None before the first."""
        recent = self.seconds[-_ETA_ROUNDS:]
        return statistics.fmean(recent) * (rounds - self.rounds) if recent else None


def head(resolved: Resolved, folder: Path, engine: str, client_student: str = "own") -> Head:
    """The head of the run in `folder`."""
    config, partition = resolved.config, resolved.config.partition
    alpha, variant = partition.get("alpha"), config.strategy.get("variant")
    return Head(
        run=folder.name,
        strategy="/".join(filter(None, (naming.of(config.strategy), variant))),
        data=config.data.name,
        partition=f"{partition['name']}({alpha:g})" if alpha is not None else str(partition["name"]),
        clients=config.clients,
        per_round=config.clients_per_round or config.clients,
        rounds=config.rounds,
        folder=str(folder),
        engine=engine,
        option=compose.unchanged_setting(config.strategy),
        has_curves="tensorboard" in config.track,
        code=tuple(file.name for file in resolved.code),
        client_student=client_student,
    )


def measured(accuracy: Row) -> dict[str, float]:
    """The headline figures measured in a round: `global`, `clients.mean`, or both."""
    headlines = {"global": accuracy.get("global"), "clients.mean": accuracy.get("clients", {}).get("mean")}
    return {name: value for name, value in headlines.items() if value is not None}


def curve(rows: Iterable[Row]) -> list[float]:
    """The headline figure by round: the global student's if any round measured it, else the clients' mean."""
    rounds = [measured(row["accuracy"]) for row in rows]
    name = "global" if any("global" in headlines for headlines in rounds) else "clients.mean"
    return [headlines[name] for headlines in rounds if name in headlines]


def panel(head: Head, history: History, running: float, doing: str = "", *, verbose: bool = False) -> list[str]:
    """The lines of the panel.

    `running`: seconds that the current round has taken so far; `doing`: its current phase, shown if rounds are long.
    """
    # The last round counts too, so that the line does not flicker.
    is_long = max([running, *history.seconds[-1:]]) >= _LONG
    lines = [
        head.line(),
        _progress_line(head, history, running),
        *([f" now        {doing}"] if doing and is_long else []),
        f" accuracy   {_accuracy(history, head)}",
        f" drift      {_numbers(history.drift) or '-'}",
    ]
    if knowledge := _numbers(history.server):
        lines.append(f" knowledge  {knowledge}")
    if verbose and history.terms:
        lines.append(f" terms      {_numbers(history.terms)}")
    if verbose and history.local_accuracy:
        lines.append(f" labels     {_on_labels(history.local_accuracy)}")
    kinds = history.up + history.down
    lines += [
        f" traffic    up {mega(history.up.total())}   down {mega(history.down.total())}      {_by_kind(kinds)}",
        *([f" privacy    {_privacy(history.privacy)}"] if history.privacy else []),
        f" clients    {_states(history.states)}"
        + (f"      last: {history.last_failure}" if history.last_failure else ""),
        f"files {head.folder}      Ctrl-C saves and stops",
    ]
    return lines


def _privacy(row: Row) -> str:
    return f"label epsilon {row['label_epsilon']:g}, spent by {row['clients']} clients"


def doing(phase: str, done: int, total: int, seconds: float) -> str:
    """The current phase of a round: `clients   3 of 10 done   12 s`; empty before the first."""
    count = f"{done} of {total} done" if total else ""
    return "   ".join(filter(None, (phase, count, f"{seconds:.0f} s"))) if phase else ""


def round_line(row: Row, seconds: float, failure: str, head: Head, *, verbose: bool = False) -> str:
    """One round as one line."""
    accuracy, drift, traffic = row["accuracy"], row["drift"], row["bytes"]
    parts = [f"round {row['round']}/{head.rounds}"]
    if "global" in accuracy:
        parts.append(f"accuracy {accuracy['global']:.3f}")
    parts += _of_clients(accuracy, head)
    if "function" in drift:
        parts.append(f"drift {drift['function']:.2f}")
    parts.append(f"up {mega(sum(traffic['up'].values()))}   down {mega(sum(traffic['down'].values()))}")
    parts.append(_states({state: count for state, count in row["clients"].items() if count}))
    parts.append(f"{seconds:.1f} s")
    if verbose:
        numbers = (_numbers({**row["terms"], **row["server"]}), _on_labels(row.get("local_accuracy", {})))
        parts += filter(None, numbers)
    if failure:
        parts.append(f"({failure})")
    return "   ".join(parts)


def closing(summary: Row, head: Head) -> list[str]:
    """The last lines of a finished run: its figures, its folder, and what to do next."""
    failures = sum(count for state, count in summary["replies"].items() if state != "ok")
    lines = [f"done   {summary['rounds']} rounds in {clock(summary['seconds']['total'])}" + _failures(failures)]
    lines += [f"       {line}" for line in figures(summary, head.clients)]
    runs = head.folder.rpartition("/")[0] or head.folder
    curves = f"   curves: tensorboard --logdir {shlex.quote(runs)}" if head.has_curves else ""
    lines.append(f"files  {head.folder}{curves}")
    # Personal students may differ in architecture, so their baseline is local training.
    is_personal = summary["accuracy_of"] == "clients.mean" and head.client_student == "own"
    other, name = ("local", "local training") if is_personal else ("fedavg", "FedAvg")
    if head.strategy.split("/")[0] != other:
        code = [f" --py {shlex.quote(f'{head.folder}/code/{name}')}" for name in head.code]
        config = shlex.quote(head.folder + "/config.yaml") + "".join(code)
        # A list of strategies takes each as conf has it, so a changed one cannot be part of it.
        both = f"compare {config} strategy={other},{head.option} seed=1..8"
        lines.append(f"next   compare with {name}: fedkd {both if head.option else f'run {config} strategy={other}'}")
    return lines


def portrait(run: Row) -> list[str]:
    """The lines of `fedkd show` about a run, in any state."""
    variant = f"/{run['variant']}" if run.get("variant") else ""
    lines = [
        f"run     {run['run']}   {run['status']}, {run['rounds']} of {run['num_rounds']} rounds",
        f"what    {run['strategy']}{variant}   {run['data']} {run['partition']}   {run['num_clients']} clients"
        f"   seed {run['seed']}",
        *([f"fork of {lineage(run['parent'])}"] if run.get("parent") else []),
        f"when    started {run['created']}, {clock(run['seconds']['total'])} of rounds",
        *(f"        {line}" for line in figures(run, run["num_clients"])),
    ]
    if error := run.get("error"):
        lines.append(f"error   {error}")
    if run["status"] in {"stopped", "failed"}:
        lines.append(f"next    {run.get('mend') or 'fedkd resume ' + shlex.quote(run['run'])}")
    return lines


def lineage(parent: Row | None) -> str:
    """`pilot at round 20, a fork of base at round 10`; empty for a run that is no fork."""
    if not parent:
        return ""
    further = lineage(parent.get("parent"))
    return f"{parent['run']} at round {parent['round']}" + (f", a fork of {further}" if further else "")


def figures(summary: Row, num_clients: int) -> list[str]:
    """Accuracy, clients and traffic of a summary, a line each."""
    accuracy, clients, traffic = summary["accuracy"], summary["clients"], summary["bytes"]
    student = summary.get("client_student") or "own"
    lines = []
    if accuracy:
        name, note = _NAMES[summary["accuracy_of"], student]
        note += _STATISTICS.get((summary["accuracy_of"], summary.get("statistics") or ""), "")
        lines.append(f"{name:<17} {_curve(accuracy, summary['rounds'])}{note}")
    if common := summary.get("common"):
        note = "   (the same students on common test images, mean)"
        lines.append(f"common images     {_curve(common, summary['rounds'])}{note}")
    trained = summary.get("trained", {})
    is_separate = student == "own" and 0 < trained.get("count", 0) < num_clients
    if clients:
        lines.append(f"clients           {_spread(clients)}" + (f"   (all {num_clients})" if is_separate else ""))
    if is_separate and "clients" in trained:
        note = f"   (the {trained['count']} that have taken part; the others keep their first students)"
        lines.append(f"trained clients   {_spread(trained['clients'])}{note}")
    if (forgetting := summary.get("forgetting")) is not None:
        sign = "; below 0: the last is above it" if forgetting < 0 else ""
        note = f"mean over classes: best earlier accuracy minus the last{sign}"
        lines.append(f"forgetting        {forgetting:.3f}   ({note})")
    lines.append(f"traffic           up {mega(traffic['up'])}   down {mega(traffic['down'])}")
    return lines


def clock(seconds: float) -> str:
    """`1:31`, `2:05:09`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def mega(num_bytes: float) -> str:
    """Bytes as megabytes (10^6), with three significant digits at most."""
    value = num_bytes / 1e6
    return f"{value:.0f} MB" if value >= 100 else f"{value:.1f} MB" if value >= 1 else f"{value:.3f} MB"


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """A curve in one line of text: `width` values, evenly spaced, from the lowest to the highest."""
    if not values:
        return ""
    size = min(width, len(values))
    picked = [values[(i + 1) * len(values) // size - 1] for i in range(size)]
    low, high = min(picked), max(picked)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0
    return "".join(_BARS[round((value - low) * scale)] for value in picked)


def _progress_line(head: Head, history: History, running: float) -> str:
    width = 22
    filled = history.rounds * width / head.rounds
    bar = "━" * int(filled) + ("╸" if filled % 1 >= 0.5 else "")
    parts = [f"round {history.rounds}/{head.rounds}  {bar:<{width}}  {history.rounds * 100 // head.rounds}%"]
    left = history.left(head.rounds)
    if left is None:
        parts.append(f"running the first round, {running:.0f} s")
    else:
        parts.append(f"{statistics.fmean(history.seconds[-_ETA_ROUNDS:]):.1f} s/round")
        parts.append(f"left {clock(max(0.0, left - running))}" if history.rounds < head.rounds else "finishing")
    return "   ".join([*parts, head.engine.partition(",")[0]])


def _accuracy(history: History, head: Head) -> str:
    if "global" not in history.latest:
        return "   ".join(_of_clients(history.latest, head, sparkline(history.curves.get("clients.mean", ())))) or "-"
    line = f"global {history.latest['global']:.3f} {sparkline(history.curves['global'])}"
    return "   ".join([line, *_of_clients(history.latest, head)])


def _of_clients(accuracy: Row, head: Head, curve: str = "") -> list[str]:
    """Client accuracies: `per client` with a global student, `personal` with their own, and of those that trained."""
    clients, parts = accuracy.get("clients"), []
    if clients:
        name = "per client" if head.client_student == "global" else "personal"
        parts.append(f"{name} {clients['mean']:.3f} {curve}".rstrip())
    trained = accuracy.get("trained", {})
    if "clients" in trained and head.client_student == "own" and trained["count"] < head.clients:
        parts.append(f"trained {trained['clients']['mean']:.3f} ({trained['count']} of {head.clients})")
    if common := accuracy.get("common"):
        parts.append(f"common {common['mean']:.3f}")
    if clients:
        parts.append(f"worst tenth {clients['worst_decile']:.3f}")
    return parts


def _curve(accuracy: Row, rounds: int) -> str:
    window = f"last {_LATE} rounds" if rounds > _LATE else f"mean of {rounds} round{'s' * (rounds > 1)}"
    return f"{accuracy['last']:.3f}   {window} {accuracy['last10']:.3f}   best {accuracy['best']:.3f}"


def _spread(clients: Row) -> str:
    return f"mean {clients['mean']:.3f}   worst tenth {clients['worst_decile']:.3f}"


def _on_labels(accuracy: Row) -> str:
    """In-local and out-local accuracy after local training."""
    return "   ".join(f"{name}-local {accuracy[name]:.3f}" for name in ("in", "out") if accuracy.get(name) is not None)


def _numbers(numbers: Row) -> str:
    """Only numbers: lists, and null for values that were not finite, stay in the ledger."""
    given = ((name, value) for name, value in numbers.items() if isinstance(value, int | float))
    return "   ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in given)


def _by_kind(kinds: Counter[str]) -> str:
    sizes = ((kind.replace("_", " "), mega(size).removesuffix(" MB")) for kind, size in kinds.most_common(4))
    return "   ".join(map(" ".join, sizes))


def _states(states: Row) -> str:
    return "   ".join(f"{state} {states[state]}" for state in ("ok", "late", "failed", "rejected") if state in states)


def _failures(count: int) -> str:
    plural = "s" if count > 1 else ""
    return f"   {count} client failure{plural}: see events.jsonl, clients/*/errors.log" if count else ""
