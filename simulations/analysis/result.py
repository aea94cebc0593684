"""The verdict of a comparison: each strategy's result in each setting, against a baseline, with its uncertainty."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from simulations.analysis import stats
from simulations.analysis.choices import Tuned
from simulations.analysis.metric import Metric
from simulations.analysis.run_record import RunRecord

WINDOW = 3  # evaluations whose mean must reach a target: single ones are noisy
LOCAL = "local"  # the local-only baseline: needed to find clients that joining harms

Key = tuple[str, str]  # setting, method


@dataclass(frozen=True)
class Question:
    """The question, before any run. `settings` and `methods` are in the user's order."""

    name: str  # the comparison's
    settings: tuple[str, ...]  # "" where there is only one
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    metric: Metric  # primary
    baseline: str  # a method
    columns: Mapping[str, Metric]  # further ones, by title
    target: float | None = None  # an accuracy; the verdict gives rounds, megabytes and seconds to reach it
    tuned: Tuned | None = None  # the choices on validation data
    published: Mapping[str, Mapping[str, str]] | None = None  # setting -> method -> `93.03 ± 0.32`, as printed
    command: str = ""  # repeats the comparison
    about: str = ""  # one line


@dataclass(frozen=True)
class Price:
    """The cost until the accuracy (mean of WINDOW evaluations) reached the target; medians over seeds.

    None: half of the seeds or more never reached it.
    """

    rounds: float | None
    megabytes: float | None
    seconds: float | None
    reached: int  # seeds that reached it
    num_runs: int


@dataclass(frozen=True)
class MethodResult:
    """One method in one setting. Accuracies are fractions."""

    setting: str
    method: str
    runs: tuple[RunRecord, ...]  # all requested runs, in order of seeds
    values: Mapping[int, float]  # seed -> primary metric, of finished runs that have it
    interval: stats.Interval | None  # None: no value
    versus: stats.Paired | None  # against the baseline, over shared seeds; None: the baseline itself, or < 2 seeds
    p: float  # Holm's, over all comparisons with the baseline; nan where so few seeds could not be significant
    columns: Mapping[str, float | None]  # means over seeds
    price: Price | None
    harmed: float | None  # share of clients with lower own accuracy than under `local`, mean over seeds

    @property
    def done(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.is_done)

    @property
    def is_significant(self) -> bool:
        """Whether the difference to the baseline is significant."""
        return self.p <= stats.LEVEL


@dataclass(frozen=True)
class Verdict:
    """Everything that screen, report and tables show."""

    question: Question
    results: Mapping[Key, MethodResult]
    ranks: stats.Ranks | None  # over settings; None with fewer than two, or one method
    records: Mapping[str, stats.WinTieLoss]  # method -> settings won, undecided, lost against the baseline
    resolution: Mapping[str, float]  # method -> smallest difference that its seeds would find (power 0.8) everywhere
    sentences: tuple[str, ...]  # the verdict in plain overrides
    cautions: tuple[str, ...]  # limits of the conclusions, and why
    failed: tuple[RunRecord, ...]  # requested runs that do not count

    def best(self, setting: str) -> MethodResult | None:
        """The result with the best mean in a setting; None if none has a value."""
        return next((result for result in in_setting(self, setting) if result.interval), None)


def in_setting(verdict: Verdict, setting: str) -> Iterator[MethodResult]:
    """The results of a setting, best first, those without a value last."""
    results = [result for result in verdict.results.values() if result.setting == setting]
    sign = verdict.question.metric.sign
    yield from sorted(results, key=lambda r: (r.interval is None, -sign * r.interval.mean if r.interval else 0.0))


def own_accuracy(run: RunRecord) -> dict[int, float]:
    """Each client's latest accuracy on its own test split."""
    return {row["client"]: row["accuracy"] for row in run.clients if row.get("accuracy") is not None}
