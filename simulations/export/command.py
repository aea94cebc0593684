"""`fedkd export`: finds the student, writes a temporary file, checks it, then moves it into place."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.errors import ConfigError, FolderError
from simulations.run import run_folder
from simulations.run.options import Export
from simulations.system.threads import one_thread

if TYPE_CHECKING:
    from simulations.export.checks import Measurements
    from simulations.export.formats import Format
    from simulations.export.serving import Served


def main(options: Export) -> int:
    """Export a student and describe it. Writes nothing unless the file's logits equal those of the run's student."""
    path = run_folder.find(options.runs, options.run)
    run_folder.info(path)
    _check_words(options)
    from simulations.export import formats, messages, serving  # 2 s: torch

    format_ = formats.choose(options.format, int8=options.int8)
    with one_thread():
        run = serving.load(path, _warn)
        served = serving.student(run.assembly, run.state, options.client)
        facts = serving.facts(run, served)
        name = f"{served.name}{'-int8' if options.int8 else ''}.{format_.name}"
        place = _place(options.out, path, name)
        _refuse_foreign(place, format_.metadata(place) if place.exists() else {}, facts)
        with _beside(place) as folder:
            file, whole, small = _make(options, served, facts, format_, folder)
            _put(file, place)
    summary = messages.ExportSummary(place, format_.name, run, served, whole, small)
    if not (options.json and options.quiet):
        print("\n".join(messages.screen(summary)), file=sys.stderr if options.json else sys.stdout)
    options.answer(messages.as_json(summary))
    return 0


def _make(
    options: Export, served: "Served", facts: Mapping[str, str], format_: "Format", folder: Path
) -> tuple[Path, "Measurements", "Measurements | None"]:
    """The checked file, and its measurements in float and, on request, in int8."""
    from simulations.export import checks

    whole = folder / f"{served.name}.{format_.name}"
    format_.write(served, facts, whole)
    measured = checks.measure(served, whole, format_)
    checks.demand_equal(measured, format_)
    if not options.int8:
        return whole, measured, None
    from simulations.export import int8

    quantised = folder / f"{served.name}-int8.{format_.name}"
    int8.write(served, facts, quantised, whole)
    small = checks.measure(served, quantised, format_)
    checks.demand_worth(small, measured, options.max_loss)
    return quantised, measured, small


def _check_words(options: Export) -> None:
    out = options.out
    if out is not None and not out.is_dir() and out.suffix != f".{options.format}":
        raise ConfigError(
            f"--out {out} does not end in .{options.format}",
            where="command line",
            mend="use the format as suffix, or name an existing folder",
        )
    if not 0 <= options.max_loss <= 1:
        raise ConfigError(
            f"--max-loss {options.max_loss:g} is no share of the samples",
            where="command line",
            mend="write 0.02 for two points of accuracy",
        )


def _place(out: Path | None, run: Path, name: str) -> Path:
    """Where the file goes: --out itself, a file in it if it is a folder, else the run's own folder `export`."""
    if out is None:
        return run / "export" / name
    return out / name if out.is_dir() else out


def _refuse_foreign(place: Path, metadata: Mapping[str, str], facts: Mapping[str, str]) -> None:
    """Raises FolderError if another file is at `place`; an export of the same student may be replaced."""
    if not place.exists() or all(metadata.get(name) == facts[name] for name in ("run", "student", "config")):
        return
    raise FolderError(
        f"{place} exists and is no export of this student, so it is not overwritten",
        mend="remove it, or choose another --out",
    )


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A temporary folder for files that are not checked yet, on the same disk as `place`."""
    with run_folder.writing(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=place.parent))
    try:
        with run_folder.writing(place.parent):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(file: Path, place: Path) -> None:
    """Move the file into place, atomically even if the power fails."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())
    file.replace(place)


def _warn(text: str) -> None:
    print(f"warn   {text}", file=sys.stderr)
