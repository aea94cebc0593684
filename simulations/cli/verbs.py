"""The verbs of the command line. Each imports what it needs when it runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations.run import options
from simulations.system import streams

if TYPE_CHECKING:
    from fedkd.configuration.resolved import Resolved


def run(asked: options.Run) -> int:
    from simulations.run import progress, runs

    streams.outlive_terminal()
    where: dict[str, Any] = {"runs": asked.runs, "name": asked.name, "out": asked.out}
    with progress.make(asked) as screen:
        resolved = _resolve(asked, announce=lambda: screen.phase("loading PyTorch"))
        found = runs.start(resolved, **where, options=asked, screen=screen)
    return _end(found, asked)


def resume(asked: options.Resume) -> int:
    from simulations.run import exclusion, run_folder, runs

    streams.outlive_terminal()
    wanted, words = run_folder.told_apart(asked.words)
    path = run_folder.find(asked.runs, wanted) if wanted else None
    left_out = exclusion.Exclusion(asked.without, asked.back_to)
    return _end(runs.resume(path, runs=asked.runs, options=asked, words=words, exclusion=left_out), asked)


def show(asked: options.Show) -> int:
    from simulations.run import run_folder, runs

    asked.answer(runs.show(run_folder.find(asked.runs, asked.run), options=asked))
    return 0


def compare(asked: options.Compare) -> int:
    from simulations.compare import command

    streams.outlive_terminal()
    return command.main(asked)


def report(asked: options.Report) -> int:
    from simulations.report import command

    return command.main(asked)


def export(asked: options.Export) -> int:
    from simulations.export import command

    return command.main(asked)


def deploy(asked: options.Deploy) -> int:
    from simulations.deploy import command

    return command.main(asked)


def list_(asked: options.List) -> int:
    from simulations.cli import listing

    found = listing.of(asked.what, asked.runs)
    asked.answer(found)
    if not asked.json:
        print(listing.text(found))
    return 0


def partition(asked: options.Partition) -> int:
    config = _resolve(asked).config
    from fedkd.data import sources
    from simulations import assemble, cautions
    from simulations.cli import partition_view

    dataset = sources.load(config.data)
    labels = dataset.train.y.numpy()
    split = assemble.split(config, dataset)
    for text in cautions.absent_labels(split.label_counts(labels), dataset.labels):
        print(f"warn   {text}", file=sys.stderr)
    picture = asked.picture or (None if asked.json else (asked.out or Path()) / "partition.png")
    if picture:
        partition_view.picture(split, labels, dataset.labels, picture)
        print(f"picture {picture}", file=sys.stderr)
    asked.answer(partition_view.as_json(split, labels))
    if not asked.json:
        print(partition_view.table(split, labels, dataset.labels))
    return 0


def config(asked: options.Config) -> int:
    from simulations.cli import config_view

    found = config_view.of(asked.action, asked.words)
    asked.answer(found.value)
    if not asked.json:
        print(found.text)
    return 0


def doctor(asked: options.Doctor) -> int:
    from simulations.cli import doctor

    return doctor.main(asked)


def bench(asked: options.Bench) -> int:
    from simulations.bench import command

    streams.outlive_terminal()
    return command.main(asked, asked.words, command.QUICK if asked.quick else None)


def _resolve(asked: options.Run | options.Partition, announce: Callable[[], None] = lambda: None) -> "Resolved":
    """The configuration of the overrides, and of the options that are short for overrides."""
    from fedkd.configuration import compose

    short = {"data.download=true": asked.download, "engine.name=inline": asked.debug}
    return compose.resolve([*asked.words, *(word for word, is_asked in short.items() if is_asked)], announce=announce)


def _end(found: dict[str, Any], asked: options.Options) -> int:
    """Print a run's summary if --json asks for it; gives the exit code."""
    from simulations.run import runs

    asked.answer(found)
    return runs.exit_code(found)
