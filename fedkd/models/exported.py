"""An exported student, from stored samples to logits, and its safetensors file. No pickle.

Needs only torch and safetensors. `load` does not trust a file: it compares names, shapes and types with those of the
architecture before it allocates memory, and the bytes with their SHA-256, which detects damage but proves no origin.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedkd.errors import ConfigError, DataError
from fedkd.models import students
from fedkd.models.predictors import PREDICTORS, Predictor
from fedkd.student import Student, lay_out

FORMAT = "fedkd-student 1"  # this version reads no other number
LARGEST = 1 << 32  # bytes of a file that `load` opens
_MOST_CLASSES, _MOST_VALUES = 100_000, 1 << 24  # of a sample, or token ids; far above those of any student here


class Exported(nn.Module):
    """Samples (N, ...) as stored, such as images (N, channels, height, width) uint8 -> logits (N, classes).

    Scaling is inside; without `scale` the students get the samples as stored.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        members: Sequence[Student],
        scale: Sequence[float],
        offset: Sequence[float],
        predictor: Predictor,
        rank: int = 3,
    ) -> None:
        """`rank`: the number of axes of one sample."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.rule = predictor  # entries of files are named so
        self.register_buffer("scale", torch.tensor(scale).view(len(scale), *[1] * (rank - 1)))
        self.register_buffer("offset", torch.tensor(offset).view(len(offset), *[1] * (rank - 1)))

    def forward(self, images: Tensor) -> Tensor:
        if not len(self.scale):
            return self.rule(self.members, images)
        # The same operations as Samples.take: others round differently.
        return self.rule(self.members, images.float() * self.scale + self.offset)

    @property
    def entries(self) -> dict[str, Tensor]:
        """All entries by name; contiguous for any memory layout of the student."""
        return {name: value.contiguous() for name, value in self.state_dict().items()}


def load(path: str | Path) -> tuple[Exported, tuple[str, ...]]:
    """The student (in eval mode) and labels of a file that `fedkd export` wrote. Raises DataError for other files."""
    place = Path(path)
    about, entries = _read(place)
    members = {name.split(".")[1] for name in entries if name.startswith("members.")}
    try:
        module, labels = _form(about, len(members), len(entries["scale"]))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, ConfigError) as error:
        raise _broken(place, f"what it says of its student cannot be: {error!r}") from None
    _check(place, module.entries, entries)
    if about.get("sha256") != digest(about, entries):
        raise _broken(place, "its SHA-256 differs from what was written")
    module.load_state_dict(entries, strict=False, assign=True)  # strict=True requires BatchNorm's counters
    for member in module.members:
        lay_out(cast(Student, member))  # the layout of the run, for the same last bits
    return module.requires_grad_(False).eval(), labels


def metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty if it has none or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def digest(about: Mapping[str, str], entries: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of all entries and of the metadata, except for itself."""
    sha = hashlib.sha256(json.dumps(sorted((k, v) for k, v in about.items() if k != "sha256")).encode())
    for name, value in sorted(entries.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise DataError(f"there is no file {path}", mend="fedkd export RUN --format safetensors writes one")
    if path.stat().st_size > LARGEST:
        raise _broken(path, f"has more than {LARGEST} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            if about.get("format") != FORMAT:
                claimed = about.get("format", "nothing")
                raise _broken(path, f"says {claimed[:40]!r} of its format, not {FORMAT!r}")
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        raise _broken(path, str(error)) from None


def _form(about: Mapping[str, str], num_members: int, num_scales: int) -> tuple[Exported, tuple[str, ...]]:
    """The module without entries, on the meta device, so that no claim of a file takes memory yet."""
    form, labels = json.loads(about["architecture"]), tuple(map(str, json.loads(about["labels"])))
    rule, options = about["rule"], json.loads(about["rule_options"])
    name, shape, classes = str(form["name"]), tuple(map(int, form["shape"])), int(form["classes"])
    vocabulary, stem = int(form.get("vocabulary", 0)), form.get("stem", "standard")
    if not shape or min(shape) < 1 or math.prod(shape) > _MOST_VALUES or not 0 <= vocabulary <= _MOST_VALUES:
        raise ValueError(f"samples of {shape}, {vocabulary} token ids")
    if num_scales not in (0, shape[0]):
        raise ValueError(f"{num_scales} scales")
    if classes != len(labels) or not 1 <= classes <= _MOST_CLASSES:
        raise ValueError(f"{classes} classes and {len(labels)} labels")
    with torch.device("meta"):
        members = [students.make_any(name, shape, classes, form["norm"], stem, vocabulary) for _ in range(num_members)]
        for module in (module for member in members for module in member.modules()):
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.num_batches_tracked = None  # as student.initialise does it: no entry
        if rule not in PREDICTORS or not members:
            raise ValueError(f"rule {rule!r} over {num_members} students")
        empty = PREDICTORS[rule].empty(members, **options)
        return Exported(members, [0.0] * num_scales, [0.0] * num_scales, empty, len(shape)), labels


def _check(path: Path, wanted: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> None:
    """Raises DataError unless names, shapes and types are the architecture's, and all numbers finite."""
    if lacking := sorted(wanted.keys() - entries.keys()):
        raise _broken(path, f"lacks {len(lacking)} entries of its student: {', '.join(lacking[:3])}")
    if unknown := sorted(entries.keys() - wanted.keys()):
        raise _broken(path, f"has {len(unknown)} entries that its student does not have: {', '.join(unknown[:3])}")
    for name, value in entries.items():
        like = wanted[name]
        if value.shape != like.shape or value.dtype != like.dtype:
            has, should = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (value, like))
            raise _broken(path, f"{name!r} is {has}, should be {should}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise _broken(path, f"{name!r} has values that are not finite")


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is damaged, or is no student that fedkd exported: {why}",
        mend="make it again: fedkd export RUN --format safetensors",
    )


def make(
    architecture: Mapping[str, Any],
    labels: Sequence[str],
    predictor: Predictor,
    entries: Mapping[str, Tensor],
    facts: Mapping[str, str],
) -> dict[str, str]:
    """What `load` needs to build the module again, then `facts`, as text. Raises ConfigError for unknown predictors."""
    if PREDICTORS.get(predictor.name) is not type(predictor):
        raise ConfigError(
            f"the client half has a predictor of its own, {type(predictor).__name__}, which safetensors cannot hold",
            where="--format",
            mend="choose --format pt2 or onnx, which hold the program too",
        )
    about = {
        "format": FORMAT,
        "architecture": json.dumps(dict(architecture)),
        "labels": json.dumps(list(labels)),
        "rule": predictor.name,
        "rule_options": json.dumps(predictor.options),
        **facts,
    }
    return {**about, "sha256": digest(about, entries)}
