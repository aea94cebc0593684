"""The verbs of the command line. Each imports what it needs when it is played."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations import streams
from simulations.options import Options

if TYPE_CHECKING:
    from fedkd.resolved import Resolved


def run(args: Namespace, options: Options) -> int:
    from simulations import progress, runs

    streams.outlive_terminal()
    where: dict[str, Any] = {"runs": options.runs, "name": options.name, "out": options.out}
    with progress.make(options) as screen:
        resolved = _resolve(args, options, announce=lambda: screen.phase("loading PyTorch"))
        found = runs.start(resolved, **where, options=options, screen=screen)
    return _end(found, options)


def resume(args: Namespace, options: Options) -> int:
    from simulations import exclusion, run_folder, runs

    streams.outlive_terminal()
    wanted, words = run_folder.told_apart(args.words)
    path = run_folder.find(options.runs, wanted) if wanted else None
    left_out = exclusion.Exclusion(tuple(args.without), args.back_to)
    return _end(runs.resume(path, runs=options.runs, options=options, words=words, exclusion=left_out), options)


def show(args: Namespace, options: Options) -> int:
    from simulations import run_folder, runs

    options.answer(runs.show(run_folder.find(options.runs, args.run), options=options))
    return 0


def compare(args: Namespace, options: Options) -> int:
    from simulations.compare import command

    streams.outlive_terminal()
    names = ("words", "jobs", "baseline", "metric", "target", "tune", "tune_seeds", "dry_run")
    return command.main(command.Request(**{name: getattr(args, name) for name in names}), options)


def report(args: Namespace, options: Options) -> int:
    from simulations.report import command

    names = ("metric", "baseline", "target", "open")
    return command.main(command.Request(args.places, **{name: getattr(args, name) for name in names}), options)


def export(args: Namespace, options: Options) -> int:
    from simulations.export import command

    names = ("run", "client", "format", "int8", "max_loss")
    return command.main(command.Request(**{name: getattr(args, name) for name in names}), options)


def deploy(args: Namespace, options: Options) -> int:
    from simulations.deploy import command

    names = ("action", "address", "port", "devices", "insecure", "memory_mb", "data", "resume", "host", "public_only")
    given = {name: getattr(args, name) for name in names}
    return command.main(command.Request(words=tuple(args.words), **given), options)


def list_(args: Namespace, options: Options) -> int:
    from simulations import listing

    found = listing.of(args.what, options.runs)
    options.answer(found)
    if not options.json:
        print(listing.text(found))
    return 0


def partition(args: Namespace, options: Options) -> int:
    config = _resolve(args, options).config
    from fedkd.data import sources
    from simulations import assemble, cautions, partition_view

    dataset = sources.load(config.data)
    labels = dataset.train.y.numpy()
    split = assemble.split(config, dataset)
    for text in cautions.absent_labels(split.label_counts(labels), dataset.labels):
        print(f"warn   {text}", file=sys.stderr)
    picture = args.picture or (None if options.json else (options.out or Path()) / "partition.png")
    if picture:
        partition_view.picture(split, labels, dataset.labels, picture)
        print(f"picture {picture}", file=sys.stderr)
    options.answer(partition_view.as_json(split, labels))
    if not options.json:
        print(partition_view.table(split, labels, dataset.labels))
    return 0


def config(args: Namespace, options: Options) -> int:
    from simulations import config_view

    found = config_view.of(args.action, args.words)
    options.answer(found.value)
    if not options.json:
        print(found.text)
    return 0


def doctor(args: Namespace, options: Options) -> int:
    from simulations import doctor

    return doctor.main(options)


def bench(args: Namespace, options: Options) -> int:
    from simulations import bench

    streams.outlive_terminal()
    return bench.main(options, args.words, bench.QUICK if args.quick else None)


def _resolve(args: Namespace, options: Options, announce: Callable[[], None] = lambda: None) -> "Resolved":
    """The configuration of the words, and of those options that are short for words."""
    from fedkd import compose

    words: Sequence[str] = args.words
    short = {"data.download=true": args.download, "engine.name=inline": options.debug}
    return compose.resolve([*words, *(word for word, is_asked in short.items() if is_asked)], announce=announce)


def _end(found: dict[str, Any], options: Options) -> int:
    """Give a run's summary where a machine asks for it; gives the exit code."""
    from simulations import runs

    options.answer(found)
    return runs.exit_code(found)
