"""Dropping: which blocks of a student take part in a federation, by round. Integers only.

Blocks count from 1 (shallow) to L (the head). At depth m blocks 1..m take part and blocks m+1..L are *dropped*: their
owner trains and uses them, but they exchange no knowledge. m = L: no block is dropped; m = 0: all are. A dropping set
D = (e_1 > e_2 > ... > e_q) names the blocks to drop in turn, each with all deeper ones.
Source: docs/strategies/fedd2s.md, equations 5 and 6.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

from fedkd.errors import ConfigError

Mode = Literal["fixed", "none", "reverse", "stop"]


def default_set(blocks: int) -> tuple[int, ...]:
    """All blocks except for the first, deepest first: (L, ..., 2)."""
    return tuple(range(blocks, 1, -1))


def check(drops: Sequence[int], blocks: int, whose: str = "the student") -> None:
    """Checks that a dropping set fits a student of L blocks. Raises ConfigError."""
    if blocks < 2:
        raise ConfigError(f"{whose} has one block, so there is no tap before its head", where="students")
    falls = all(one > other for one, other in itertools.pairwise(drops))
    if not falls or any(not 1 <= block <= blocks for block in drops):
        raise ConfigError(
            f"strategy.drop_set = {list(drops)} does not name blocks of {whose} in falling order",
            where="strategy.drop_set",
            mend=f"its blocks are {blocks} (the head) down to 1; null means {list(default_set(blocks))}",
        )


def depth(mode: Mode, round: int, rounds: int, blocks: int, drops: Sequence[int], size: int, period: int | None) -> int:
    """m, the depth that takes part in a round, counted from 1, of a student of L blocks with its dropping set.

    Each period drops one of the `size` entries of the deepest student's set; a smaller set drops an equal share of its
    own entries, rounded down. Without a period each depth gets equally many rounds: R / (q + 1), rounded up. `reverse`
    visits the depths in rising order, `stop` leaves the federation in place of the last drop, and `none` never drops.
    """
    if mode == "none" or not drops:
        return blocks
    count = min(size, (round - 1) // (period or -(-rounds // (size + 1)))) * len(drops) // size
    if mode == "stop":
        return 0 if count >= len(drops) else blocks
    count = len(drops) - count if mode == "reverse" else count
    return drops[count - 1] - 1 if count else blocks
