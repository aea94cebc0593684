"""The setting of a comparison: the facts that a reader needs before the results."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from simulations.analysis import choices
from simulations.analysis.choices import Choice
from simulations.analysis.result import Verdict
from simulations.report import facts, methods, number_text, run_tables
from simulations.report.facts import Line
from simulations.report.summary_table import Table

_HEADINGS = ("fact", "value")


def shared(verdict: Verdict) -> list[Table]:
    """The facts that all settings share, then a table of the differing ones with a column per setting.

    Empty if there is no run.
    """
    facts_by_setting = _facts(verdict)
    if not facts_by_setting:
        return []
    same = [(name, next(iter(by.values()))) for name, by in facts_by_setting.items() if len(set(by.values())) == 1]
    first = Table(_HEADINGS, (*same, ("seeds", number_text.spans(verdict.question.seeds))), "The experiment")
    differing = _differing(facts_by_setting, verdict.question.settings)
    return [first, *([differing] if differing else [])]


def of_methods(verdict: Verdict) -> list[Table]:
    """Each method's values, and the results of tuning."""
    return [table for table in (methods.table(verdict), tuned(verdict)) if table is not None]


def provenance(verdict: Verdict) -> list[Table]:
    """The code and the machine of the runs; if runs differ, how many have each."""
    rows = []
    for line in facts.PROVENANCE:
        counts = Counter(text for run in run_tables.all_runs(verdict) if run.info and (text := line.text(run)))
        if counts:
            one = len(counts) == 1
            texts = (text if one else f"{text} ({number_text.count(n, 'run')})" for text, n in counts.items())
            rows.append((line.name, "; ".join(texts)))
    return [Table(_HEADINGS, tuple(rows), "Code and machine")] if rows else []


def tuned(verdict: Verdict) -> Table | None:
    """For each method the candidates, their results, and the choice."""
    tuning = verdict.question.tuned
    if tuning is None or not tuning.choices:
        return None
    settings = any(verdict.question.settings)
    rows = tuple((choice.method, *([choice.setting] * settings), *_choice(choice, tuning)) for choice in tuning.choices)
    shares = [run.config.get("evaluate.validation") for run in run_tables.all_runs(verdict)]
    known = [share for share in shares if isinstance(share, float)]
    share = f"{100 * max(known):g} % of each client's training data" if known else "training data"
    seeds = f"seed{'s' * (len(tuning.seeds) > 1)} {number_text.spans(tuning.seeds)}"
    note = (
        f"By {tuning.metric}{number_text.unit(tuning.metric)}, mean over {seeds}, on {share} that were held out for "
        "tuning; tuning did not use test data."
    )
    headings = ("strategy", *(["setting"] * settings), "candidate: result", "chosen", "at the edge", "runs")
    return Table(headings, rows, "Tuning", note)


def _choice(choice: Choice, tuning: choices.Tuned) -> Iterator[str]:
    one_key = len(choice.keys) == 1
    trials = (f"{choices.label(trial.overrides)}: {choices.score(trial, tuning.metric)}" for trial in choice.trials)
    yield (f"{choice.keys[0]}  " if one_key else "") + "; ".join(trials)
    yield choices.assignments(choice.chosen) + ("" if choice.is_made else " (no candidate succeeded)")
    yield ", ".join(edge.end if one_key else f"{edge.end} {edge.key}" for edge in choice.edges()) or "no"
    yield str(len(choice.trials) * len(tuning.seeds))


def _facts(verdict: Verdict) -> dict[str, dict[str, str]]:
    """Fact -> setting -> text; without facts that no run knows."""
    by_name = {
        line.name: {setting: _text(line, verdict, setting) for setting in verdict.question.settings}
        for line in facts.LINES
    }
    return {name: by_setting for name, by_setting in by_name.items() if any(by_setting.values())}


def _text(line: Line, verdict: Verdict, setting: str) -> str:
    """The text of most methods first, then the others by name."""
    texts: dict[str, dict[str, None]] = {}
    runs = [run for run in run_tables.all_runs(verdict) if run.setting == setting and run.config]
    first = min((run.seed for run in runs), default=0)
    for run in runs:
        if not line.by_seed or run.seed == first:
            texts.setdefault(line.text(run), {})[run.method] = None
    if len(texts) < 2:
        return next(iter(texts), "")
    ordered = sorted(texts.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{text or 'default'} ({number_text.listing(list(names), 4)})" for text, names in ordered)


def _differing(facts_by_setting: Mapping[str, Mapping[str, str]], settings: Sequence[str]) -> Table | None:
    """One column per setting."""
    rows = tuple(
        (name, *(by[setting] or number_text.NOTHING for setting in settings))
        for name, by in facts_by_setting.items()
        if len(set(by.values())) > 1
    )
    return Table(("fact", *settings), rows, "Differences between the settings") if rows else None
