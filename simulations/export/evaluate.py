"""`fedkd evaluate`: how well a student of a run does, on its test set or on other samples of the same form."""

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import ConfigError, DataError
from simulations.run import run_folder
from simulations.run.options import Evaluate
from simulations.system.threads import one_thread

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd.data.samples import Dataset, Samples
    from simulations.export.serving import Run, Served

_WIDEST = 20  # classes of a confusion matrix on the screen
_WHERE = "--data"


@dataclass(frozen=True)
class Evaluation:
    """What a student answers on N samples of C classes."""

    run: "Run"
    served: "Served"
    data: str  # in words
    confusion_CC: "Tensor"  # int64; rows: true class, columns: predicted
    loss: float  # mean cross entropy
    ledger: float | None  # accuracy in the run's own record, on the same samples

    @property
    def samples(self) -> int:
        return int(self.confusion_CC.sum())

    @property
    def accuracy(self) -> float:
        return int(self.confusion_CC.diagonal().sum()) / self.samples

    @property
    def classes(self) -> list[tuple[str, int, float | None]]:
        """Name, samples and accuracy of each class; None without a sample."""
        right, sizes = self.confusion_CC.diagonal().tolist(), self.confusion_CC.sum(1).tolist()
        names = self.served.assembly.dataset.labels
        return [(name, n, k / n if n else None) for name, n, k in zip(names, sizes, right, strict=True)]


def main(options: Evaluate) -> int:
    """Evaluate a student, print the figures and write them to files. Raises FedkdError."""
    path = run_folder.find(options.runs, options.run)
    from simulations.export import serving  # 2 s: torch

    with one_thread():
        run = serving.load(path, lambda text: print(f"warn   {text}", file=sys.stderr))
        served = serving.student(run.assembly, run.state, options.client)
        found = evaluate(run, served, options.data)
    if options.csv is not None:
        _write_csv(found, options.csv)
    if not options.json:
        print("\n".join(_screen(found)))
    options.answer(_as_json(found))
    return 0


def evaluate(run: "Run", served: "Served", data: str | None) -> Evaluation:
    """A student on its test samples, or on those that `data` names. Raises ConfigError and DataError."""
    import torch
    from torch.nn.functional import cross_entropy

    site, dataset = served.assembly.site, served.assembly.dataset
    if data is None:
        index, words = _own_test(served)
    else:
        site = replace(site, test=_samples(served, data))
        index, words = torch.arange(len(site.test)), data
    classes, loss_sum = len(dataset.labels), 0.0
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for logits, y in site.predict(site.client, site.student(served.job).eval(), served.job, index):
        counts += torch.bincount(y * classes + logits.argmax(1), minlength=classes * classes)
        loss_sum += float(cross_entropy(logits, y, reduction="sum"))
    ledger = run.accuracy(served.client) if data is None else None
    return Evaluation(run, served, words, counts.view(classes, classes), loss_sum / len(index), ledger)


def _own_test(served: "Served") -> tuple["Tensor", str]:
    """Indices of the test samples that the run itself evaluates this student on, and their name."""
    import torch

    site, config = served.assembly.site, served.assembly.experiment.config
    part = "validation samples" if config.evaluate.on == "validation" else "test samples"
    if served.client is None:
        index, whose = torch.arange(len(site.test)), "the run's"
    else:
        index, whose = site.test_index.get(served.client, torch.arange(0)), f"client {served.client}'s own"
    if not len(index):
        raise DataError(f"there are no {part} of this student here", where="the run", mend="name some: --data PATH")
    return index, f"{served.assembly.dataset.name}, {whose} {part}"


def _samples(served: "Served", data: str) -> "Samples":
    """The samples of a data set's test part or at a path, scaled as the run's. Raises ConfigError and DataError."""
    from fedkd.config import DataConfig
    from fedkd.data import sources

    dataset, config = served.assembly.dataset, served.assembly.experiment.config.data
    if data == sources.OWN:
        raise ConfigError("'own' names no samples", where=_WHERE, mend="give their path: --data PATH")
    if data in sources.names():
        root = config.root if config.name in sources.SOURCES else None
        found = sources.load(DataConfig(name=data, root=root, download=config.download))
        _check_labels(found, dataset, data)
        samples = found.test
    else:
        samples = _at_path(served, Path(data).expanduser())
    _check_form(samples, served, data)
    train = served.assembly.site.train
    # Of the same brightness, whatever byte a source calls white.
    ratio = _top(config.name) / _top(data) if data in sources.names() else 1.0
    return replace(samples, scale=tuple(scale * ratio for scale in train.scale), offset=train.offset)


def _at_path(served: "Served", path: Path) -> "Samples":
    """All samples of own data, or their test part if they have one."""
    import torch

    from fedkd.config import DataConfig
    from fedkd.data import own_arrays, own_data, sources
    from fedkd.data.image_spec import TABLES, ImageSpec
    from fedkd.data.samples import Samples

    dataset, config, train = served.assembly.dataset, served.assembly.experiment.config.data, served.assembly.site.train
    if not path.exists():
        mend = f"give a path, or one of: {', '.join(n for n in sources.names() if n != sources.OWN)}"
        raise DataError("there is neither such a file nor such a data set", where=f"{_WHERE} {path}", mend=mend)
    if train.x.dtype == torch.uint8:
        channels, height, width = dataset.shape
        form = (channels, height, width), _top(config.name), train.scale, train.offset, config.resize
        return sources.samples(own_data.test_part(path, spec := ImageSpec(dataset.name, dataset.labels, *form)), spec)
    if config.name == sources.OWN:  # compares columns too
        found = sources.load(replace(config, test=str(path)))
        _check_labels(found, dataset, str(path))
        return found.test
    if path.suffix.lower() in TABLES:
        mend = "save arrays x and y as .npz"
        raise DataError("the run has no data.label, which names a table's classes", where=str(path), mend=mend)
    given = own_arrays.read(path, DataConfig(name=sources.OWN, labels=list(dataset.labels), shape=list(dataset.shape)))
    x, y = (given.train_x, given.train_y) if given.test_x is None else (given.test_x, given.test_y)
    return Samples(torch.tensor(x), torch.tensor(y), (), ())


def _top(name: str) -> int:
    """The byte that is white."""
    from fedkd.data import sources

    return sources.SOURCES[name].top if name in sources.SOURCES else 255


def _check_labels(found: "Dataset", run: "Dataset", data: str) -> None:
    if found.labels != run.labels:
        theirs, ours = (", ".join(labels[:5]) + ", ..." * (len(labels) > 5) for labels in (found.labels, run.labels))
        mend = "choose data of the same classes in the same order"
        raise DataError(f"the classes are {theirs}; the run's are {ours}", where=f"{_WHERE} {data}", mend=mend)


def _check_form(samples: "Samples", served: "Served", data: str) -> None:
    """Raises DataError for another shape or type than the run's, for unknown token ids, and for no sample."""
    where, stored = f"{_WHERE} {data}", served.assembly.site.train.x
    shape, vocabulary = served.assembly.dataset.shape, served.assembly.experiment.problem.vocabulary
    if samples.x.shape[1:] != shape or samples.x.dtype != stored.dtype:
        given, wanted = (
            f"{list(form)} {str(kind).removeprefix('torch.')}"
            for form, kind in ((samples.x.shape[1:], samples.x.dtype), (shape, stored.dtype))
        )
        mend = "the student takes only these"
        raise DataError(f"a sample is {given}, the run's are {wanted}", where=where, mend=mend)
    if not len(samples):
        raise DataError("there is no sample", where=where, mend="give some")
    if vocabulary and int(samples.x.max()) >= vocabulary:
        what = f"token ids go up to {int(samples.x.max())}, the run's up to {vocabulary - 1}"
        raise DataError(what, where=where, mend="encode the text as for the run")


def _screen(found: Evaluation) -> Iterator[str]:
    """Lines for people."""
    told = "" if found.ledger is None else f"   (the run's ledger says {found.ledger:.4f})"
    yield f"evaluate  {found.served.name} of {found.run.path}, round {found.run.state.round}"
    yield f"samples   {found.samples:,}   {found.data}"
    yield f"accuracy  {found.accuracy:.4f}{told}"
    yield f"loss      {found.loss:.4f}"
    names = [name for name, _, _ in found.classes]
    wide = max(5, *map(len, names))
    matrix = found.confusion_CC.tolist() if len(names) <= _WIDEST else [[]] * len(names)
    cell = max(map(len, (*map(str, range(len(names))), *(str(count) for row in matrix for count in row))))
    numbers = "".join(f" {number:>{cell}}" for number in range(len(names)) if matrix[0])
    yield ""
    yield f"    {'class':<{wide}} samples accuracy" + (f"   predicted as{numbers}" if numbers else "")
    for number, ((name, size, accuracy), row) in enumerate(zip(found.classes, matrix, strict=True)):
        share = "-" if accuracy is None else f"{accuracy:.3f}"
        counts = "".join(f" {count:>{cell}}" for count in row)
        yield f"{number:>3} {name:<{wide}} {size:>7} {share:>8}" + (f"{'':15}{counts}" if counts else "")
    if not numbers:
        yield f"The confusion matrix of {len(names)} classes is in --csv FILE and --json."


def _as_json(found: Evaluation) -> Mapping[str, Any]:
    return {
        "run": str(found.run.path),
        "student": found.served.name,
        "round": found.run.state.round,
        "data": found.data,
        "samples": found.samples,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "ledger": found.ledger,
        "classes": [{"label": name, "samples": size, "accuracy": share} for name, size, share in found.classes],
        "confusion": found.confusion_CC.tolist(),
    }


def _write_csv(found: Evaluation, path: Path) -> None:
    """A row per class: name, samples, accuracy, and how often each class was predicted."""
    with run_folder.writing(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["class", "samples", "accuracy", *(f"predicted {name}" for name, _, _ in found.classes)])
        for (name, size, share), counts in zip(found.classes, found.confusion_CC.tolist(), strict=True):
            rows.writerow([name, size, "" if share is None else share, *counts])
