"""Checks that an exported file is the run's student, and measures accuracy, size and time."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedkd.errors import RunError
from fedkd.models.predictors import FAR
from fedkd.training.forward import EVALUATION_BATCH
from simulations.export.formats import Ask, Format
from simulations.export.serving import Served, accuracy
from simulations.system.threads import one_thread

BATCHES = (1, 32)  # images per call when latency is measured
_SECONDS, _FEWEST, _MOST = 0.5, 20, 500  # seconds, and numbers of repetitions, of one measurement


@dataclass(frozen=True)
class Measurements:
    """The measurements of a file."""

    samples: int
    difference: float  # the largest, of a logit
    allowed: float
    same: int  # samples with the run's label
    accuracy: float
    bytes: int
    latency: dict[int, float]  # batch -> median seconds per image


def measure(served: Served, path: Path, wanted: Format) -> Measurements:
    """Measure the file on disk, on the held-out samples."""
    ask = wanted.open(path)
    images, should = served.assembly.site.test.x[served.held_out], served.logits
    with one_thread():
        logits = torch.cat([ask(part) for part in images.split(EVALUATION_BATCH)])
        latency = {batch: time_of(ask, images, batch) / batch for batch in BATCHES}
    if logits.shape != should.shape or not bool(logits.isfinite().all()):
        raise RunError(f"the exported student gives {tuple(logits.shape)} logits, or some that are not finite")
    return Measurements(
        samples=len(images),
        difference=float((logits - should).abs().max()),
        allowed=wanted.tolerance * size(should),
        same=int((logits.argmax(1) == should.argmax(1)).sum()),
        accuracy=accuracy(served, logits),
        bytes=path.stat().st_size,
        latency=latency,
    )


def size(logits: Tensor) -> float:
    """The largest logit, at least 1: the scale of differences. Ignores labels without a prototype."""
    return max(1.0, float(logits[logits != FAR].abs().max()))


def demand_equal(measured: Measurements, wanted: Format) -> None:
    """Raises RunError if the file's logits differ from the run's student."""
    if measured.difference <= measured.allowed:
        return
    raise RunError(
        f"the {wanted.name} file is not the run's student: of {measured.samples} held-out samples, logits differ by up "
        f"to {measured.difference:.2g} (allowed {measured.allowed:.2g}), labels of {measured.samples - measured.same}",
        mend="nothing was written; choose another --format, and please report it",
    )


def demand_worth(quantised: Measurements, whole: Measurements, max_loss: float) -> None:
    """Raises RunError if eight bits cost more accuracy than `max_loss`."""
    loss = whole.accuracy - quantised.accuracy
    if loss <= max_loss:
        return
    raise RunError(
        f"int8 costs {100 * loss:.2f} points of accuracy ({whole.accuracy:.4f} -> {quantised.accuracy:.4f}), "
        f"more than --max-loss {max_loss:g} allows",
        mend="nothing was written; leave --int8 out, or allow more with --max-loss",
    )


def time_of(ask: Ask, images: Tensor, batch: int) -> float:
    """Median seconds of one call with `batch` images, repeated if there are fewer."""
    part = images[torch.arange(batch) % len(images)]
    for _ in range(3):
        ask(part)
    taken: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(taken) < _FEWEST or (time.perf_counter() < end and len(taken) < _MOST):
        start = time.perf_counter()
        ask(part)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
