"""safetensors: weights and text, no program. fedkd.models.exported.load rebuilds the student."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fedkd.models import exported
from simulations.export.serving import Served


def write(served: Served, facts: Mapping[str, str], place: Path) -> None:
    module, labels = served.module, served.assembly.dataset.labels
    entries = module.entries
    about = exported.make(served.architecture, labels, module.rule, entries, facts)
    place.write_bytes(_ordered(safetensors.torch.save(entries, about)))


def _ordered(content: bytes) -> bytes:
    """The content with its metadata sorted: safetensors writes it in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the entries begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def open_(place: Path) -> Callable[[Tensor], Tensor]:
    return torch.inference_mode()(exported.load(place)[0].forward)


metadata = exported.metadata
