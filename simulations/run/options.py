"""The options of each verb, as a dataclass that generates its parser and help. Imports nothing heavy."""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from fedkd.errors import ConfigError

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Flag:
    """How a field appears on the command line; type and default come from the field."""

    help: str
    metavar: str | None = None
    name: str = ""  # empty: the field's own

    def word(self, field: Field[Any]) -> str:
        """The option as written: `--name`."""
        return self.name or f"--{field.name.replace('_', '-')}"

    def is_switch(self, field: Field[Any]) -> bool:
        """Whether the option takes no value."""
        return _kind(field) is bool

    def add_to(self, parser: argparse._ActionsContainer, field: Field[Any]) -> None:
        """Add the option `--name`: a switch, or one value; for a tuple, the option may repeat."""
        kind = _kind(field)
        how: dict[str, Any] = {
            "type": next(iter(get_args(kind)), kind),
            "metavar": self.metavar,
            "default": field.default,
        }
        if self.is_switch(field):
            how = {"action": "store_true"}
        elif get_origin(kind) is tuple:
            how |= {"action": "append", "default": []}
        parser.add_argument(self.word(field), dest=field.name, help=self.help, **how)


class Positional(Flag):
    """How a field appears as a positional argument."""

    def add_to(self, parser: argparse._ActionsContainer, field: Field[Any]) -> None:
        is_needed = field.default is MISSING
        number = ("+" if is_needed else "*") if get_origin(_kind(field)) is tuple else None if is_needed else "?"
        parser.add_argument(field.name, nargs=number, metavar=self.metavar, help=self.help)


def _kind(field: Field[Any]) -> Any:
    """A field's type without its annotation."""
    return get_args(field.type)[0]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of all verbs."""

    examples: ClassVar[tuple[str, ...]] = ()

    runs: Annotated[Path, Flag("folder of runs (default: runs)", "DIR")] = Path("runs")
    name: Annotated[str | None, Flag("name of the new folder below it", "NAME")] = None
    out: Annotated[Path | None, Flag("write into exactly this folder", "DIR")] = None
    json: Annotated[bool, Flag("one JSON object on stdout at the end")] = False
    py: Annotated[tuple[Path, ...], Flag("Python file with students, data or methods; may be repeated", "FILE")] = ()
    quiet: Annotated[bool, Flag("only the result")] = False
    verbose: Annotated[bool, Flag("more detail")] = False
    debug: Annotated[bool, Flag("one process, full tracebacks")] = False
    is_silent: bool = False  # answers are for the caller in Python: not printed
    # The objects printed so far: at most one.
    answers: list[Mapping[str, Any]] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def about(cls) -> str:
        """What the verb does, in one line: the class docstring, which begins `fedkd VERB --help`."""
        return cls.__doc__ or ""

    @classmethod
    def declared(cls) -> Iterator[tuple[Field[Any], Flag]]:
        """The options and positional arguments, the verb's own first."""
        for option in sorted(fields(cls), key=lambda option: option.name in _common()):
            yield from ((option, flag) for flag in get_args(option.type)[1:] if isinstance(flag, Flag))

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("options of all verbs")
        for option, flag in cls.declared():
            flag.add_to(group if option.name in _common() else parser, option)

    @classmethod
    def of(cls, parsed: argparse.Namespace, answers: list[Mapping[str, Any]]) -> Self:
        """The options in a parsed command line."""
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
        return cls(**values, answers=answers)

    def flags(self, *names: str) -> list[str]:
        """Some of these options as command-line arguments; leaves out defaults."""
        arguments = []
        defaults = {option.name: option.default for option in fields(self)}
        for name in names:
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,) if value != defaults[name] else ()
            arguments += [text for item in values for text in (f"--{name.replace('_', '-')}", str(item))]
        return arguments

    def answer(self, result: Mapping[str, Any]) -> None:
        """Print the one JSON object, if --json is given."""
        if self.json:
            self.answers.append(result)
        if self.json and not self.is_silent:
            print(json.dumps(_finite(result), allow_nan=False), flush=True)


def _common() -> set[str]:
    return {option.name for option in fields(Options)}


def _finite(value: Any) -> Any:
    """The value with null in place of numbers that are not finite: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(below) for key, below in value.items()}
    return [_finite(below) for below in value] if isinstance(value, list | tuple) else value


_Overrides = Annotated[tuple[str, ...], Positional("key=value, group=name or a YAML file; later wins", "OVERRIDE")]
_Download = Annotated[bool, Flag("fetch missing data sets with torchvision")]
_Metric = Annotated[str | None, Flag("primary metric, e.g. 'clients.mean last10', 'global last10'", "METRIC")]
_Target = Annotated[float | None, Flag("report the cost of reaching this, e.g. 0.9", "ACCURACY")]
_RUN = "a run folder, a run's id or the beginning of one"


@dataclass(frozen=True, kw_only=True)
class Run(Options):
    """Run an experiment; without overrides, a first one that needs no network."""

    overrides: _Overrides = ()
    download: _Download = False

    examples = (
        "fedkd run",
        "fedkd run strategy=fedgen data=fashion-mnist clients=100 clients_per_round=10 rounds=50",
        "fedkd run preset=fedgen-mnist strategy.variant=paper seed=1",
        "fedkd run my.yaml rounds=20 --name pilot",
        "fedkd run runs/pilot/config.yaml          # the same run again",
    )


_GRID = "key=value as for run, where a value may be a list: a,b,c or 1..8; or comparison=NAME"
_BASELINE = "method to compare the others with (default: fedavg, else the first)"
_TUNE = "choose a value for each method, or for one, on validation data; may be repeated"


@dataclass(frozen=True, kw_only=True)
class Compare(Options):
    """Compare strategies over settings and seeds; the same command continues after a stop."""

    overrides: Annotated[tuple[str, ...], Positional(_GRID, "OVERRIDE")] = ()
    jobs: Annotated[int | None, Flag("runs side by side (default: one per core)", "N")] = None
    baseline: Annotated[str | None, Flag(_BASELINE, "METHOD")] = None
    metric: _Metric = None
    target: _Target = None
    tune: Annotated[tuple[str, ...], Flag(_TUNE, "[METHOD.]KEY=A,B,C")] = ()
    tune_seeds: Annotated[int | None, Flag("number of seeds on which --tune tries values (default: 1)", "N")] = None
    dry_run: Annotated[bool, Flag("print the plan and the estimated time; run nothing")] = False

    examples = (
        "fedkd compare strategy=fedavg,fedprox,fedgen seed=1..8",
        "fedkd compare preset=fedgen-mnist strategy=fedavg,knfu partition.alpha=0.1,0.5 seed=1..8 --name skew",
        "fedkd compare strategy=fedavg,fedgen --tune lr=0.003,0.01,0.03 --dry-run",
        "fedkd compare strategy=fedavg,fedprox --tune tune.fedprox.strategy.mu=0.01,0.1,1",
        "fedkd compare comparison=fedgen-mnist seed=1..5",
    )


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """Report on a comparison, or on runs made anywhere: one page, tables and figures."""

    places: Annotated[tuple[str, ...], Positional("a run, a folder of runs or a comparison", "RUN_OR_COMPARISON")]
    metric: _Metric = None
    baseline: Annotated[str | None, Flag("method to compare the others with", "METHOD")] = None
    target: _Target = None
    open: Annotated[bool, Flag("show the page in a browser")] = False

    examples = (
        "fedkd report runs/skew --open                  # a comparison, again",
        "fedkd report runs                              # all runs below a folder",
        "fedkd report 1124-1830-fedgen-a3f9 runs/pilot --metric 'clients.mean last10' --out report",
    )


@dataclass(frozen=True, kw_only=True)
class Export(Options):
    """Write the student of a run to a file, checked against the run: safetensors, pt2 or onnx."""

    run: Annotated[str, Positional(_RUN, "RUN")]
    client: Annotated[int | None, Flag("a client's own student (default: the global one)", "ID")] = None
    format: Annotated[str, Flag("of the file (default: safetensors)", "safetensors|pt2|onnx")] = "safetensors"
    int8: Annotated[bool, Flag("eight bits, onnx only; the accuracy it costs is measured")] = False
    max_loss: Annotated[float, Flag("accuracy that --int8 may cost (default: 0.02)", "SHARE")] = 0.02

    examples = (
        "fedkd export runs/demo",
        "fedkd export runs/demo --format onnx --int8",
        "fedkd export runs/knfu --client 3 --format pt2",
    )


_OTHERS = "a data set, or own samples at a path (default: the run's test samples)"


@dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Evaluate a student of a run: accuracy, loss, each class, and which classes it confuses."""

    run: Annotated[str, Positional(_RUN, "RUN")]
    client: Annotated[int | None, Flag("a client's own student (default: the global one)", "ID")] = None
    data: Annotated[str | None, Flag(_OTHERS, "PATH_OR_NAME")] = None
    csv: Annotated[Path | None, Flag("write a row per class, with the confusion matrix", "FILE")] = None

    examples = (
        "fedkd evaluate runs/demo",
        "fedkd evaluate runs/demo --data photos --csv photos.csv",
        "fedkd evaluate runs/knfu --client 3 --json",
    )


_DIR = "the deployment (client: or the kit), then overrides as for run; run --resume: a run's name"
_RESUME = "run: continue a run, by default the newest unfinished one"


@dataclass(frozen=True, kw_only=True)
class Deploy(Options):
    """Run on real devices: keys, server, clients, runs; `fedkd deploy demo` shows all of it on this machine."""

    action: Annotated[str, Positional("what to do", "init|add|renew|shards|server|client|run|status|stop|demo")]
    arguments: Annotated[tuple[str, ...], Positional(_DIR, "DIR [OVERRIDE ...]")] = ()
    address: Annotated[str, Flag("init: the server's address, as devices reach it", "HOST")] = ""
    port: Annotated[int, Flag("init: port of the server (default: 8000)", "PORT")] = 8000
    devices: Annotated[str, Flag("init, add: edge-1,edge-2:mlp,... (name:student), or a number", "NAMES")] = ""
    insecure: Annotated[bool, Flag("init: no TLS and no keys; warns each round")] = False
    host: Annotated[str | None, Flag("server: address to listen on", "IP")] = None
    memory_mb: Annotated[int | None, Flag("init, add: memory that training may use on each device", "N")] = None
    data: Annotated[Path | None, Flag("client: its images", "PATH")] = None
    resume: Annotated[bool, Flag(_RESUME)] = False
    public_only: Annotated[bool, Flag("shards: write only the public images")] = False

    examples = (
        "fedkd deploy demo",
        "fedkd deploy init fl --address fl.example.org --devices edge-1,edge-2,edge-3 strategy=fedgen",
        "fedkd deploy server fl",
        "fedkd deploy client edge-1 --data photos           # on the device, whose kit is the folder edge-1",
        "fedkd deploy run fl rounds=20",
        "fedkd deploy status fl",
        "fedkd deploy run fl --resume                       # after a stop or a crash",
        "fedkd deploy stop fl",
    )

    @property
    def folder(self) -> Path:
        """The deployment, or the kit. Raises ConfigError."""
        if not self.arguments or "=" in self.arguments[0]:
            mend = f"name the deployment's folder, as in `fedkd deploy {self.action} DIR`"
            raise ConfigError(f"deploy {self.action} needs a folder", where=COMMAND_LINE, mend=mend)
        return Path(self.arguments[0]).expanduser()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides after the folder."""
        return self.arguments[1:]


_WITHOUT = "leave this client out from now on; may be repeated"
_ANYWAY = "with rounds=+50: also if the run then differs from one with as many rounds from the start"
_FROM = "with --without: go back to the newest checkpoint up to this round; 0: to the beginning"


@dataclass(frozen=True, kw_only=True)
class Resume(Options):
    """Continue a stopped run, or make a run longer."""

    arguments: Annotated[tuple[str, ...], Positional(f"{_RUN}; rounds=+50 for more rounds", "RUN")] = ()
    anyway: Annotated[bool, Flag(_ANYWAY)] = False
    without: Annotated[tuple[int, ...], Flag(_WITHOUT, "CLIENT")] = ()
    back_to: Annotated[int | None, Flag(_FROM, "ROUND", "--from")] = None

    examples = (
        "fedkd resume                    # the newest unfinished one",
        "fedkd resume pilot rounds=+50   # 50 more rounds",
        "fedkd resume 1124-1830-fedgen-a3f9",
        "fedkd resume pilot --without 3 --from 10       # again from round 10, without client 3",
    )


@dataclass(frozen=True, kw_only=True)
class Fork(Options):
    """Start a new run from a commit of another one, under a changed configuration."""

    run: Annotated[str, Positional(_RUN, "RUN")]
    overrides: _Overrides = ()
    at: Annotated[int | None, Flag("round of the commit (default: the newest)", "ROUND")] = None

    examples = (
        "fedkd fork pilot rounds=+20 train.lr=0.001      # 20 more rounds, slower",
        "fedkd fork pilot --at 20 strategy.alpha=5 --name alpha5",
    )


@dataclass(frozen=True, kw_only=True)
class Show(Options):
    """Show what a run has done."""

    run: Annotated[str, Positional(_RUN, "RUN")]

    examples = ("fedkd show 1124-1830-fedgen-a3f9", "fedkd show runs/pilot --json")


@dataclass(frozen=True, kw_only=True)
class List(Options):
    """List the choices: strategies, data, partitions, students, presets, engines; and the runs so far."""

    kind: Annotated[str | None, Positional("strategies, data, ..., runs (default: all)", "KIND")] = None

    examples = ("fedkd list", "fedkd list strategies", "fedkd list runs --json")


@dataclass(frozen=True, kw_only=True)
class Partition(Options):
    """Show each client's share of the data; trains nothing."""

    overrides: _Overrides = ()
    picture: Annotated[Path | None, Flag("picture to write (default: partition.png)", "PATH")] = None
    download: _Download = False

    examples = (
        "fedkd partition data=mnist partition=dirichlet partition.alpha=0.1 clients=20",
        "fedkd partition preset=fedgen-mnist --picture split.svg",
    )


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Show, check or compare configurations; print the schema."""

    action: Annotated[str, Positional("what to do", "show|check|diff|schema")]
    overrides: _Overrides = ()

    examples = (
        "fedkd config show preset=fedgen-mnist          # each value with its source",
        "fedkd config check my.yaml rounds=20",
        "fedkd config diff runs/a runs/b                # run folders or YAML files",
        "fedkd config schema strategy=fedgen            # keys, types, ranges, defaults, meaning",
    )


@dataclass(frozen=True, kw_only=True)
class Doctor(Options):
    """Check this machine: versions, memory, disk, data."""

    examples = ("fedkd doctor",)


@dataclass(frozen=True, kw_only=True)
class Bench(Options):
    """Measure speed against a bare training loop on this machine."""

    overrides: _Overrides = ()
    quick: Annotated[bool, Flag("fewer repetitions: takes a minute, is noisier")] = False

    examples = (
        "fedkd bench",
        "fedkd bench preset=fedgen-mnist",
        "fedkd bench strategy=fedavg clients=20 --quick",
        "fedkd bench comparison=costs                   # a round of each method beside one of FedAvg",
        "fedkd bench strategy=fedavg,scaffold,moon",
    )


@dataclass(frozen=True, kw_only=True)
class Completion(Options):
    """Print a script that lets a shell complete verbs, options, keys and names."""

    shell: Annotated[str, Positional("whose script to print", "bash|zsh|fish")]

    examples = (
        "source <(fedkd completion bash)                 # in ~/.bashrc",
        "source <(fedkd completion zsh)                  # in ~/.zshrc, after compinit",
        "fedkd completion fish > ~/.config/fish/completions/fedkd.fish",
    )
