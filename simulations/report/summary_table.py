"""The summary table of a comparison, the same on the screen, in report.md and on the page."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedkd import plain_text
from simulations.analysis.metric import Metric
from simulations.analysis.result import MethodResult, Question, Verdict
from simulations.report import number_text

CLOCKED = "s/round"  # the heading of wall time
_PRICE = "rounds, MB, s to"
_NARROW = 6  # columns


@dataclass(frozen=True)
class Table:
    """Headings and rows of text."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""  # a sentence below the title

    @property
    def is_wide(self) -> bool:
        """Whether half the width of a wide page is too little."""
        return len(self.headings) > _NARROW

    def without_clocks(self) -> "Table":
        """The table without the columns that differ when equal runs are repeated."""
        kept = [k for k, text in enumerate(self.headings) if text != CLOCKED and not text.startswith(_PRICE)]
        rows = tuple(tuple(row[k] for k in kept) for row in self.rows)
        return Table(tuple(self.headings[k] for k in kept), rows, self.title, self.note)


def screen(verdict: Verdict) -> list[str]:
    """The last lines of `fedkd compare` and `fedkd report`: the table, the verdict, the failures."""
    lines = [headline(verdict), *aligned(table(verdict)), *verdict.sentences]
    lines += [f"note  {caution}" for caution in verdict.cautions]
    lines += [f"{run.state}  {run.name}: {run.reason}" for run in verdict.failed]
    return [plain_text.printable(line, keep="\n") for line in lines]


def headline(verdict: Verdict) -> str:
    """`skew: 64 of 64 runs   baseline fedavg   8 paired seeds   ...`."""
    return f"{verdict.question.name}: {'   '.join(facts(verdict))}"


def facts(verdict: Verdict) -> list[str]:
    """The numbers of runs and seeds, the baseline and the metric."""
    question = verdict.question
    total = sum(len(result.runs) for result in verdict.results.values())
    done = sum(len(result.done) for result in verdict.results.values())
    baseline = [f"baseline {question.baseline}"] if len(question.methods) > 1 else []
    measured = f"{question.metric}, mean" + (" ± 95% interval" if _has_intervals(verdict) else "")
    optimistic = " (optimistic: picks rounds by what it reports)" if question.metric.is_optimistic else ""
    return [f"{done} of {number_text.count(total, 'run')}", *baseline, _seeds(verdict), measured + optimistic]


def table(verdict: Verdict) -> Table:
    """A row for each method in each setting, in the order of the question."""
    question, results = verdict.question, ordered(verdict)
    has_harmed = any(result.harmed is not None for result in results)
    headings = ["strategy", "runs", f"{question.metric.path}{number_text.unit(question.metric)}"]
    if len(question.methods) > 1:
        headings += [f"vs {question.baseline}", "p (Holm)"]
    headings += [f"{title}{number_text.unit(extra)}" for title, extra in further(question).items()]
    headings += [*(["harmed"] if has_harmed else []), *_price_heading(question), CLOCKED]
    rows = [_row(result, question, has_harmed) for result in results]
    if not any(question.settings):
        return Table(tuple(headings), tuple(rows))
    settings = [(result.setting,) for result in results]
    return Table(("setting", *headings), tuple(s + row for s, row in zip(settings, rows, strict=True)))


def further(question: Question) -> dict[str, Metric]:
    """The columns beside the primary metric; a metric with two titles appears once."""
    titles: dict[Metric, str] = {}
    for title, metric in question.columns.items():
        if metric != question.metric:
            titles.setdefault(metric, title)
    return {title: metric for metric, title in titles.items()}


def ordered(verdict: Verdict) -> list[MethodResult]:
    """All results, by setting, then method."""
    question = verdict.question
    places = ((setting, method) for setting in question.settings for method in question.methods)
    return [verdict.results[place] for place in places if place in verdict.results]


def aligned(table: Table) -> list[str]:
    """The table as lines of text with aligned columns. Repeated settings stay, so that lines can be searched."""
    widths = [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]
    rows: Iterable[Sequence[str]] = (table.headings, *table.rows)
    return [
        (" " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))).rstrip() for row in rows
    ]


def seconds_per_round(result: MethodResult) -> float | None:
    """Mean wall time of a round; None before the first."""
    seconds = [row["total"] for run in result.done for row in run.timings if row.get("total") is not None]
    return statistics.fmean(seconds) if seconds else None


def _row(result: MethodResult, question: Question, has_harmed: bool) -> tuple[str, ...]:
    metric = question.metric
    cells = [result.method, f"{len(result.done)} of {len(result.runs)}", number_text.spread(result.interval, metric)]
    if len(question.methods) > 1:
        cells += [number_text.gap(result.versus, metric), number_text.chance(result)]
    cells += [number_text.figure(result.columns.get(title), extra) for title, extra in further(question).items()]
    cells += [number_text.share(result.harmed)] * has_harmed
    cells += _price(result, question)
    return (*cells, number_text.figure(seconds_per_round(result)))


def _price_heading(question: Question) -> list[str]:
    return [] if question.target is None else [f"{_PRICE} {question.target:g}"]


def _price(result: MethodResult, question: Question) -> list[str]:
    if question.target is None:
        return []
    price = result.price
    if price is None or not price.num_runs:
        return [number_text.NOTHING]
    suffix = "" if price.reached == price.num_runs else f" ({price.reached} of {price.num_runs} runs)"
    if price.rounds is None:
        return [f"never{suffix if price.reached else ''}"]
    return [", ".join(map(number_text.figure, (price.rounds, price.megabytes, price.seconds))) + suffix]


def _seeds(verdict: Verdict) -> str:
    """The number of pairs if there are any, else of seeds; `5 to 8` if it differs between results."""
    pairs = [result.versus.n for result in verdict.results.values() if result.versus is not None]
    counts = pairs or [len(result.values) for result in verdict.results.values()] or [0]
    least, most = min(counts), max(counts)
    kind = "paired seed" if pairs else "seed"
    return number_text.count(most, kind) if least == most else f"{least} to {number_text.count(most, kind)}"


def _has_intervals(verdict: Verdict) -> bool:
    return any(result.interval is not None and result.interval.is_known for result in verdict.results.values())
