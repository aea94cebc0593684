"""Where no student is global, the clients' own are what counts; findings and older ledgers break nothing."""

import json

import pytest

from fedkd import compose, ledger
from simulations import board, runs, story, summary
from simulations.options import Options
from simulations.story import Head, Story

HEAD = Head(
    run="knfu",
    strategy="knfu",
    data="digits",
    partition="iid",
    clients=10,
    per_round=10,
    rounds=3,
    folder="runs/knfu",
    engine="inline",
)
SMALL = ("partition=iid", "clients=3", "rounds=2", "train.steps=1", "evaluate.common=50", "evaluate.probe=8")


def row(number, mean=0.6, **more):
    """Of an algorithm without a global student, with findings that are no numbers."""
    return {
        "round": number,
        "cohort": [0, 1],
        "clients": {"ok": 2, "failed": 0, "late": 0, "rejected": 0},
        "accuracy": {
            "clients": {"mean": mean, "std": 0.1, "worst_decile": 0.4, "pooled": 0.65},
            "common": {"mean": mean - 0.1, "std": 0.1, "worst_decile": 0.3, "pooled": 0.5},
        },
        "terms": {"ce": 1.0, "digest": None},
        "server": {"filter_gain": 0.25, "trust": [[0.5, 0.5], [0.25, 0.75]], "coverage": [1.0, 0.0]},
        "drift": {"function": 0.3},
        "forgetting": {"inside": 0.8, "outside": 0.2},
        "bytes": {"down": {"probe_logits": 1000}, "up": {"probe_logits": 2000}},
        **more,
    }


def found(*rows):
    return summary.of_rows(rows, [])


def test_the_accuracy_of_a_run_is_that_of_the_clients_own_students():
    its = found(row(1, 0.5), row(2, 0.6))
    assert its["accuracy_of"] == "clients.mean"
    assert its["accuracy"] == pytest.approx({"last": 0.6, "last10": 0.55, "top5": 0.55, "best": 0.6})
    assert its["common"]["last"] == pytest.approx(0.5)
    assert its["clients"]["pooled"]["last"] == 0.65
    assert its["forgetting"] == {"inside": 0.8, "outside": 0.2}
    json.dumps(its, allow_nan=False)


def test_a_global_student_counts_where_there_is_one():
    accuracy = {"global": 0.7, "clients": {"mean": 0.6, "worst_decile": 0.4, "pooled": 0.65}}
    its = found(row(1, accuracy=accuracy))
    assert (its["accuracy_of"], its["accuracy"]["last"]) == ("global", 0.7)
    assert "common" not in its
    assert story.figures(its)[0].startswith("global accuracy   0.700")


def test_the_last_lines_say_whose_accuracy_it_is():
    text = "\n".join(story.closing({**found(row(1)), "statistics": "local"}, HEAD))
    assert "personal accuracy 0.600" in text
    assert "(each client's own student on its own test split, mean)" in text
    assert "common images     0.500" in text
    assert text.isascii()


@pytest.mark.parametrize(
    ("statistics", "personal", "of_global"),
    [
        ("average", "   (BatchNorm statistics averaged)", "   (BatchNorm statistics averaged)"),
        (
            "local",
            "   (BatchNorm statistics: each client's own)",
            "   (BatchNorm statistics: each client's own; global student: their mean)",
        ),
        ("none", "on its own test split, mean)", "best 0.700"),
    ],
)
def test_the_figures_say_which_statistics_students_had(statistics, personal, of_global):
    """Of a global student only where there is one."""
    accuracy = {"global": 0.7, "clients": {"mean": 0.6, "worst_decile": 0.4, "pooled": 0.65}}
    for its, end in ((found(row(1)), personal), (found(row(1, accuracy=accuracy)), of_global)):
        assert story.figures({**its, "statistics": statistics})[0].endswith(end)


def test_the_panel_shows_personal_and_common_accuracy():
    told = Story()
    for number in (1, 2):
        told.tell(row(number, number / 4))
    text = "\n".join(story.panel(HEAD, told, 0))
    assert "personal 0.500 ▁█   common 0.400   worst tenth 0.400" in text
    assert "knowledge  filter gain 0.25\n" in text
    assert "inside" not in text


def test_verbose_shows_what_training_made_forget():
    told = Story()
    told.tell(row(1))
    assert " labels     inside 0.800   outside 0.200" in story.panel(HEAD, told, 0, verbose=True)
    assert "inside 0.800   outside 0.200" in story.round_line(row(1), 0.1, "", 3, verbose=True)
    assert "inside" not in story.round_line(row(1), 0.1, "", 3)


def test_a_line_a_round_shows_personal_and_common_accuracy():
    line = story.round_line(row(1), 0.1, "", 3, verbose=True)
    assert "personal 0.600   common 0.500   worst tenth 0.400" in line
    assert "filter gain 0.25" in line
    assert "[" not in line


def test_a_server_that_finds_only_lists_has_no_line_in_the_panel():
    told = Story()
    told.tell(row(1, server={"coverage": [1.0]}))
    assert not any(line.startswith(" knowledge") for line in story.panel(HEAD, told, 0))


def test_curves_have_forgetting_and_no_lists():
    tags = dict(board.scalars(row(1), {}))
    assert (tags["forgetting/inside"], tags["forgetting/outside"]) == (0.8, 0.2)
    assert tags["accuracy/common_mean"] == 0.5
    assert tags["server/filter_gain"] == 0.25
    assert not {tag for tag in tags if "trust" in tag or "coverage" in tag or "digest" in tag}


def test_rows_of_an_older_ledger_without_forgetting_are_read():
    old = {key: value for key, value in row(1).items() if key != "forgetting"}
    assert "forgetting" not in found(old)
    assert not any(tag.startswith("forgetting") for tag, _ in board.scalars(old, {}))
    told = Story()
    told.tell(row(1))
    told.tell(old)
    assert told.forgetting == {}
    story.panel(HEAD, told, 0, verbose=True)
    story.round_line(old, 0.1, "", 3, verbose=True)


@pytest.fixture
def played(tmp_path):
    """A run without a global student: only heads are shared."""
    resolved = compose.resolve([*SMALL, "strategy=fedavg", "strategy.share=head", "engine.name=inline"])
    return runs.start(resolved, runs=tmp_path, name="head", options=Options(runs=tmp_path, quiet=True))


def test_a_run_with_shared_heads_reports_personal_and_common_accuracy(played, tmp_path):
    rows = ledger.rows(tmp_path / "head" / "metrics.jsonl")
    assert played["accuracy_of"] == "clients.mean"
    assert played["accuracy"]["last"] == rows[-1]["accuracy"]["clients"]["mean"]
    assert played["common"]["last"] == rows[-1]["accuracy"]["common"]["mean"]
    assert runs.listing(tmp_path)[0]["accuracy"] == played["accuracy"]["last"]


def test_an_older_run_folder_can_be_shown_listed_and_resumed(played, tmp_path, capsys):
    place = tmp_path / "head" / "metrics.jsonl"
    rows = [{k: v for k, v in row.items() if k != "forgetting"} for row in ledger.rows(place)]
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(runs=tmp_path)
    assert "personal accuracy" in "\n".join(story.portrait(runs.show(tmp_path / "head", options=options)))
    assert runs.resume(tmp_path / "head", runs=tmp_path, options=options)["status"] == "done"
    assert len(runs.listing(tmp_path)) == 1
