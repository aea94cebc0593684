"""Every random stream of a run derives from (seed, purpose, round, client); there is no other randomness.

A stream is a key, not a position, so it is the same for 1 and 16 workers, and after a resume.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Stream:
    """The key of a random stream. `torch()` and `numpy()` make fresh generators that start at its beginning."""

    key: bytes

    def torch(self) -> torch.Generator:
        return torch.Generator().manual_seed(int.from_bytes(self.key[:8], "little", signed=True))

    def numpy(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.key[:16], "little")))

    @contextmanager
    def as_global(self) -> Iterator[None]:
        """Let code that draws from torch's global generator draw from this stream; the generator is left as found."""
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(int.from_bytes(self.key[:8], "little", signed=True))
        try:
            yield
        finally:
            torch.set_rng_state(state)

    def child(self, *parts: str | int) -> "Stream":
        """An independent stream below this one."""
        return Stream(_digest(self.key, parts))


def stream(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> Stream:
    """The stream for one purpose of one round and client; `seed` is the run's."""
    return Stream(_digest(b"fedkd", (seed, purpose, round, client)))


def _digest(key: bytes, parts: tuple[str | int, ...]) -> bytes:
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return hashlib.sha256(key + b"\0" + text.encode()).digest()
