"""The setting of a comparison: all that a reviewer asks before reading the results, so that no other file is needed."""

from collections.abc import Iterator, Mapping, Sequence

from simulations.analysis import choices
from simulations.analysis.choices import Choice
from simulations.analysis.result import Verdict
from simulations.report import facts, methods, number_text, run_tables
from simulations.report.facts import Line
from simulations.report.summary_table import Table

_HEADINGS = ("what", "value")


def shared(verdict: Verdict) -> list[Table]:
    """What all settings share, and one column per setting for what differs between them; empty if there is no run."""
    found = _told(verdict, facts.LINES)
    if not found:
        return []
    same = tuple((name, next(iter(by.values()))) for name, by in found.items() if len(set(by.values())) == 1)
    first = Table(_HEADINGS, (*same, ("seeds", run_tables.spans(verdict.question.seeds))), "The experiment")
    differing = _differing(found, verdict.question.settings)
    return [first, *([differing] if differing else [])]


def of_methods(verdict: Verdict) -> list[Table]:
    """Each method's values, and what was tuned."""
    return [table for table in (methods.table(verdict), tuned(verdict)) if table is not None]


def played(verdict: Verdict) -> list[Table]:
    """The code that ran and the machine; where runs differ, how many have each."""
    found = []
    for line in facts.PLAYED:
        counts: dict[str, int] = {}
        for run in run_tables.all_runs(verdict):
            if run.info and (text := line.told(run)):
                counts[text] = counts.get(text, 0) + 1
        if counts:
            texts = [
                text if len(counts) == 1 else f"{text} ({number_text.count(n, 'run')})" for text, n in counts.items()
            ]
            found.append((line.name, "; ".join(texts)))
    return [Table(_HEADINGS, tuple(found), "Code and machine")] if found else []


def tuned(verdict: Verdict) -> Table | None:
    """What was tried for each method, what it gave, and what was taken."""
    found = verdict.question.tuned
    if found is None or not found.choices:
        return None
    settings = any(verdict.question.settings)
    rows = tuple((choice.method, *([choice.setting] * settings), *_choice(choice, found)) for choice in found.choices)
    found_in = (each.config.get("evaluate.validation") for each in run_tables.all_runs(verdict))
    shares = [share for share in found_in if isinstance(share, float)]
    share = f"{100 * max(shares):g} % of each client's training data" if shares else "training data"
    note = (
        f"By {found.metric}{number_text.unit(found.metric)}, mean over {_listed('seed', found.seeds)}, on {share} that "
        "were held out for it; test data were not looked at."
    )
    headings = ("strategy", *(["setting"] * settings), "tried: result", "taken", "at the edge", "runs")
    return Table(headings, rows, "What was tuned", note)


def _choice(choice: Choice, found: choices.Tuned) -> Iterator[str]:
    trials = (f"{choices.label(each.overrides)}: {choices.score(each, found.metric)}" for each in choice.trials)
    yield (f"{choice.keys[0]}  " if len(choice.keys) == 1 else "") + "; ".join(trials)
    yield choices.assignments(choice.chosen) + ("" if choice.is_made else " (nothing succeeded)")
    one = len(choice.keys) == 1
    yield ", ".join(edge.end if one else f"{edge.end} {edge.key}" for edge in choice.edges()) or "no"
    yield str(len(choice.trials) * len(found.seeds))


def _told(verdict: Verdict, lines: Sequence[Line]) -> dict[str, dict[str, str]]:
    """Line -> setting -> text; lines about which nothing is known in any run are left out."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        by = {setting: _text(line, verdict, setting) for setting in verdict.question.settings}
        if any(by.values()):
            found[line.name] = by
    return found


def _text(line: Line, verdict: Verdict, setting: str) -> str:
    """What most methods have, then the others by name."""
    texts: dict[str, dict[str, None]] = {}
    there = [run for run in run_tables.all_runs(verdict) if run.setting == setting and run.config]
    first = min((run.seed for run in there), default=0)
    for run in there:
        if not line.by_seed or run.seed == first:
            texts.setdefault(line.told(run), {})[run.method] = None
    if len(texts) < 2:
        return next(iter(texts), "")
    ordered = sorted(texts.items(), key=lambda each: -len(each[1]))
    return "; ".join(f"{text or 'as usual'} ({number_text.listing(list(names), 4)})" for text, names in ordered)


def _differing(found: Mapping[str, Mapping[str, str]], settings: Sequence[str]) -> Table | None:
    """One column per setting."""
    rows = tuple(
        (name, *(by[setting] or number_text.NOTHING for setting in settings))
        for name, by in found.items()
        if len(set(by.values())) > 1
    )
    return Table(("what", *settings), rows, "What differs between the settings") if rows else None


def _listed(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'s' * (len(numbers) > 1)} {run_tables.spans(numbers)}"
