"""An exported student classifies held-out digits as the run's student does, in every format, or is not written."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fedkd.config import DataConfig
from fedkd.data import sources
from fedkd.errors import CheckpointError, ConfigError, DataError, FolderError, RunError
from fedkd.models import exported, predictors
from fedkd.record import ledger
from simulations.export import as_safetensors, checks, formats, serving
from simulations.export.command import main
from simulations.run.options import Export

FORMATS = ("safetensors", "pt2", "onnx")
DOCS = Path(__file__).parents[3] / "docs/export.md"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_SECONDS", 0.0)


def need(kind: str) -> None:
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install 'fedkd[export]'")


def export(run: Path, kind: str = "safetensors", **words) -> Path:
    """Export quietly; the file."""
    need(kind)
    out = words.pop("out", None)
    assert main(Export(run=str(run), format=kind, json=True, quiet=True, out=out, **words)) == 0
    who = "global" if words.get("client") is None else f"client-{words['client']}"
    return out or run / "export" / f"{who}{'-int8' if words.get('int8') else ''}.{kind}"


@pytest.fixture(scope="module")
def made() -> Callable[[Path, str], Path]:
    """Exports the global student of a run once a format; for tests that only read the file."""
    return cache(export)


def ask(path: Path, images: Tensor) -> Tensor:
    """As a user would, without our code where that can be."""
    if path.suffix == ".safetensors":
        return exported.load(path)[0](images)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images).detach()
    import onnxruntime

    return torch.from_numpy(onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})[0])


def digits() -> tuple[Tensor, Tensor]:
    test = sources.load(DataConfig()).test
    return test.x, test.y


def said(run: Path, client: int | None = None) -> float:
    """The accuracy in the ledger's last row."""
    if client is None:
        return ledger.rows(run / "metrics.jsonl")[-1]["accuracy"]["global"]
    return next(r["accuracy"] for r in reversed(ledger.rows(run / "clients.jsonl")) if r["client"] == client)


def served(run: Path, client: int | None = None) -> serving.Served:
    found = serving.load(run, pytest.fail)
    return serving.student(found.assembly, found.state, client)


# --- what is exported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_held_out_digits_are_classified_with_the_runs_accuracy(demo, made, kind):
    x, y = digits()
    path = made(demo, kind)
    labels = ask(path, x).argmax(1)
    assert int((labels == y).sum()) / len(y) == said(demo) > 0.3  # it has learned something
    assert (labels == served(demo).logits.argmax(1)).all()
    for count in (1, 7):  # of any number
        assert (ask(path, x[:count]).argmax(1) == labels[:count]).all()


@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_a_clients_own_student_has_its_accuracy(play, kind):
    run = play("own", "strategy=local", "students=mlp")
    its = served(run, client=2)
    x, y = (values[its.held_out] for values in digits())
    assert 0 < len(x) < 355
    assert float((ask(export(run, kind, client=2), x).argmax(1) == y).sum()) / len(y) == said(run, client=2)


def test_two_clients_have_two_students(play):
    run, x = play("own", "strategy=local", "students=mlp"), digits()[0]
    one, other = (ask(export(run, client=client), x) for client in (1, 2))
    assert not torch.equal(one, other)


def test_a_student_of_a_mixture_has_its_own_architecture(play):
    run = play("mixed", "strategy=local", "students={mix: [mlp, lenet5, mlp, resnet8]}", "rounds=1")
    path = export(run, client=3)
    assert json.loads(exported.metadata(path)["architecture"])["name"] == "resnet8"
    assert exported.load(path)[0].entries.keys() >= {"members.0.stem.norm.running_mean"}


RULES = {
    "prior": (["strategy=fedfuse", "proxy=held-out", "proxy.size=64"], 1),
    "prototypes": (["strategy=fedproto"], 1),
    "ensemble": (["strategy=fedensemble"], None),
}
PROGRAMS = {"prior": "pt2", "prototypes": "onnx", "ensemble": "pt2"}  # ONNX takes seconds: for the rarest operations


@pytest.mark.parametrize(("rule", "kind"), [(rule, kind) for rule in RULES for kind in ("safetensors", PROGRAMS[rule])])
def test_what_the_run_judged_is_exported_not_the_bare_student(play, rule, kind):
    words, client = RULES[rule]
    run = play(rule, *words, "students=mlp")
    its = served(run, client)
    path = export(run, kind, client=client)
    x, y = (values[its.held_out] for values in digits())
    assert float((ask(path, x).argmax(1) == y).sum()) / len(y) == said(run, client)
    assert its.module.rule.name == rule
    bare = its.assembly.site.student(its.job).eval()(its.assembly.site.test.take(its.held_out)[0])
    assert (bare - its.logits).abs().max() > 0.01  # the rule is no idle thing


class Negated(predictors.Predictor):
    """One that no file of ours knows."""

    def forward(self, members, x):
        (student,) = members
        return -student(x)


def test_a_predictor_of_ones_own_is_exported_as_a_program_and_refused_without_one(demo, tmp_path):
    its = served(demo)

    class Odd(type(its.assembly.site.client)):
        def predictor(self, job):
            return Negated()

    odd = replace(its, assembly=replace(its.assembly, site=replace(its.assembly.site, client=Odd())))
    program = formats.choose("pt2", int8=False)
    program.write(odd, {}, tmp_path / "odd.pt2")
    x = digits()[0][its.held_out]
    assert_close(program.open(tmp_path / "odd.pt2")(x), -its.logits)
    with pytest.raises(ConfigError, match="Negated, which safetensors cannot hold"):
        as_safetensors.write(odd, {}, tmp_path / "odd.safetensors")


def test_parts_do_not_stand_in_the_way(play):
    run = play("parts", "strategy=fedavg", "students=mlp", "parts=[ema]", "rounds=1")
    assert ask(export(run), digits()[0]).shape == (355, 10)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_what_it_is(demo, made, kind):
    path = made(demo, kind)
    facts = dict(formats.choose(kind, int8=False).metadata(path))
    assert json.loads(facts["labels"]) == [str(digit) for digit in range(10)]
    assert json.loads(facts["input"]) == {"name": "images", "dtype": "uint8", "shape": ["batch", 1, 8, 8]}
    assert json.loads(facts["scaling"])["scale"] == [0.125]
    assert json.loads(facts["accuracy"]) == {"held_out": said(demo), "ledger": said(demo)}
    info = json.loads((demo / "run.json").read_text())
    assert (facts["run"], facts["config"], facts["student"]) == ("demo", info["config"], "global")
    assert facts["fedkd"] == info["versions"]["fedkd"]


def test_no_path_of_this_machine_is_in_the_file(demo, made):
    assert str(Path(__file__).parents[3]).encode() not in made(demo, "onnx").read_bytes()


def test_int8_is_smaller_and_tells_its_cost(play, capsys):
    need("onnx")
    run = play("wide", "strategy=fedavg", "students=mlp")
    capsys.readouterr()  # the result of the run
    assert main(Export(run=str(run), format="onnx", int8=True, max_loss=0.1, json=True, quiet=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"]["int8"] < 0.5 * found["bytes"]["float"]
    x, y = digits()
    its = ask(run / "export" / "global-int8.onnx", x)
    assert float((its.argmax(1) == y).sum()) / len(y) == found["accuracy"]["int8"] > said(run) - 0.1
    assert not torch.equal(its, served(run).logits)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_another_student_is_not_written(demo, monkeypatch, tmp_path):
    honest = as_safetensors.write

    def spoilt(its, facts, place):
        with torch.no_grad():
            its.module.members[0].learnable["head.bias"][0] += 0.01
        honest(its, facts, place)

    monkeypatch.setattr(as_safetensors, "write", spoilt)
    with pytest.raises(RunError, match=r"not the run's student: of 355 .* differ by up to 0.01"):
        export(demo, out=tmp_path / "a.safetensors")
    assert not [*tmp_path.iterdir()]


def found(**changes) -> checks.Measurements:
    base = {"samples": 100, "difference": 0.0, "allowed": 1e-3, "same": 100, "accuracy": 0.9, "bytes": 1, "latency": {}}
    return checks.Measurements(**(base | changes))


def test_int8_may_cost_what_is_allowed_and_no_more():
    checks.demand_worth(found(accuracy=0.89), found(), max_loss=0.02)
    with pytest.raises(RunError, match=r"costs 3.00 points of accuracy \(0.9000 -> 0.8700\)"):
        checks.demand_worth(found(accuracy=0.87), found(), max_loss=0.02)


def test_differences_are_measured_by_the_size_of_logits_that_mean_something():
    assert checks.size(torch.tensor([[0.1, -0.2]])) == 1.0
    assert checks.size(torch.tensor([[-1e9, -25.0, 3.0]])) == 25.0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"client": 4}, "there is no client 4.*\n.*clients 0 to 3"),
        ({"client": -1}, "there is no client -1"),
        ({"format": "tflite"}, "there is no format 'tflite'.*\n.*safetensors, pt2, onnx"),
        ({"format": "pt2", "int8": True}, "--int8 is for onnx only, not for pt2"),
        ({"format": "pt2", "out": Path("student.bin")}, "does not end in .pt2"),
        ({"max_loss": 2}, "--max-loss 2 is no share"),
    ],
)
def test_mistakes_on_the_command_line(demo, asked, words):
    with pytest.raises(ConfigError, match=words):
        main(Export(run="demo", runs=demo.parent, **asked))


def test_a_run_without_a_global_student_names_its_clients(play):
    run = play("own", "strategy=local", "students=mlp")
    with pytest.raises(ConfigError, match=r"'local' has no global student.*\n.*--client 0 to --client 3"):
        export(run)


def test_a_client_that_never_trained_has_no_student(play):
    run = play("few", "strategy=local", "students=mlp", "clients_per_round=1", "rounds=1")
    trained = {row["client"] for row in ledger.rows(run / "clients.jsonl") if row["state"] == "ok"}
    idle = min({0, 1, 2, 3} - trained)
    with pytest.raises(RunError, match=f"client {idle} has no student yet: in 1 rounds"):
        export(run, client=idle)


def copy(run: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(run), str(to)], check=True)
    return to


def test_a_run_without_a_commit(demo, tmp_path):
    run = copy(demo, tmp_path / "young")
    subprocess.run(["rm", "-r", str(run / "checkpoints")], check=True)
    with pytest.raises(CheckpointError, match=r"the run has no checkpoint yet"):
        export(run)


def test_other_data_than_the_run_had(demo, tmp_path):
    run = copy(demo, tmp_path / "moved")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "partition_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="the partition differs from that of the run"):
        export(run)


def test_a_missing_package_is_named_with_its_extra(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    monkeypatch.setitem(sys.modules, "onnxscript", sys)
    with pytest.raises(DataError, match=r"needs the package onnxruntime.*\n.*pip install 'fedkd\[export\]'"):
        main(Export(run=str(demo), format="onnx"))


# --- where it goes -----------------------------------------------------------------------------------------------


def test_the_same_command_twice_gives_the_same_bytes(demo):
    first = export(demo).read_bytes()
    assert export(demo).read_bytes() == first


@pytest.mark.parametrize("kind", FORMATS)
def test_another_students_file_is_not_overwritten(demo, made, tmp_path, kind):
    place = tmp_path / f"a.{kind}"
    shutil.copy(made(demo, kind), place)
    before = place.read_bytes()
    with pytest.raises(FolderError, match="is no export of this student"):
        export(demo, kind, client=1, out=place)
    assert place.read_bytes() == before
    place.write_text("a diary")
    with pytest.raises(FolderError, match="is not overwritten"):
        export(demo, kind, out=place)
    assert [*tmp_path.iterdir()] == [place]


def test_the_same_students_file_is_written_anew(demo, tmp_path):
    place = export(demo, out=tmp_path / "a.safetensors")
    assert export(demo, out=place) == place
    assert [*tmp_path.iterdir()] == [place]


def test_out_may_be_a_folder(demo, tmp_path):
    assert main(Export(run=str(demo), quiet=True, json=True, out=tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["global.safetensors"]


# --- what is said ------------------------------------------------------------------------------------------------


def test_the_screen_says_what_was_found(demo, capsys):
    assert main(Export(run=str(demo))) == 0
    out = capsys.readouterr().out
    assert f"export    {demo}/export/global.safetensors\n" in out
    assert "student   global of round 2 of 2: fedgen-cnn" in out
    assert "checked   355 held-out samples: logits differ by at most 0.0e+00" in out
    assert f"accuracy  {said(demo):.4f}   (the run's ledger says {said(demo):.4f})" in out
    assert re.search(r"size      0.0\d\d MB   ms per sample: [\d.]+ at batch 1   [\d.]+ at batch 32", out)
    assert "warn" not in out


def test_json_is_one_object_and_alone_on_stdout(demo, capsys):
    assert main(Export(run=str(demo), json=True)) == 0
    caught = capsys.readouterr()
    assert json.loads(caught.out)["accuracy"] == {"ledger": said(demo), "export": said(demo)}
    assert "checked" in caught.err


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_the_examples_of_the_docs_run_as_they_stand(demo, made, monkeypatch, capsys):
    """One after another, each with names of its own."""
    for kind in FORMATS:
        need(kind)
        made(demo, kind)
    assert [len(code.splitlines()) <= 10 for code in examples()] == [True] * len(FORMATS)
    monkeypatch.chdir(demo.parents[1])
    capsys.readouterr()
    for code in examples():
        exec(code, {})
    assert capsys.readouterr().out.split() == expected(demo) * len(FORMATS)


def expected(run: Path) -> list[str]:
    """The labels that the run's student gives the first eight digits."""
    from sklearn import datasets

    its = served(run)
    x = torch.from_numpy(datasets.load_digits().images[:8, None]).float().mul_(0.125).add_(-1.0)
    logits = its.assembly.site.student(its.job).eval()(x)
    return [its.assembly.dataset.labels[label] for label in logits.argmax(1)]


def test_without_training_data_at_hand_there_is_no_int8(demo):
    its = served(demo)
    none = dataclasses.replace(its.assembly.site, train_index={0: torch.empty(0, dtype=torch.int64)})
    bare = dataclasses.replace(its, assembly=dataclasses.replace(its.assembly, site=none))
    with pytest.raises(RunError, match="no training data to calibrate int8"):
        bare.training(512)


def test_a_large_test_set_is_thinned_evenly():
    assert serving._thinned(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert serving._thinned(torch.arange(3), 4).tolist() == [0, 1, 2]
