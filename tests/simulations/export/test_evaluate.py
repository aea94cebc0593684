"""How well a student of a run does: on its own test samples the ledger's figures, on others of the same form too."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from fedkd.data import digits, sources
from fedkd.errors import ConfigError, DataError
from fedkd.record import ledger
from simulations.cli import main
from simulations.export import evaluate, serving
from simulations.system.threads import one_thread


def of(place, data=None, client=None):
    with one_thread():
        run = serving.load(place, pytest.fail)
        return evaluate.evaluate(run, serving.student(run.assembly, run.state, client), data)


@pytest.fixture(scope="module")
def found(demo):
    return of(demo)


def test_on_its_own_test_samples_a_student_has_the_ledgers_figures(demo, found):
    last = ledger.rows(demo / "metrics.jsonl")[-1]["accuracy"]
    assert (found.accuracy, found.ledger) == (last["global"], last["global"])
    assert found.loss == pytest.approx(last["loss"], rel=1e-12)
    assert [share for _, _, share in found.classes] == last["by_class"]
    assert found.samples == len(found.served.assembly.site.test)


def test_the_confusion_matrix_has_a_row_per_true_class_and_a_column_per_answer(found):
    answers, labels = found.served.logits.argmax(1), found.served.assembly.site.test.y
    counts = np.zeros((10, 10), int)
    for label, answer in zip(labels, answers, strict=True):
        counts[label, answer] += 1
    assert found.confusion_CC.tolist() == counts.tolist()


def test_a_clients_own_student_is_judged_on_its_own_test_samples(demo):
    found = of(demo, client=2)
    row = [row for row in ledger.rows(demo / "clients.jsonl") if row["client"] == 2][-1]
    assert found.accuracy == row["accuracy"] == found.ledger
    assert found.data == "digits, client 2's own test samples"


def test_own_samples_and_other_sources_are_scaled_as_the_runs(demo, found, tmp_path, monkeypatch):
    test = found.served.assembly.site.test
    np.savez(tmp_path / "mine.npz", x=test.x.numpy(), y=test.y.numpy())
    assert of(demo, str(tmp_path / "mine.npz")).confusion_CC.equal(found.confusion_CC)
    assert of(demo, "digits").loss == found.loss

    def brighter(root):
        (train, test), labels = digits.read(), sources.SOURCES["digits"].labels
        return sources.Parts(*((x * np.uint8(15), y) for x, y in (train, test)), labels)

    bright = replace(sources.SOURCES["digits"], read=brighter, top=240)
    monkeypatch.setitem(sources.SOURCES, "bright", bright)
    assert of(demo, "bright").loss == pytest.approx(found.loss, rel=1e-5)


def test_tables_are_read_and_scaled_like_the_runs(play, tmp_path):
    place = play("wine", "data=wine", "data.scaling=standard", "students=mlp", "strategy=fedavg", "partition.alpha=5")
    found = of(place)
    test = found.served.assembly.site.test
    np.savez(tmp_path / "wine.npz", x=test.x.numpy(), y=test.y.numpy())
    again = of(place, str(tmp_path / "wine.npz"))
    assert (again.loss, again.accuracy) == (found.loss, found.accuracy)
    (tmp_path / "wine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"the run has no data\.label"):
        of(place, str(tmp_path / "wine.csv"))
    with pytest.raises(DataError, match=r"a sample is .*the run's are \[13\] float32"):
        of(place, save(tmp_path, np.zeros((2, 13), np.int64), [0, 1]))


def save(place, x, y):
    np.savez(place / "given.npz", x=x, y=np.array(y))
    return str(place / "given.npz")


def test_samples_that_do_not_fit_are_refused_with_what_would(demo, tmp_path):
    with pytest.raises(DataError, match="the classes are class_0, class_1, class_2; the run's are 0, 1, 2, 3, 4"):
        of(demo, "wine")
    with pytest.raises(DataError, match="neither such a file nor such a data set") as caught:
        of(demo, "digitz")
    assert "one of: digits, mnist" in caught.value.mend
    with pytest.raises(ConfigError, match="'own' names no samples"):
        of(demo, "own")
    with pytest.raises(DataError, match="9"):
        of(demo, save(tmp_path, np.zeros((2, 1, 9, 9), np.uint8), [0, 1]))
    with pytest.raises(DataError, match="the labels go from 0 to 10"):
        of(demo, save(tmp_path, np.zeros((2, 1, 8, 8), np.uint8), [0, 10]))


def test_a_client_without_test_samples_is_told_to_bring_some(demo):
    run = serving.load(demo, pytest.fail)
    site = replace(run.assembly.site, test_index={})
    served = serving.student(replace(run.assembly, site=site), run.state, 1)
    with pytest.raises(DataError, match="no test samples of this student") as caught:
        evaluate.evaluate(run, served, None)
    assert "--data" in caught.value.mend


def test_the_command_prints_a_table_one_json_object_and_a_csv(demo, found, tmp_path, capsys):
    file = tmp_path / "demo.csv"
    assert main.main(["evaluate", str(demo), "--csv", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"accuracy  {found.accuracy:.4f}   (the run's ledger says {found.accuracy:.4f})" in shown
    assert "predicted as" in shown
    rows = list(csv.reader(file.open()))
    assert rows[0][:4] == ["class", "samples", "accuracy", "predicted 0"]
    assert [list(map(int, row[3:])) for row in rows[1:]] == found.confusion_CC.tolist()
    assert main.main(["evaluate", str(demo), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["accuracy"], answer["samples"], answer["student"]) == (found.accuracy, found.samples, "global")
    assert answer["confusion"] == found.confusion_CC.tolist()
