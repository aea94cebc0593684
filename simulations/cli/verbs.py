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
        summary = runs.start(resolved, **where, options=asked, screen=screen)
    return _end(summary, asked)


def resume(asked: options.Resume) -> int:
    from simulations.run import exclusion, run_folder, runs

    streams.outlive_terminal()
    name, overrides = run_folder.split_arguments(asked.arguments)
    path = run_folder.find(asked.runs, name) if name else None
    excluded = exclusion.Exclusion(asked.without, asked.back_to)
    asks: dict[str, Any] = {"overrides": overrides, "exclusion": excluded, "anyway": asked.anyway}
    return _end(runs.resume(path, runs=asked.runs, options=asked, **asks), asked)


def fork(asked: options.Fork) -> int:
    from simulations.run import fork as forks
    from simulations.run import run_folder

    streams.outlive_terminal()
    where: dict[str, Any] = {"runs": asked.runs, "name": asked.name, "out": asked.out}
    place = run_folder.find(asked.runs, asked.run)
    return _end(forks.start(place, asked.overrides, asked.at, options=asked, **where), asked)


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


def evaluate(asked: options.Evaluate) -> int:
    from simulations.export import evaluate as evaluation

    return evaluation.main(asked)


def deploy(asked: options.Deploy) -> int:
    from simulations.deploy import command

    return command.main(asked)


def list_(asked: options.List) -> int:
    from simulations.cli import listing

    lists = listing.of(asked.kind, asked.runs)
    asked.answer(lists)
    if not asked.json:
        print(listing.text(lists))
    return 0


def partition(asked: options.Partition) -> int:
    config = _resolve(asked).config
    from fedkd.data import proxy, sources
    from simulations import assemble, cautions
    from simulations.cli import partition_view

    dataset = sources.load(config.data)
    labels = dataset.train.y.numpy()
    split = assemble.split_data(config, dataset, proxy.hold_out(config, dataset))
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

    view = config_view.of(asked.action, asked.overrides)
    asked.answer(view.value)
    if not asked.json:
        print(view.text)
    return 0


def doctor(asked: options.Doctor) -> int:
    from simulations.cli import doctor

    return doctor.main(asked)


def bench(asked: options.Bench) -> int:
    from simulations.bench import command

    streams.outlive_terminal()
    return command.main(asked, asked.overrides, command.QUICK if asked.quick else None)


def completion(asked: options.Completion) -> int:
    from simulations.cli import completion

    text = completion.script(asked.shell)
    asked.answer({"script": text})
    if not asked.json:
        print(text, end="")
    return 0


def _resolve(asked: options.Run | options.Partition, announce: Callable[[], None] = lambda: None) -> "Resolved":
    """The configuration of the overrides and of the options that stand for overrides."""
    from fedkd.configuration import compose

    shortcuts = {"data.download=true": asked.download, "engine.name=inline": asked.debug}
    given = [override for override, is_given in shortcuts.items() if is_given]
    return compose.resolve([*asked.overrides, *given], announce=announce)


def _end(summary: dict[str, Any], asked: options.Options) -> int:
    """Print the summary of a run if --json is given; returns the exit code."""
    from simulations.run import runs

    asked.answer(summary)
    return runs.exit_code(summary)
