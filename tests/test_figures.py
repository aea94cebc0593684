"""The nightly measurement of the documents' figures: that it finds them, and what it calls a difference."""

import shlex

import pytest
from nightly import figures

from fedkd.configuration import compose
from simulations.analysis import cells, metric

TABLE = """<!-- figures: made-up
command: fedkd run {row} seed={seed}
rows: {a | x: strategy=fedavg, b | x: strategy=local}
columns: {own: clients.mean last}
seeds: [3, 4]
-->

| alpha | method | own | other |
|---|---|---|---|
| a | `x` | **1.5** (1.0 / 2.0) | 7 |
| b | `x` | 3.0 / -4.5 | 8 |
"""


def test_a_cell_is_one_figure_for_each_seed():
    found = list(figures.of_text(TABLE))
    assert [(figure.command, figure.expected) for figure in found] == [
        ("fedkd run strategy=fedavg seed=3", 1.0),
        ("fedkd run strategy=fedavg seed=4", 2.0),
        ("fedkd run strategy=local seed=3", 3.0),
        ("fedkd run strategy=local seed=4", -4.5),
    ]
    assert found[0].name == "made-up/a/x/3/clients.mean.last"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("b | x:", "c | x:", "0 rows begin with 'c | x'"),
        ("{own: ", "{owns: ", "no column 'owns'"),
        ("(1.0 / 2.0)", "(1.0 / 2.0 / 3.0)", "has 3 numbers, and there are 2 seeds"),
        ("seeds:", "seed:", "seed is unknown"),
        ("|", "", "no table follows"),
    ],
)
def test_a_marker_that_does_not_fit_its_table_is_refused(old, new, says):
    with pytest.raises(figures.Broken, match=says):
        list(figures.of_text(TABLE.replace(old, new)))


def test_every_marker_of_the_documents_fits_and_its_command_and_metric_exist():
    found = figures.of_documents()
    assert {"first-run", "first-compare"} <= {figure.name for figure in found}
    for command in {figure.command for figure in found}:
        _, verb, *words = shlex.split(command)
        if verb == "run":
            compose.draft(words)
        else:
            assert cells.ask(words).seeds
    for text in {figure.metric for figure in found} - {""}:
        metric.parse(text)


SHOWN = ("done   30 rounds in 0:26", "       global accuracy   0.946   (averaged)", "files  runs/1125-1929-fedgen-b980")


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (("starting", "done   30 rounds in 1:43", "  global accuracy  0.946  (averaged)", SHOWN[2]), []),
        ((SHOWN[0], SHOWN[1].replace("6", "7"), SHOWN[2]), ["shown:   "]),
        (
            (SHOWN[0], SHOWN[1].replace("6", "7", 1), "note  by the way", SHOWN[2]),
            ["shown:   ", "printed, not shown: note"],
        ),
        ((*SHOWN, "next   more"), ["printed, not shown: next"]),
        (SHOWN[:2], ["shown, not printed: files"]),
        ((*SHOWN[:2], "files  runs/1201-0631-fedgen-b807"), ["shown, not printed: files", "printed, not shown: files"]),
        (("failed",), ["nothing printed is like the first line"]),
    ],
)
def test_lines_differ_in_words_numbers_and_hashes_but_not_in_clock_times_and_spaces(printed, expected):
    found = figures.compare(SHOWN, printed, 0.0005)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_numbers_may_differ_by_the_tolerance():
    printed = (SHOWN[0], SHOWN[1].replace("0.946", "0.950"), SHOWN[2])
    assert not figures.compare(SHOWN, printed, 0.004)
    assert figures.compare(SHOWN, printed, 0.003)
    assert not figures.compare(SHOWN, printed, 0, skip=r"0\.9\d\d")
