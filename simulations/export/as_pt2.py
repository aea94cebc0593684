"""pt2: torch.export's program. It runs wherever torch does, without fedkd."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedkd import strict_json
from simulations.export.serving import Served

ABOUT = "fedkd.json"  # the extra file that says what the program is


def trace(served: Served) -> torch.export.ExportedProgram:
    """The student as a program for batches of any size."""
    shape = served.assembly.experiment.problem.input_shape
    images = torch.zeros(
        2, *shape, dtype=served.assembly.site.train.x.dtype
    )  # two: the tracer treats one as a constant
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(served.module, (images,), dynamic_shapes=batch)


def write(served: Served, facts: Mapping[str, str], place: Path) -> None:
    torch.export.save(trace(served), place, extra_files={ABOUT: json.dumps(dict(facts))})


def open_(place: Path) -> Callable[[Tensor], Tensor]:
    return torch.inference_mode()(torch.export.load(place).module().forward)


def metadata(place: Path) -> Mapping[str, str]:
    try:
        with zipfile.ZipFile(place) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{ABOUT}")]
            return strict_json.mapping(archive.read(names[0])) if names else {}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
