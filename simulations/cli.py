"""The command line `fedkd`: finds the verb, reads its options, turns errors into messages and exit codes.

Imports nothing heavy: `fedkd --help` answers before torch could be imported.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import fedkd
from fedkd import foreign
from fedkd.errors import ConfigError
from simulations import ending, streams, verbs
from simulations.options import Options

COMMAND_LINE = "command line"
_WORDS = ("words", {"nargs": "*", "metavar": "WORD", "help": "key=value, group=name or a YAML file; later wins"})


@dataclass(frozen=True)
class Verb:
    """A verb: one line about it, examples, what it takes, and who plays it."""

    about: str
    examples: tuple[str, ...]
    play: Callable[[argparse.Namespace, Options], int]
    arguments: tuple[tuple[str, dict[str, Any]], ...] = (_WORDS,)


_DOWNLOAD = ("--download", {"action": "store_true", "help": "fetch missing data sets with torchvision"})
_METRIC = ("--metric", {"metavar": "METRIC", "help": "what decides, e.g. 'clients.mean last10', 'global last10'"})
_TARGET = ("--target", {"type": float, "metavar": "ACCURACY", "help": "ask what it costs to reach this, e.g. 0.9"})
_COMPARE: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "words",
        {
            "nargs": "*",
            "metavar": "WORD",
            "help": "key=value as for run, where a value may be a list: a,b,c or 1..8; or comparison=NAME",
        },
    ),
    ("--jobs", {"type": int, "metavar": "N", "help": "runs side by side (default: one a core)"}),
    (
        "--baseline",
        {"metavar": "METHOD", "help": "what the others are compared with (default: fedavg, else the first)"},
    ),
    _METRIC,
    _TARGET,
    (
        "--tune",
        {
            "action": "append",
            "default": [],
            "metavar": "[METHOD.]KEY=A,B,C",
            "help": "choose a value for each method, or for one, on validation data; may be given several times",
        },
    ),
    (
        "--tune-seeds",
        {"type": int, "metavar": "N", "help": "number of seeds on which --tune tries values (default: 1)"},
    ),
    ("--dry-run", {"action": "store_true", "help": "print the plan and about how long it takes; play nothing"}),
)
_REPORT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("places", {"nargs": "+", "metavar": "RUN_OR_COMPARISON", "help": "a run, a folder of runs or a comparison"}),
    _METRIC,
    ("--baseline", {"metavar": "METHOD", "help": "what the others are compared with"}),
    _TARGET,
    ("--open", {"action": "store_true", "help": "show the page in a browser"}),
)
_EXPORT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("run", {"metavar": "RUN", "help": "a run folder, a run's id or the beginning of one"}),
    ("--client", {"type": int, "metavar": "ID", "help": "a client's own student (default: the global one)"}),
    (
        "--format",
        {"default": "safetensors", "metavar": "FORMAT", "help": "safetensors, pt2 or onnx (default: safetensors)"},
    ),
    ("--int8", {"action": "store_true", "help": "eight bits, onnx only; the accuracy it costs is measured"}),
    (
        "--max-loss",
        {"type": float, "default": 0.02, "metavar": "SHARE", "help": "accuracy that --int8 may cost (default: 0.02)"},
    ),
)
_DEPLOY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("action", {"metavar": "init|add|renew|shards|server|client|run|status|stop|demo", "help": "what to do"}),
    (
        "words",
        {
            "nargs": "*",
            "metavar": "DIR [WORD ...]",
            "help": "the deployment (client: or the kit), then words as for run; run --resume: a run's name",
        },
    ),
    ("--address", {"metavar": "HOST", "help": "init: by which devices find the server"}),
    ("--port", {"type": int, "metavar": "PORT", "help": "init: of the server (default: 8000)"}),
    ("--devices", {"metavar": "NAMES", "help": "init, add: edge-1,edge-2:mlp,... (name:student), or a number"}),
    ("--insecure", {"action": "store_true", "help": "init: no TLS and no keys; warns each round"}),
    ("--host", {"metavar": "IP", "help": "server: address to listen on"}),
    ("--memory-mb", {"type": int, "metavar": "N", "help": "init, add: memory that training may take on each device"}),
    ("--data", {"type": Path, "metavar": "PATH", "help": "client: its images"}),
    ("--resume", {"action": "store_true", "help": "run: go on with a run, the newest unfinished one if none is named"}),
    ("--public-only", {"action": "store_true", "help": "shards: write the public images alone"}),
)
_WITHOUT = "leave this client out from now on; may be given several times"
_FROM = "with --without: go back to the newest checkpoint up to this round; 0: to the beginning"
_RUN = "a run folder, a run's id or the beginning of one"

VERBS = {
    "run": Verb(
        "run an experiment; without words, a first one that needs no network",
        (
            "fedkd run",
            "fedkd run strategy=fedgen data=fashion-mnist clients=100 clients_per_round=10 rounds=50",
            "fedkd run preset=fedgen-mnist strategy.variant=paper seed=1",
            "fedkd run my.yaml rounds=20 --name pilot",
            "fedkd run runs/pilot/config.yaml          # the same run again",
        ),
        verbs.run,
        (_WORDS, _DOWNLOAD),
    ),
    "compare": Verb(
        "compare strategies over settings and seeds; the same command goes on where it was stopped",
        (
            "fedkd compare strategy=fedavg,fedprox,fedgen seed=1..8",
            "fedkd compare preset=fedgen-mnist strategy=fedavg,knfu partition.alpha=0.1,0.5 seed=1..8 --name skew",
            "fedkd compare strategy=fedavg,fedgen --tune lr=0.003,0.01,0.03 --dry-run",
            "fedkd compare strategy=fedavg,fedprox --tune tune.fedprox.strategy.mu=0.01,0.1,1",
            "fedkd compare comparison=fedgen-mnist seed=1..5",
        ),
        verbs.compare,
        _COMPARE,
    ),
    "report": Verb(
        "report on a comparison, or on runs made anywhere: one page, tables and figures",
        (
            "fedkd report runs/skew --open                  # a comparison, again",
            "fedkd report runs                              # all runs below a folder",
            "fedkd report 1124-1830-fedgen-a3f9 runs/pilot --metric 'clients.mean last10' --out report",
        ),
        verbs.report,
        _REPORT,
    ),
    "export": Verb(
        "write the student of a run to a file, checked against the run: safetensors, pt2 or onnx",
        (
            "fedkd export runs/demo",
            "fedkd export runs/demo --format onnx --int8",
            "fedkd export runs/knfu --client 3 --format pt2",
        ),
        verbs.export,
        _EXPORT,
    ),
    "deploy": Verb(
        "run on real devices: keys, server, clients, runs; `fedkd deploy demo` shows all of it on this machine",
        (
            "fedkd deploy demo",
            "fedkd deploy init fl --address fl.example.org --devices edge-1,edge-2,edge-3 strategy=fedgen",
            "fedkd deploy server fl",
            "fedkd deploy client edge-1 --data photos           # on the device, whose kit is the folder edge-1",
            "fedkd deploy run fl rounds=20",
            "fedkd deploy status fl",
            "fedkd deploy run fl --resume                       # after a stop or a crash",
            "fedkd deploy stop fl",
        ),
        verbs.deploy,
        _DEPLOY,
    ),
    "resume": Verb(
        "go on with a stopped run",
        (
            "fedkd resume                    # the newest unfinished one",
            "fedkd resume 1124-1830-fedgen-a3f9",
            "fedkd resume pilot --without 3 --from 10       # again from round 10 on, without client 3",
        ),
        verbs.resume,
        (
            ("words", {"nargs": "*", "metavar": "RUN", "help": _RUN}),
            ("--without", {"action": "append", "type": int, "default": [], "metavar": "CLIENT", "help": _WITHOUT}),
            ("--from", {"dest": "back_to", "type": int, "metavar": "ROUND", "help": _FROM}),
        ),
    ),
    "show": Verb(
        "what a run has done",
        ("fedkd show 1124-1830-fedgen-a3f9", "fedkd show runs/pilot --json"),
        verbs.show,
        (("run", {"metavar": "RUN", "help": _RUN}),),
    ),
    "list": Verb(
        "what there is to choose from: strategies, data, partitions, students, presets, engines, and the runs so far",
        ("fedkd list", "fedkd list strategies", "fedkd list runs --json"),
        verbs.list_,
        (("what", {"nargs": "?", "metavar": "WHAT", "help": "strategies, data, ..., runs; all if left out"}),),
    ),
    "partition": Verb(
        "show which client would hold what; nothing is trained",
        (
            "fedkd partition data=mnist partition=dirichlet partition.alpha=0.1 clients=20",
            "fedkd partition preset=fedgen-mnist --picture split.svg",
        ),
        verbs.partition,
        (
            _WORDS,
            ("--picture", {"type": Path, "metavar": "PATH", "help": "picture to write (default: partition.png)"}),
            _DOWNLOAD,
        ),
    ),
    "config": Verb(
        "show, check or compare configurations; print the schema",
        (
            "fedkd config show preset=fedgen-mnist          # each value with its source",
            "fedkd config check my.yaml rounds=20",
            "fedkd config diff runs/a runs/b                # run folders or YAML files",
            "fedkd config schema strategy=fedgen            # keys, types, ranges, defaults, meaning",
        ),
        verbs.config,
        (("action", {"metavar": "show|check|diff|schema", "help": "what to do"}), _WORDS),
    ),
    "doctor": Verb("check this machine: versions, memory, disk, data", ("fedkd doctor",), verbs.doctor, ()),
    "bench": Verb(
        "measure speed against a bare training loop on this machine",
        (
            "fedkd bench",
            "fedkd bench preset=fedgen-mnist",
            "fedkd bench strategy=fedavg clients=20 --quick",
            "fedkd bench comparison=costs                   # a round of each method beside one of FedAvg",
            "fedkd bench strategy=fedavg,scaffold,moon",
        ),
        verbs.bench,
        (_WORDS, ("--quick", {"action": "store_true", "help": "few repetitions: a minute, and noisier"})),
    ),
}


def _hint(word: str) -> str:
    """What to write instead of an option that fedkd does not have."""
    from fedkd import compose

    return foreign.hint(word.partition("=")[0]) or compose.as_word(word)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hints = [hint for word in message.split() if (hint := _hint(word))]
        raise ConfigError(message, where=COMMAND_LINE, mend="   ".join([*hints, f"{self.prog} --help"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Play a command line; gives the exit code. Without `argv` that of this process, whose streams are then ours."""
    if argv is None:
        streams.keep()
    args = list(sys.argv[1:] if argv is None else argv)
    before = _on_termination(_terminate)
    answers: list[Mapping[str, Any]] = []
    try:
        code = _dispatch(args, answers)
        if not answers:  # the verb has nothing to tell but its end
            Options(json="--json" in args).answer({"code": code})
        return code
    except SystemExit as end:  # argparse after --help and --version
        return int(end.code or 0)
    except BaseException as error:  # noqa: BLE001  the one place where everything ends as a message and a code
        code = ending.explain(error, args)
        if not answers:
            Options(json="--json" in args).answer({"error": ending.as_json(error, code, args)})
        return code
    finally:
        _on_termination(before)


def _dispatch(args: list[str], answers: list[Mapping[str, Any]]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        print(f"fedkd {fedkd.__version__}")
        return 0
    verb = VERBS.get(args[0])
    if verb is None:
        raise ConfigError(f"there is no verb '{args[0]}'", where=COMMAND_LINE, mend=_mend_verb(args[0]))
    parsed = _parser(args[0], verb).parse_intermixed_args(args[1:])
    return verb.play(parsed, _options(parsed, answers))


def _mend_verb(word: str) -> str:
    from fedkd import schema

    return schema.one_of(word, VERBS) + "   fedkd --help"


def _overview() -> str:
    width = max(map(len, VERBS))
    return "\n".join(
        [
            f"fedkd {fedkd.__version__}: federated knowledge distillation, simulated and on real devices",
            "",
            "usage: fedkd VERB [WORD ...] [options]      fedkd VERB --help",
            "",
            *(f"  {name:<{width}}  {verb.about}" for name, verb in VERBS.items()),
            "",
            "examples:",
            *(f"  {example}" for name in ("run", "list", "config") for example in VERBS[name].examples[:2]),
        ]
    )


def _parser(name: str, verb: Verb) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"fedkd {name}",
        description=verb.about[0].upper() + verb.about[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in verb.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag, settings in verb.arguments:
        parser.add_argument(flag, **settings)
    common = parser.add_argument_group("options of all verbs")
    common.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    common.add_argument("--name", metavar="NAME", help="name of the new folder below it")
    common.add_argument("--out", type=Path, metavar="DIR", help="write into this very folder")
    common.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    common.add_argument("--quiet", action="store_true", help="only the result")
    common.add_argument("--verbose", action="store_true", help="more detail")
    common.add_argument("--debug", action="store_true", help="one process, full tracebacks")
    return parser


def _options(parsed: argparse.Namespace, answers: list[Mapping[str, Any]]) -> Options:
    given = {name: value for name, value in vars(parsed).items() if name in Options.__dataclass_fields__}
    return Options(**given, answers=answers)


def _on_termination(handler: Any) -> Any:
    """Set the handler of SIGTERM; gives the one before. Only the main thread can."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise ending.Terminated


if __name__ == "__main__":
    sys.exit(main())
