"""Statistics of a comparison: what paired runs show about a difference, and what too few pairs cannot show.

Pure functions of numbers; higher is better throughout. A *pair* is two runs with one seed, and so the same partition,
initial weights, client sampling and batch order. This module imports SciPy, which takes a while: import it late.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

Vector = np.ndarray[Any, Any]

LEVEL = 0.05  # of significance
MOST_FLIPS = 12  # pairs; with more, 2^n sign patterns are too many, and the test uses ranks
MOST_EXACT_RANKS = 50  # pairs; SciPy tabulates the null distribution of rank sums up to here
RESAMPLES = 9_999  # of the bootstrap
_ROUNDING = 1e-12  # relative error of equal differences, such as 0.3 - 0.2 and 0.2 - 0.1


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval. Both ends are nan for a single value, which has no spread."""

    mean: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Paired:
    """Statistics of n paired differences; `paired` explains the fields."""

    n: int
    mean: float
    sd: float
    low: float
    high: float
    boot_low: float
    boot_high: float
    boot_method: str
    test: str
    p: float
    smallest_p: float
    d_z: float
    wins: int
    ties: int
    losses: int


class WinTieLoss(NamedTuple):
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over settings, 1 is best; `average_ranks` explains the fields."""

    mean: Mapping[str, float]
    settings: int
    critical_difference: float
    left_out: tuple[str, ...]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean and Student's interval: mean ± t(1 - (1 - confidence)/2, n - 1) sd/√n. Unknown for n < 2.

    Source: Student, Biometrika 1908. Raises ValueError for no values, or values that are not finite.
    """
    finite = _finite(values, "values")
    mean, n = float(finite.mean()), len(finite)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = _t_quantile(0.5 + confidence / 2, n - 1) * _sd(finite) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def paired(differences: Sequence[float], seed: int = 0) -> Paired:
    """All statistics of one comparison: `differences` holds method minus baseline, one for each seed, in any order.

    `low, high`: Student's 95 % interval of the mean. `boot_low, boot_high`: the bootstrap's, which assumes no normal
    distribution, from resamples drawn with `seed`; `boot_method` is BCa, or percentile where BCa has no value (all
    differences equal), or none for a single pair. `test` names the two-sided test that gave `p`: `sign_flip` up to
    MOST_FLIPS pairs, `signed_rank` beyond. `smallest_p`: the smallest p that n pairs can reach. `d_z`: effect size,
    mean/sd (Cohen 1988, 2.3.5), nan if sd is 0 or unknown.

    Sources: Efron, JASA 1987 (BCa). Raises ValueError for no differences, or differences that are not finite.
    """
    ordered = np.sort(_finite(differences, "differences"))  # sums and resamples must not depend on the order of seeds
    values = ordered.tolist()
    interval, sd = mean_interval(values), _sd(ordered)
    boot_method, boot_low, boot_high = _bootstrap(ordered, seed)
    test, p = ("exact sign flips", sign_flip(values)) if len(values) <= MOST_FLIPS else signed_rank(values)
    wins, losses = int((ordered > 0).sum()), int((ordered < 0).sum())
    return Paired(
        n=len(values),
        mean=interval.mean,
        sd=sd,
        low=interval.low,
        high=interval.high,
        boot_low=boot_low,
        boot_high=boot_high,
        boot_method=boot_method,
        test=test,
        p=p,
        smallest_p=smallest_p(len(values)),
        d_z=interval.mean / sd if sd > 0 else math.nan,
        wins=wins,
        ties=len(values) - wins - losses,
        losses=losses,
    )


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the exact paired permutation test of the mean, for at most MOST_FLIPS pairs.

    If the methods are equal, each difference had either sign with equal chance: p is the share of the 2^n sign
    patterns whose |sum| is at least the observed one. Source: Fisher, The Design of Experiments 1935, section 21.
    """
    finite = _finite(differences, "differences")
    if len(finite) > MOST_FLIPS:
        raise ValueError(f"{len(finite)} pairs have too many sign patterns to try: use signed_rank beyond {MOST_FLIPS}")
    sums = np.abs(_signs(len(finite)) @ finite)
    return float((sums >= abs(finite.sum()) - _ROUNDING * np.abs(finite).sum()).mean())


def signed_rank(differences: Sequence[float]) -> tuple[str, float]:
    """Name and two-sided p of the Wilcoxon signed-rank test (Biometrics Bulletin 1945).

    Differences of zero are dropped, as Wilcoxon did, and counted in the name. Exact up to MOST_EXACT_RANKS pairs. With
    tied absolute differences, exact up to MOST_FLIPS pairs, by enumeration, and a normal approximation beyond.
    """
    finite = _finite(differences, "differences")
    kept = np.round(finite / (np.abs(finite).max() or 1.0), 12)  # rounding error makes neither ranks nor signs
    kept = kept[kept != 0]
    ranks = scipy_stats.rankdata(np.abs(kept)) * np.sign(kept)
    is_tied = len(np.unique(np.abs(kept))) < len(kept)
    is_exact = len(kept) <= (MOST_FLIPS if is_tied else MOST_EXACT_RANKS)
    if not len(kept):
        p = 1.0
    elif len(kept) <= MOST_FLIPS:
        p = sign_flip(ranks.tolist())
    else:
        p = float(scipy_stats.wilcoxon(ranks, method="exact" if is_exact else "asymptotic").pvalue)
    zeros = len(finite) - len(kept)
    name = "exact Wilcoxon signed rank" if is_exact else "Wilcoxon signed rank, normal approximation"
    return f"{name}, zeros dropped: {zeros}" if zeros else name, p


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order. Rejecting those <= level bounds the chance of any false rejection.

    The i-th smallest of m is max over j <= i of (m - j + 1) p_(j), at most 1. A comparison without a p (nan) stays nan
    and does not count in m. Source: Holm, Scandinavian Journal of Statistics 1979. Raises ValueError outside [0, 1].
    """
    adjusted = np.array(ps, dtype=float)
    if ((adjusted < 0) | (adjusted > 1)).any():
        raise ValueError(f"p values lie between 0 and 1, these do not: {list(ps)}; give those of a test")
    order = np.argsort(adjusted, kind="stable")[: np.isfinite(adjusted).sum()]  # nan comes last
    steps = adjusted[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def smallest_p(n: int) -> float:
    """The smallest two-sided p that n pairs can reach, all of one sign: 2 of the 2^n sign patterns."""
    return 2.0 ** (1 - n)


def can_reach(n: int, family: int = 1, level: float = LEVEL) -> bool:
    """Whether n pairs can be significant at all: Holm multiplies the smallest p by the size of the family."""
    return smallest_p(n) * family <= level


def seeds_needed(family: int = 1, level: float = LEVEL) -> int:
    """The least number of paired seeds with which `can_reach` holds."""
    return next(n for n in itertools.count(1) if can_reach(n, family, level))


def resolution(sd: float, n: int, *, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest true mean difference that n pairs with standard deviation `sd` would find with chance `power`.

    The δ at which T exceeds t(1 - level/2, n - 1) with chance `power`; T is noncentral t with n - 1 degrees of freedom
    and noncentrality δ√n/sd (Cohen 1988, chapter 2). The t test approximates the exact tests, which find slightly
    less; inf where the exact tests cannot reach `level` at all. For m comparisons pass level/m: Holm's first step.
    """
    if not can_reach(n, level=level):
        return math.inf
    critical = float(scipy_stats.t.ppf(1 - level / 2, n - 1))

    def excess(shift: float) -> float:
        return float(scipy_stats.nct.sf(critical, n - 1, shift)) - power  # a significant opposite sign does not count

    if excess(0) >= 0:
        return 0.0
    enough = next(high for high in (critical * 2.0**step for step in itertools.count(1)) if excess(high) >= 0)
    return float(optimize.brentq(excess, 0, enough)) * sd / math.sqrt(n)


def win_tie_loss(pairs: Iterable[Paired], level: float = LEVEL) -> WinTieLoss:
    """Over settings: how often a method is significantly better, undecided, significantly worse.

    It uses `p` as it is: replace it by Holm's first. Significant means p <= level, and that the mean and the majority
    of seeds agree on the better method: ranks can be significant against the sign of the mean.
    """
    listed = list(pairs)
    significant = [pair for pair in listed if pair.p <= level]
    wins = sum(pair.mean > 0 and pair.wins >= pair.losses for pair in significant)
    losses = sum(pair.mean < 0 and pair.losses >= pair.wins for pair in significant)
    return WinTieLoss(wins, len(listed) - wins - losses, losses)


def average_ranks(table: Mapping[str, Mapping[str, float]], level: float = LEVEL) -> Ranks:
    """Ranks of methods over settings: `table[setting][method]` is a value, higher is better.

    `mean`: each method's mean rank over settings, best first; ties share the mean of their ranks. Only methods that
    every setting has are ranked; `left_out` names the others.
    Raises ValueError for no settings, or values that are not finite.
    """
    if not table:
        raise ValueError("there are no settings to rank methods over: give the table of at least one")
    named = list(dict.fromkeys(itertools.chain.from_iterable(table.values())))
    ranked = sorted(name for name in named if all(name in row for row in table.values()))
    left_out = tuple(name for name in named if name not in ranked)
    if not ranked:
        return Ranks({}, len(table), math.nan, left_out)
    values = np.array([_finite([row[name] for name in ranked], f"values of {key}") for key, row in table.items()])
    ranks = scipy_stats.rankdata(-values, axis=1)
    mean = sorted(zip(ranked, ranks.mean(axis=0).tolist(), strict=True), key=lambda pair: pair[1])
    difference = critical_difference(len(ranked), len(table), level)
    return Ranks(dict(mean), len(table), difference, left_out)


def critical_difference(methods: int, settings: int, level: float = LEVEL) -> float:
    """How far apart the mean ranks of two of k methods over N settings must be to differ: q √(k(k+1) / (6N)).

    Nemenyi's test of all pairs at once; q is the studentised range's quantile for k groups and infinite degrees of
    freedom over √2. Source: Demšar, JMLR 2006, section 3.2.2. nan for fewer than 2 methods.
    """
    if methods < 2:
        return math.nan
    return _range_quantile(methods, level) / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * settings))


@lru_cache  # a curve needs the same quantile in each round
def _t_quantile(share: float, freedom: int) -> float:
    return float(scipy_stats.t.ppf(share, freedom))


@lru_cache
def _range_quantile(groups: int, level: float) -> float:
    return float(scipy_stats.studentized_range.ppf(1 - level, groups, np.inf))


def _bootstrap(values: Vector, seed: int) -> tuple[str, float, float]:
    if len(values) < 2:
        return "none", math.nan, math.nan
    method = "percentile" if _sd(values) == 0 else "BCa"
    drawn = scipy_stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method=method, rng=seed)
    return method, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _sd(values: Vector) -> float:
    """The sample's standard deviation; 0, not rounding error, if all values are equal; nan for one value."""
    if len(values) < 2:
        return math.nan
    return 0.0 if np.ptp(values) <= _ROUNDING * np.abs(values).max() else float(values.std(ddof=1))


@lru_cache
def _signs(n: int) -> Vector:
    """All patterns of n signs, one per row."""
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def _finite(values: Sequence[float], noun: str) -> Vector:
    vector = np.array(values, dtype=float)
    if not vector.size:
        raise ValueError(f"there are no {noun}: give one for each finished seed")
    bad = np.flatnonzero(~np.isfinite(vector)).tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {vector.size} {noun} are not finite (at {bad[:3]}): leave them out")
    return vector
