import json
import struct
import sys
import types

import pytest
from pilots import SMALL, resume, start

from fedkd.configuration import compose
from fedkd.errors import DataError
from fedkd.record import checkpoint, ledger
from simulations.cli import main
from simulations.engines import choose
from simulations.engines.inline import Inline
from simulations.run import console_text, run_folder, tracking
from simulations.run.tensorboard import scalars
from simulations.system.interrupts import Stop

LEDGER = ("metrics.jsonl", "clients.jsonl")


@pytest.fixture
def stops(monkeypatch):
    """The rounds in which the engine stops the run, as Ctrl-C does."""
    rounds = set()

    class Stopping(Inline):
        def run(self, jobs, deadline=None):
            if jobs[0].round in rounds:
                raise Stop
            yield from super().run(jobs, deadline)

    monkeypatch.setattr(choose, "make", lambda config, site, **_: (Stopping(site), "engine: stopping"))
    return rounds


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user who has no key and no settings of these services."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(monkeypatch):
    """A service in the place of W&B: what it was told, and the round in which it fails."""
    told = types.SimpleNamespace(calls=[], fails=None, made=0)

    def make(resolved, folder):
        told.made += 1
        return Fake()

    class Fake:
        def restart(self, rows, timings):
            told.calls.append(("restart", len(rows)))
            if told.fails == 0:
                raise ConnectionError("https://me:secret@example.org does not answer\nat all")

        def write(self, row, timings):
            told.calls.append(("write", row["round"]))
            if row["round"] == told.fails:
                raise OSError("the service is full")

        def finish(self, totals):
            told.calls.append(("finish", totals["status"]))

    module = types.ModuleType("simulations.run.track_wandb")
    module.make = make
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tracking, "is_installed", lambda name: True)
    return told


def warnings(place):
    return [row["what"] for row in ledger.rows(place / "events.jsonl") if row["event"] == "warn"]


def test_where_curves_go_is_no_part_of_the_hash():
    digests = {compose.resolve([*SMALL, f"track={where}"]).digest() for where in ("[]", "[tensorboard, csv, mlflow]")}
    assert digests == {compose.resolve(SMALL).digest()}


def test_without_tensorboard_there_are_no_curves(tmp_path):
    found = start(tmp_path, "track=[]", "rounds=1")
    assert not (tmp_path / "pilot" / "tb").exists()
    assert (tmp_path / "pilot" / "rounds.csv").exists()
    head = console_text.head(compose.resolve([*SMALL, "track=[csv]"]), tmp_path / "pilot", "")
    assert "curves" not in "\n".join(console_text.closing(found, head))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_an_error_before_the_run(tmp_path, monkeypatch, capsys, stops, name):
    monkeypatch.setattr(tracking, "is_installed", lambda name: False)
    words = [*SMALL, f"track=[{name}]"]
    assert main.main(["run", *words, "--runs", str(tmp_path), "--name", "pilot"]) == 3
    shown = capsys.readouterr().err
    assert f"track names {name}, which is not installed" in shown
    assert f"pip install 'fedkd[{name}]'" in shown
    assert not (tmp_path / "pilot").exists()
    assert main.main(["compare", *words, "seed=1,2", "--debug", "--out", str(tmp_path / "compared")]) == 3
    assert not list(tmp_path.glob("compared/runs/*"))
    stops.add(2)
    start(tmp_path)
    config = tmp_path / "pilot" / "config.yaml"
    config.write_text(config.read_text().replace("track: [tensorboard]", f"track: [{name}]"))
    with pytest.raises(DataError, match="not installed"):
        resume(tmp_path)


def test_a_service_is_told_of_every_round_and_of_the_end(tmp_path, service, stops):
    stops.add(3)
    start(tmp_path, "track=[wandb]")
    stops.clear()
    resume(tmp_path)
    first = [("restart", 0), ("write", 1), ("write", 2), ("finish", "stopped")]
    assert service.calls == [*first, ("restart", 2), ("write", 3), ("write", 4), ("finish", "done")]


@pytest.mark.parametrize("fails", [0, 2])
def test_a_service_that_fails_is_dropped_with_one_warning(tmp_path, service, fails):
    start(tmp_path, name="plain")
    service.fails = fails
    assert start(tmp_path, "track=[wandb]")["status"] == "done"
    assert len(service.calls) == fails + 1
    assert service.made == 1
    (text,) = warnings(tmp_path / "pilot")
    reason = "ConnectionError: https://***@example.org does not answer at all" if fails == 0 else "OSError: the service"
    assert text.startswith(f"wandb gets no more of this run ({reason}")
    for name in LEDGER:
        assert (tmp_path / "pilot" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_the_identity_ends_when_clients_are_left_out(tmp_path):
    start(tmp_path, "rounds=1")
    folder = run_folder.reopen(tmp_path / "pilot")
    assert tracking.identity(folder, "wandb") is None
    tracking.keep_identity(folder, "wandb", "abc")
    tracking.keep_identity(folder, "mlflow", "def")
    assert (tracking.identity(folder, "wandb"), tracking.identity(folder, "mlflow")) == ("abc", "def")
    folder.note(without=[{"client": 1, "after": 0}])
    assert tracking.identity(folder, "wandb") is None
    folder.release()


def expected(place):
    """Round -> what every service should show of it."""
    rows = zip(ledger.rows(place / "metrics.jsonl"), ledger.rows(place / "timings.jsonl"), strict=True)
    return {row["round"]: dict(scalars(row, timings)) for row, timings in rows}


def wandb_records(path):
    """The records of an offline run: LevelDB's log format, after a head of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def item_values(items):
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_wandb_writes_into_the_run_folder_what_the_ledger_has(tmp_path, nobody, stops, capfd):
    pytest.importorskip("wandb", reason="the extra wandb is not installed", exc_type=ImportError)
    place = tmp_path / "pilot"
    stops.add(3)
    start(tmp_path, "track=[wandb]")
    first = run_folder.info(place)["track"]["wandb"]["id"]
    stops.clear()
    checkpoint.forget(place / "checkpoints", after=0)  # as after a kill: rounds 1 and 2 run again
    found = resume(tmp_path)
    assert run_folder.info(place)["track"]["wandb"]["id"] == first
    (path,) = place.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(path))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.display_name) == (first, "fedkd", "pilot")
    config = item_values(run.config.update)
    assert {key: config[key] for key in ("rounds", "train.steps", "strategy.name")} == {
        "rounds": 4,
        "train.steps": 2,
        "strategy.name": "fedavg",
    }
    history = [item_values(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    shown = {row["_step"]: {key: value for key, value in row.items() if key[0] != "_"} for row in history}
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    assert shown == expected(place)
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= item_values(record.summary.update)
    assert summary["summary.accuracy.last"] == found["accuracy"]["last"]
    assert summary["summary.status"] == "done"
    assert warnings(place) == []
    assert "wandb:" not in "".join(capfd.readouterr())


def test_mlflow_has_beside_the_runs_what_the_ledger_has(tmp_path, nobody, stops):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed", exc_type=ImportError)
    from mlflow.tracking import MlflowClient

    place = tmp_path / "pilot"
    stops.add(3)
    start(tmp_path, "track=[mlflow]")
    first = run_folder.info(place)["track"]["mlflow"]["id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(first).info.status == "KILLED"
    stops.clear()
    checkpoint.forget(place / "checkpoints", after=0)  # as after a kill: rounds 1 and 2 run again
    found = resume(tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("fedkd").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (first, "pilot", "FINISHED")
    params = compose.from_yaml_file(place / "config.yaml").values()
    assert run.data.params.keys() == params.keys()
    assert run.data.params["strategy.name"] == "fedavg"
    rounds = expected(place)
    assert run.data.metrics.keys() >= {key for row in rounds.values() for key in row}
    for key in ("accuracy/global", "terms/ce", "bytes/up"):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(first, key)]
        assert history == [(number, row[key]) for number, row in rounds.items()]
    assert run.data.metrics["summary/accuracy.last"] == found["accuracy"]["last"]
    assert run.data.tags["summary/status"] == "done"
    assert warnings(place) == []
