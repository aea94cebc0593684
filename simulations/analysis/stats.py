"""Statistics of a comparison: what paired runs show about a difference, and what too few of them cannot show.

Pure functions of numbers; higher is better throughout. A *pair* is one seed under which two methods were run with the
same partition, initial weights, client sampling and batch order. Imports SciPy, which takes a while: import it late.
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
MOST_FLIPS = 12  # pairs whose 2^n sign flips are all tried; beyond it ranks take over
MOST_EXACT_RANKS = 50  # the null distribution of rank sums is tabulated up to here
RESAMPLES = 9_999  # of the bootstrap
_ROUNDING = 1e-12  # relative: what should be equal differs in its last bits, such as 0.3 - 0.2 and 0.2 - 0.1


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval; both are nan for a single value, which has no spread."""

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
    _check_share("confidence", confidence)
    found = _checked(values, "values")
    mean, n = float(found.mean()), len(found)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = _t_quantile(0.5 + confidence / 2, n - 1) * _sd(found) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def paired(
    differences: Sequence[float], *, confidence: float = 0.95, seed: int = 0, tie_tolerance: float = 0.0
) -> Paired:
    """All statistics of one comparison: `differences` holds method minus baseline, one for each seed, in any order.

    `low, high`: Student's interval of the mean. `boot_low, boot_high`: the bootstrap's, which needs no normal
    distribution, from resamples drawn with `seed`; `boot_method` is BCa, or percentile where BCa has no value (all
    differences equal), or none for a single pair. `test` names the two-sided test that gave `p`: `sign_flip` up to
    MOST_FLIPS pairs, `signed_rank` beyond. `smallest_p`: what n pairs can reach at best. `d_z`: effect size, mean/sd
    (Cohen 1988, 2.3.5), nan if sd is 0 or unknown. Differences of at most `tie_tolerance` are ties; wins are above.

    Sources: Efron, JASA 1987 (BCa). Raises ValueError for no differences, or differences that are not finite.
    """
    found = np.sort(_checked(differences, "differences"))  # sums and resamples must not depend on the order of seeds
    values = found.tolist()
    interval, sd = mean_interval(values, confidence), _sd(found)
    boot_method, boot_low, boot_high = _bootstrap(found, confidence, seed)
    test, p = ("exact sign flips", sign_flip(values)) if len(values) <= MOST_FLIPS else signed_rank(values)
    wins, losses = int((found > tie_tolerance).sum()), int((found < -tie_tolerance).sum())
    return Paired(
        n=len(found),
        mean=interval.mean,
        sd=sd,
        low=interval.low,
        high=interval.high,
        boot_low=boot_low,
        boot_high=boot_high,
        boot_method=boot_method,
        test=test,
        p=p,
        smallest_p=smallest_p(len(found)),
        d_z=interval.mean / sd if sd > 0 else math.nan,
        wins=wins,
        ties=len(found) - wins - losses,
        losses=losses,
    )


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the exact paired permutation test of the mean, for at most MOST_FLIPS pairs.

    If the methods are alike, each difference had either sign with equal chance: p is the share of the 2^n sign
    patterns whose |sum| is at least the observed one. Source: Fisher, The Design of Experiments 1935, section 21.
    """
    found = _checked(differences, "differences")
    if len(found) > MOST_FLIPS:
        raise ValueError(f"{len(found)} pairs have too many sign patterns to try: use signed_rank beyond {MOST_FLIPS}")
    sums = np.abs(_signs(len(found)) @ found)
    return float((sums >= abs(found.sum()) - _ROUNDING * np.abs(found).sum()).mean())


def signed_rank(differences: Sequence[float]) -> tuple[str, float]:
    """Name and two-sided p of the Wilcoxon signed-rank test (Biometrics Bulletin 1945).

    Differences of zero are dropped, as Wilcoxon did, and counted in the name. Exact up to MOST_EXACT_RANKS pairs; where
    absolute differences tie, their exact distribution is tried out up to MOST_FLIPS pairs and else taken as normal.
    """
    found = _checked(differences, "differences")
    kept = np.round(found / (np.abs(found).max() or 1.0), 12)  # rounding error makes neither ranks nor signs
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
    zeros = len(found) - len(kept)
    name = "exact Wilcoxon signed rank" if is_exact else "Wilcoxon signed rank, normal approximation"
    return f"{name}, zeros dropped: {zeros}" if zeros else name, p


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values in the order given: reject those <= level, and any false rejection has that chance.

    The i-th smallest of m is max over j <= i of (m - j + 1) p_(j), at most 1. A comparison without a p (nan) stays nan
    and is not counted in m. Source: Holm, Scandinavian Journal of Statistics 1979. Raises ValueError outside [0, 1].
    """
    found = np.array(ps, dtype=float)
    if ((found < 0) | (found > 1)).any():
        raise ValueError(f"p values lie between 0 and 1, these do not: {list(ps)}; give those of a test")
    order = np.argsort(found, kind="stable")[: np.isfinite(found).sum()]  # nan comes last
    steps = found[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return found.tolist()


def smallest_p(n: int) -> float:
    """The smallest two-sided p that n pairs can reach, all of one sign: 2 of the 2^n sign patterns."""
    _check_count("pairs", n)
    return 2.0 ** (1 - n)


def can_reach(n: int, family: int = 1, level: float = LEVEL) -> bool:
    """Whether n pairs can be significant at all among `family` comparisons: Holm multiplies the smallest p by these."""
    _check_count("comparisons of the family", family)
    _check_share("level", level)
    return smallest_p(n) * family <= level


def seeds_needed(family: int = 1, level: float = LEVEL) -> int:
    """The least number of paired seeds with which `can_reach` holds."""
    return next(n for n in itertools.count(1) if can_reach(n, family, level))


def resolution(sd: float, n: int, *, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest true mean difference that n pairs with standard deviation `sd` would find with chance `power`.

    The δ at which T exceeds t(1 - level/2, n - 1) with chance `power`; T is noncentral t with n - 1 degrees of freedom
    and noncentrality δ√n/sd (Cohen 1988, chapter 2). The t test approximates the exact tests, which find a little less;
    inf where these could find nothing, however large. Among m comparisons give level/m: Holm's first step.
    """
    _check_share("power", power)
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"a standard deviation is finite and not negative, this is {sd}; take it from `paired`")
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

    It uses the pair's `p` as it is: put Holm's there first. Significant means p <= level, and that the mean and
    the majority of seeds agree on who is better: ranks can be significant against the sign of the mean.
    """
    found = list(pairs)
    sure = [pair for pair in found if pair.p <= level]
    wins = sum(pair.mean > 0 and pair.wins >= pair.losses for pair in sure)
    losses = sum(pair.mean < 0 and pair.losses >= pair.wins for pair in sure)
    return WinTieLoss(wins, len(found) - wins - losses, losses)


def average_ranks(table: Mapping[str, Mapping[str, float]], level: float = LEVEL) -> Ranks:
    """Ranks of methods over settings: `table[setting][method]` is a value, higher is better.

    `mean`: rank of each, mean over settings, best first; ties share the mean of their ranks. Only methods that every
    setting has are ranked, `left_out` names the others.
    Raises ValueError for no settings, or values that are not finite.
    """
    if not table:
        raise ValueError("there are no settings to rank methods over: give the table of at least one")
    named = list(dict.fromkeys(itertools.chain.from_iterable(table.values())))
    ranked = sorted(name for name in named if all(name in row for row in table.values()))
    left_out = tuple(name for name in named if name not in ranked)
    if not ranked:
        return Ranks({}, len(table), math.nan, left_out)
    values = np.array([_checked([row[name] for name in ranked], f"values of {at}") for at, row in table.items()])
    ranks = scipy_stats.rankdata(-values, axis=1)
    mean = sorted(zip(ranked, ranks.mean(axis=0).tolist(), strict=True), key=lambda pair: pair[1])
    difference = critical_difference(len(ranked), len(table), level)
    return Ranks(dict(mean), len(table), difference, left_out)


def critical_difference(methods: int, settings: int, level: float = LEVEL) -> float:
    """How far apart the mean ranks of two of k methods over N settings must be to differ: q √(k(k+1) / (6N)).

    Nemenyi's test of all pairs at once; q is the studentised range's quantile for k groups and infinite degrees of
    freedom over √2. Source: Demšar, JMLR 2006, section 3.2.2. nan for fewer than 2 methods.
    """
    _check_count("settings", settings)
    _check_share("level", level)
    if methods < 2:
        return math.nan
    return _range_quantile(methods, level) / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * settings))


@lru_cache  # a curve needs the same one in each round
def _t_quantile(share: float, freedom: int) -> float:
    return float(scipy_stats.t.ppf(share, freedom))


@lru_cache
def _range_quantile(groups: int, level: float) -> float:
    return float(scipy_stats.studentized_range.ppf(1 - level, groups, np.inf))


def _bootstrap(found: Vector, confidence: float, seed: int) -> tuple[str, float, float]:
    if len(found) < 2:
        return "none", math.nan, math.nan
    method = "percentile" if _sd(found) == 0 else "BCa"
    drawn = scipy_stats.bootstrap(
        (found,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method=method, rng=seed
    )
    return method, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _sd(found: Vector) -> float:
    """The sample's standard deviation; 0, not rounding error, if all are equal; nan for one."""
    if len(found) < 2:
        return math.nan
    return 0.0 if np.ptp(found) <= _ROUNDING * np.abs(found).max() else float(found.std(ddof=1))


@lru_cache
def _signs(n: int) -> Vector:
    """All patterns of n signs, one per row."""
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def _checked(values: Sequence[float], what: str) -> Vector:
    found = np.array(values, dtype=float)
    if not found.size:
        raise ValueError(f"there are no {what}: give one for each seed that is finished")
    bad = np.flatnonzero(~np.isfinite(found)).tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {found.size} {what} are not finite (at {bad[:3]}): leave them out")
    return found


def _check_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{what} = {value} does not lie between 0 and 1: give a share such as 0.95 or 0.05")


def _check_count(what: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{value} {what}: there must be at least one")
