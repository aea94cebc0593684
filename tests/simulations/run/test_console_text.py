"""Where no student is global, the clients' own are what counts; findings and older ledgers break nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedkd.configuration import compose
from fedkd.record import ledger
from simulations.analysis import metric
from simulations.analysis.run_record import RunRecord
from simulations.run import console_text, runs, summary, tensorboard
from simulations.run.console_text import Head, History
from simulations.run.options import Options

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
        "local_accuracy": {"in": 0.8, "out": 0.2},
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
    assert its["local_accuracy"] == {"in": 0.8, "out": 0.2}
    json.dumps(its, allow_nan=False)


def test_a_global_student_counts_where_there_is_one():
    accuracy = {"global": 0.7, "clients": {"mean": 0.6, "worst_decile": 0.4, "pooled": 0.65}}
    its = found(row(1, accuracy=accuracy))
    assert (its["accuracy_of"], its["accuracy"]["last"]) == ("global", 0.7)
    assert "common" not in its
    assert console_text.figures(its, 10)[0].startswith("global accuracy   0.700")


def test_the_last_lines_say_whose_accuracy_it_is():
    text = "\n".join(console_text.closing({**found(row(1)), "statistics": "local"}, HEAD))
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
        assert console_text.figures({**its, "statistics": statistics}, 10)[0].endswith(end)


def test_the_panel_shows_personal_and_common_accuracy():
    told = History()
    for number in (1, 2):
        told.add(row(number, number / 4))
    text = "\n".join(console_text.panel(HEAD, told, 0))
    assert "personal 0.500 ▁█   common 0.400   worst tenth 0.400" in text
    assert "knowledge  filter gain 0.25\n" in text
    assert "in-local" not in text


def test_verbose_shows_accuracy_on_own_labels_and_on_others():
    told = History()
    told.add(row(1))
    assert " labels     in-local 0.800   out-local 0.200" in console_text.panel(HEAD, told, 0, verbose=True)
    assert "in-local 0.800   out-local 0.200" in console_text.round_line(row(1), 0.1, "", HEAD, verbose=True)
    assert "in-local" not in console_text.round_line(row(1), 0.1, "", HEAD)


def test_a_line_a_round_shows_personal_and_common_accuracy():
    line = console_text.round_line(row(1), 0.1, "", HEAD, verbose=True)
    assert "personal 0.600   common 0.500   worst tenth 0.400" in line
    assert "filter gain 0.25" in line
    assert "[" not in line


def test_a_server_that_finds_only_lists_has_no_line_in_the_panel():
    told = History()
    told.add(row(1, server={"coverage": [1.0]}))
    assert not any(line.startswith(" knowledge") for line in console_text.panel(HEAD, told, 0))


def test_curves_have_local_accuracy_and_no_lists():
    tags = dict(tensorboard.scalars(row(1), {}))
    assert (tags["local_accuracy/in"], tags["local_accuracy/out"]) == (0.8, 0.2)
    assert tags["accuracy/common_mean"] == 0.5
    assert tags["server/filter_gain"] == 0.25
    assert not {tag for tag in tags if "trust" in tag or "coverage" in tag or "digest" in tag}


def test_rows_of_an_older_ledger_without_local_accuracy_are_read():
    old = {key: value for key, value in row(1).items() if key != "local_accuracy"}
    assert "local_accuracy" not in found(old)
    assert not any(tag.startswith("local_accuracy") for tag, _ in tensorboard.scalars(old, {}))
    told = History()
    told.add(row(1))
    told.add(old)
    assert told.local_accuracy == {}
    console_text.panel(HEAD, told, 0, verbose=True)
    console_text.round_line(old, 0.1, "", HEAD, verbose=True)


def test_rows_of_an_older_ledger_get_the_names_of_today(tmp_path):
    old = {key: value for key, value in row(1).items() if key != "local_accuracy"}
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ledger.encode({**old, "forgetting": {"inside": 0.8, "outside": 0.2}}))
    (read,) = ledger.rows(path)
    assert read == row(1)
    assert metric.parse("forgetting.outside last") == metric.parse("local_accuracy.out last")


HISTORY = [[0.2, 0.8, None], [0.6, 0.5, None], [0.5, 0.7, None]]


def by_class(history):
    return [row(number, accuracy={"by_class": each}) for number, each in enumerate(history, 1)]


def test_forgetting_is_what_classes_lost_since_their_best_round():
    """Lee et al. (2022): classes fall from 0.6 to 0.5 and from 0.8 to 0.7."""
    its = found(*by_class(HISTORY))
    assert its["forgetting"] == pytest.approx(0.1)
    assert "forgetting        0.100   (mean over classes: best earlier" in "\n".join(console_text.figures(its, 10))


def test_classes_that_end_better_than_ever_have_forgotten_less_than_nothing():
    its = found(*by_class([[0.2, 0.4], [0.5, 0.5]]))
    assert its["forgetting"] == pytest.approx(-0.2)
    assert "below 0: the last is above it" in "\n".join(console_text.figures(its, 10))
    assert "forgetting" not in found(*by_class(HISTORY[:1]))


def test_less_is_better_for_the_metric_forgetting():
    member = RunRecord("", "", 0, Path(), rows=by_class(HISTORY))
    lost = metric.parse("forgetting last")
    assert (lost.value(member), lost.sign, lost.unit) == (pytest.approx(0.1), -1.0, "points")
    assert lost.curve(member) == [(2, pytest.approx((-0.4 + 0.3) / 2)), (3, pytest.approx(0.1))]


def some_trained(count=6):
    spread = {"mean": 0.5, "std": 0.1, "worst_decile": 0.3, "pooled": 0.5}
    return row(1, accuracy={**row(1, 0.25)["accuracy"], "trained": {"count": count, "clients": spread}})


def test_screens_say_how_trained_clients_fare():
    told = History()
    told.add(some_trained())
    assert "personal 0.250   trained 0.500 (6 of 10)   common" in console_text.round_line(some_trained(), 0.1, "", HEAD)
    assert "trained 0.500 (6 of 10)" in "\n".join(console_text.panel(HEAD, told, 0))
    its = "\n".join(console_text.figures(found(some_trained()), 10))
    assert "clients           mean 0.250   worst tenth 0.400   (all 10)" in its
    assert "trained clients   mean 0.500   worst tenth 0.300   (the 6 that have taken part" in its
    assert metric.parse("trained.clients.mean last").value(RunRecord("", "", 0, Path(), rows=[some_trained()])) == 0.5
    assert dict(tensorboard.scalars(some_trained(), {}))["accuracy/trained_clients_mean"] == 0.5


def test_where_all_have_trained_nobody_is_told_apart():
    assert "trained" not in console_text.round_line(some_trained(10), 0.1, "", HEAD)
    assert not any("trained" in line for line in console_text.figures(found(some_trained(10)), 10))


def test_a_global_students_accuracy_on_clients_is_never_called_personal():
    shared = replace(HEAD, client_student="global")
    told = History()
    told.add(row(1))
    assert "per client 0.600" in console_text.round_line(row(1), 0.1, "", shared)
    assert "per client 0.600" in "\n".join(console_text.panel(shared, told, 0))
    its = {**found(row(1)), "client_student": "global"}
    lines = console_text.closing(its, shared)
    assert "accuracy          0.600   mean of 1 round 0.600   best 0.600   (the global student on each" in lines[1]
    assert lines[-1].startswith("next   compare with FedAvg")
    assert "personal" not in "\n".join(lines)


def test_the_curve_of_a_run_never_mixes_two_accuracies():
    both = [row(1), row(2, accuracy={**row(2)["accuracy"], "global": 0.7}), row(3)]
    assert console_text.curve(both) == [0.7]
    assert console_text.curve(both[:1]) == [0.6]


@pytest.mark.parametrize(("rounds", "said"), [(1, "mean of 1 round "), (4, "mean of 4 rounds"), (11, "last 10 rounds")])
def test_the_last_lines_name_no_more_rounds_than_were_played(rounds, said):
    lines = console_text.figures(found(*(row(number) for number in range(1, rounds + 1))), 10)
    assert said in lines[0]


def test_a_round_without_the_pooled_test_set_calls_fedavgs_student_global(tmp_path, capsys):
    words = [*SMALL, "strategy=fedavg", "evaluate.pooled_every=2", "engine.name=inline"]
    its = runs.start(compose.resolve(words), runs=tmp_path, name="avg", options=Options(runs=tmp_path))
    said = capsys.readouterr()
    assert "round 1/2   per client 0." in said.out + said.err
    assert "personal" not in said.out + said.err
    assert its["client_student"] == "global"
    assert its["trained"]["count"] == 3


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
    rows = [{k: v for k, v in row.items() if k != "local_accuracy"} for row in ledger.rows(place)]
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(runs=tmp_path)
    assert "personal accuracy" in "\n".join(console_text.portrait(runs.show(tmp_path / "head", options=options)))
    assert runs.resume(tmp_path / "head", runs=tmp_path, options=options)["status"] == "done"
    assert len(runs.listing(tmp_path)) == 1
