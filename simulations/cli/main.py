"""The command line `fedkd`: finds the verb, reads its options, turns errors into messages and exit codes.

Imports nothing heavy: `fedkd --help` must answer at once.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import fedkd
from fedkd import extensions
from fedkd.configuration import foreign_words
from fedkd.errors import ConfigError
from simulations.cli import ending, verbs
from simulations.run import options
from simulations.run.options import COMMAND_LINE, Options
from simulations.system import streams

HANDLERS: dict[type[Options], Callable[[Any], int]] = {
    options.Run: verbs.run,
    options.Compare: verbs.compare,
    options.Report: verbs.report,
    options.Export: verbs.export,
    options.Evaluate: verbs.evaluate,
    options.Deploy: verbs.deploy,
    options.Resume: verbs.resume,
    options.Fork: verbs.fork,
    options.Show: verbs.show,
    options.List: verbs.list_,
    options.Partition: verbs.partition,
    options.Config: verbs.config,
    options.Doctor: verbs.doctor,
    options.Bench: verbs.bench,
    options.Completion: verbs.completion,
}
VERBS = {verb.__name__.lower(): verb for verb in HANDLERS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from fedkd.configuration import compose

        hints = (foreign_words.hint(word.partition("=")[0]) or compose.as_override(word) for word in message.split())
        raise ConfigError(message, where=COMMAND_LINE, mend="   ".join([*filter(None, hints), f"{self.prog} --help"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Without `argv`: this process's own, with protected streams."""
    if argv is None:
        streams.keep()
    args = list(sys.argv[1:] if argv is None else argv)
    before = _on_termination(_terminate)
    answers: list[Mapping[str, Any]] = []
    try:
        code = _dispatch(args, answers)
        if not answers:  # the verb has printed no object
            Options(json="--json" in args).answer({"code": code})
        return code
    except SystemExit as end:  # argparse after --help and --version
        return int(end.code or 0)
    except BaseException as error:  # noqa: BLE001  every error becomes a message and a code
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
        Options(json="--json" in args, answers=answers).answer({"version": fedkd.__version__})
        if not answers:
            print(f"fedkd {fedkd.__version__}")
        return 0
    if args[0] == "__complete":  # from the script of `fedkd completion`
        from simulations.cli import completion

        sys.stdout.writelines(f"{answer}\n" for answer in completion.answers(" ".join(args[1:]), VERBS))
        return 0
    verb = VERBS.get(args[0])
    if verb is None:
        from fedkd.configuration import validate

        mend = validate.one_of(args[0], VERBS) + "   fedkd --help"
        raise ConfigError(f"there is no verb '{args[0]}'", where=COMMAND_LINE, mend=mend)
    given = verb.of(_parser(args[0], verb).parse_intermixed_args(args[1:]), answers)
    for path in given.py:
        extensions.load(path)
    return HANDLERS[verb](given)


def _overview() -> str:
    width = max(map(len, VERBS))
    return "\n".join(
        [
            f"fedkd {fedkd.__version__}: federated knowledge distillation, simulated and on real devices",
            "",
            "usage: fedkd VERB [ARGUMENT ...] [options]      fedkd VERB --help",
            "",
            *(f"  {name:<{width}}  {verb.about()[0].lower()}{verb.about()[1:-1]}" for name, verb in VERBS.items()),
            "",
            "examples:",
            *(f"  {example}" for name in ("run", "list", "config") for example in VERBS[name].examples[:2]),
        ]
    )


def _parser(name: str, verb: type[Options]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"fedkd {name}",
        description=verb.about(),
        epilog="examples:\n" + "\n".join(f"  {example}" for example in verb.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_to(parser)
    return parser


def _on_termination(handler: Any) -> Any:
    """Set the handler of SIGTERM and return the previous one. Only the main thread can."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise ending.Terminated
