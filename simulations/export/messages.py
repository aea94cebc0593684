"""The output of `fedkd export`: a few lines, or one JSON object."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.export.checks import Found
from simulations.export.serving import Run, Served


@dataclass(frozen=True)
class Told:
    """The facts to report."""

    place: Path
    format: str
    run: Run
    served: Served
    found: Found  # of the file in float
    small: Found | None  # of the file in int8, which is then at `place`


def screen(told: Told) -> Iterator[str]:
    """Lines for people."""
    served, found, last = told.served, told.found, told.small or told.found
    problem = served.assembly.experiment.problem
    ledger = told.run.accuracy(served.client)
    shape = ", ".join(map(str, problem.input_shape))
    form, rule = served.architecture["name"], served.module.rule.name
    how = "" if rule == "student" else f", judged by {rule}"
    other = found.samples - found.same
    yield f"export    {told.place}"
    yield (
        f"student   {served.name} of round {told.run.state.round} of {problem.rounds}: {form}{how}, "
        f"uint8 images (batch, {shape}) as stored -> logits (batch, {problem.classes})"
    )
    yield (
        f"checked   {found.samples} held-out samples: logits differ by at most {found.difference:.1e} "
        f"(allowed {found.allowed:.0e}), {other or 'no'} label differs"
    )
    said = f"the run's ledger says {ledger:.4f}" if ledger is not None else "not in the run's ledger"
    yield f"accuracy  {found.accuracy:.4f}   ({said})"
    if told.small is not None:
        cost = 100 * (found.accuracy - told.small.accuracy)
        yield (
            f"int8      {told.small.accuracy:.4f}   costs {cost:.2f} points of accuracy; "
            f"{told.small.bytes / found.bytes:.2f} of the float file's size"
        )
    times = "   ".join(f"{1e3 * seconds:.3f} at batch {batch}" for batch, seconds in last.latency.items())
    yield f"size      {last.bytes / 1e6:.3f} MB   ms per image: {times}   (one thread, median)"
    if ledger is not None and found.samples == _all_of(served) and round(ledger * found.samples) != _correct(found):
        yield "warn      this machine's accuracy is not the ledger's: another processor or torch, or other data"


def as_json(told: Told) -> dict[str, Any]:
    """The facts for machines: fractions, bytes, milliseconds."""
    served, last = told.served, told.small or told.found
    accuracy = {"ledger": told.run.accuracy(served.client), "export": told.found.accuracy}
    return {
        "file": str(told.place),
        "format": told.format,
        "run": str(told.run.path),
        "student": served.name,
        "round": told.run.state.round,
        "architecture": served.architecture["name"],
        "rule": served.module.rule.name,
        "samples": told.found.samples,
        "max_difference": told.found.difference,
        "allowed_difference": told.found.allowed,
        "same_labels": told.found.same,
        "accuracy": accuracy if told.small is None else {**accuracy, "int8": told.small.accuracy},
        "bytes": last.bytes if told.small is None else {"float": told.found.bytes, "int8": last.bytes},
        "latency_ms": {str(batch): 1e3 * seconds for batch, seconds in last.latency.items()},
    }


def _all_of(served: Served) -> int:
    site = served.assembly.site
    return len(site.test) if served.client is None else len(site.test_index.get(served.client, ()))


def _correct(found: Found) -> int:
    return round(found.accuracy * found.samples)
