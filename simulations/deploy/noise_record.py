"""A device's record of its noise: for the same data and epsilon it is drawn once, however many requests come.

Fresh noise in the next run, or after a refused reply, would let the mean of the answers reveal the exact counts.
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
    """`draw`, with its results recorded in a file in `folder` that only its owner can read."""

    def recorded(counts_C: Tensor, epsilon: float, stream: Stream) -> Tensor:
        path = folder / FILE
        known = _read(path)
        key = f"{epsilon!r} {hashlib.sha256(json.dumps(counts_C.tolist()).encode()).hexdigest()}"
        if key not in known:
            known[key] = draw(counts_C, epsilon, stream).tolist()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # On disk before anything is sent: noise that is forgotten would be drawn again.
            files.replace(path, files.Content(json.dumps(known).encode(), files.SECRET))
        return torch.tensor(known[key], dtype=torch.int64)

    return recorded


def _read(path: Path) -> dict[str, list[int]]:
    """The recorded noise. Raises ValueError if the file is damaged: fresh noise would exceed the agreed epsilon."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not all(isinstance(noise, list) for noise in record.values()):
        raise ValueError(f"{path} is damaged, so the noise that this device has sent is lost; remove it to draw again")
    return record
