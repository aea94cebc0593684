"""The output of `fedkd export`: a few lines, or one JSON object."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.export.checks import Measurements
from simulations.export.serving import Run, Served


@dataclass(frozen=True)
class ExportSummary:
    """The facts to report."""

    place: Path
    format: str
    run: Run
    served: Served
    whole: Measurements  # of the file in float
    small: Measurements | None  # of the file in int8, which is then at `place`


def screen(summary: ExportSummary) -> Iterator[str]:
    """Lines for people."""
    served, whole, final = summary.served, summary.whole, summary.small or summary.whole
    problem = served.assembly.experiment.problem
    ledger = summary.run.accuracy(served.client)
    shape = ", ".join(map(str, problem.input_shape))
    form, rule = served.architecture["name"], served.module.rule.name
    how = "" if rule == "student" else f", judged by {rule}"
    other = whole.samples - whole.same
    yield f"export    {summary.place}"
    yield (
        f"student   {served.name} of round {summary.run.state.round} of {problem.rounds}: {form}{how}, "
        f"{' '.join(served.stored)} (batch, {shape}) as stored -> logits (batch, {problem.classes})"
    )
    yield (
        f"checked   {whole.samples} held-out samples: logits differ by at most {whole.difference:.1e} "
        f"(allowed {whole.allowed:.0e}), {other or 'no'} label differs"
    )
    accuracy_text = f"the run's ledger says {ledger:.4f}" if ledger is not None else "not in the run's ledger"
    yield f"accuracy  {whole.accuracy:.4f}   ({accuracy_text})"
    if summary.small is not None:
        cost = 100 * (whole.accuracy - summary.small.accuracy)
        yield (
            f"int8      {summary.small.accuracy:.4f}   costs {cost:.2f} points of accuracy; "
            f"{summary.small.bytes / whole.bytes:.2f} of the float file's size"
        )
    times = "   ".join(f"{1e3 * seconds:.3f} at batch {batch}" for batch, seconds in final.latency.items())
    yield f"size      {final.bytes / 1e6:.3f} MB   ms per sample: {times}   (one thread, median)"
    if ledger is not None and whole.samples == _all_of(served) and round(ledger * whole.samples) != _correct(whole):
        yield "warn      this machine's accuracy is not the ledger's: another processor or torch, or other data"


def as_json(summary: ExportSummary) -> dict[str, Any]:
    """The facts for machines: fractions, bytes, milliseconds."""
    served, final = summary.served, summary.small or summary.whole
    accuracy = {"ledger": summary.run.accuracy(served.client), "export": summary.whole.accuracy}
    return {
        "file": str(summary.place),
        "format": summary.format,
        "run": str(summary.run.path),
        "student": served.name,
        "round": summary.run.state.round,
        "architecture": served.architecture["name"],
        "rule": served.module.rule.name,
        "samples": summary.whole.samples,
        "max_difference": summary.whole.difference,
        "allowed_difference": summary.whole.allowed,
        "same_labels": summary.whole.same,
        "accuracy": accuracy if summary.small is None else {**accuracy, "int8": summary.small.accuracy},
        "bytes": final.bytes if summary.small is None else {"float": summary.whole.bytes, "int8": final.bytes},
        "latency_ms": {str(batch): 1e3 * seconds for batch, seconds in final.latency.items()},
    }


def _all_of(served: Served) -> int:
    site = served.assembly.site
    return len(site.test) if served.client is None else len(site.test_index.get(served.client, ()))


def _correct(measured: Measurements) -> int:
    return round(measured.accuracy * measured.samples)
