"""A device's record of its noise, drawn only once for the same data and epsilon, however many requests come.

With fresh noise in the next run, or after a refused reply, the mean of the answers would reveal the exact counts.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from fedkd.seeds import Stream
from fedkd.wrappers.privacy import Draw
from simulations.deploy import files

FILE = "privacy.json"


def drawn_once(draw: Draw, folder: Path) -> Draw:
    """`draw` with its results recorded in a file below `folder` that only its owner can read."""

    def remembered(counts_C: Tensor, epsilon: float, stream: Stream) -> Tensor:
        place = folder / FILE
        known = _read(place)
        key = f"{epsilon!r} {hashlib.sha256(json.dumps(counts_C.tolist()).encode()).hexdigest()}"
        if key not in known:
            known[key] = draw(counts_C, epsilon, stream).tolist()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Write to disk before anything is sent: forgotten noise would be drawn again.
            files.replace(place, files.Content(json.dumps(known).encode(), files.SECRET))
        return torch.tensor(known[key], dtype=torch.int64)

    return remembered


def _read(place: Path) -> dict[str, list[int]]:
    """Raises ValueError if the file is damaged: fresh noise would exceed the agreed epsilon."""
    if not place.exists():
        return {}
    found = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(each, list) for each in found.values()):
        raise ValueError(
            f"{place} is damaged: this device has forgotten what noise it has told; remove it to draw anew"
        )
    return found
