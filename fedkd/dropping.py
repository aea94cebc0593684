"""Dropping: which blocks of a student take part in a federation, by round. Integers only.

Blocks count from 1 (shallow) to L (the head). At depth m blocks 1..m take part and blocks m+1..L are *dropped*: trained
and used by their owner, but out of the exchange of knowledge. m = L: nothing is dropped; m = 0: everything. A dropping
set D = (e_1 > e_2 > ... > e_q) names the blocks that are dropped in turn, each with all deeper ones; n of its q entries
are dropped so far. Source: fedd2s.md 2.1, a reconstruction. Rounds t count from 0 here, as there.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedkd.errors import ConfigError

Mode = Literal["fixed", "plateau", "none", "constant", "reverse", "stop"]


def default_set(blocks: int) -> tuple[int, ...]:
    """All blocks but the first, deepest first: (L, ..., 2)."""
    return tuple(range(blocks, 1, -1))


def default_period(rounds: int, size: int) -> int:
    """Rounds between drops that give each of the q + 1 depths as many: R / (q + 1), rounded up."""
    return -(-rounds // (size + 1))


def check(drops: Sequence[int], blocks: int, whose: str = "the student") -> None:
    """Whether a dropping set fits a student of L blocks. Raises ConfigError."""
    if blocks < 2:
        raise ConfigError(f"{whose} has one block, so there is no tap before its head", where="students")
    falls = all(one > other for one, other in itertools.pairwise(drops))
    if not falls or any(not 1 <= block <= blocks for block in drops):
        raise ConfigError(
            f"strategy.drop_set = {list(drops)} does not name blocks of {whose} in falling order",
            where="strategy.drop_set",
            mend=f"its blocks are {blocks} (the head) down to 1; null means {list(default_set(blocks))}",
        )


def dropped(t: int, size: int, period: int, start: int = 0, per_event: int = 1) -> int:
    """n(t): how many of the q entries of a dropping set are dropped in round t, counted from 0."""
    return min(size, per_event * max(0, (t - start) // period))


def scaled(count: int, size: int, own: int) -> int:
    """n of q entries in terms of another set of `own` entries, rounded down: students differ in depth."""
    return count * own // size if size else 0


def depth(mode: Mode, count: int, blocks: int, drops: Sequence[int], constant: int | None = None) -> int:
    """m, the depth that takes part once n entries are dropped.

    `reverse` visits the depths in rising order, `stop` leaves the federation where the last drop would be, `none` never
    drops and `constant` stays at one depth from the first round on (None: L - 1, all but the head).
    """
    if mode == "constant":
        return min(blocks - 1 if constant is None else constant, blocks)
    if mode == "none" or not drops:
        return blocks
    if mode == "stop":
        return 0 if count >= len(drops) else blocks
    count = len(drops) - count if mode == "reverse" else count
    return drops[count - 1] - 1 if count else blocks


@dataclass(frozen=True)
class Plateau:
    """Where an adaptive schedule stands."""

    dropped: int = 0  # n
    best: float = -1.0  # accuracy since the last drop; below 0: none yet
    waited: int = 0  # rounds since it was reached


def advance(now: Plateau, accuracy: float, size: int, patience: int, delta: float) -> Plateau:
    """After a round: one drop more once accuracy has not risen by more than `delta` for `patience` rounds."""
    if accuracy > now.best + delta or now.best < 0:
        return replace(now, best=accuracy, waited=0)
    if now.waited + 1 < patience:
        return replace(now, waited=now.waited + 1)
    return Plateau(dropped=min(size, now.dropped + 1))
