import dataclasses
import json
import typing

import numpy as np
import pytest

from fedkd.configuration import compose, plugins
from fedkd.off import Off
from simulations import assemble, cautions
from simulations.cli import main
from simulations.run import runs
from simulations.run.options import Options

SMALL = ["clients=2", "rounds=1", "train.steps=1", "students=mlp", "evaluate.probe=0", "proxy.size=20"]
HALVES = [("strategies", name) for name in plugins.names("strategies")] + [
    ("clients", name) for name in plugins.names("clients")
]


def notes(*words):
    return assemble.assemble(compose.resolve([*SMALL, *words]).config).notes


def marked():
    """Every hyper-parameter that its half marks as able to switch the method off."""
    for half, name in HALVES:
        found = plugins.strategy(name) if half == "strategies" else plugins.client(name)
        for key, hint in typing.get_type_hints(found.Config, include_extras=True).items():
            for mark in getattr(hint, "__metadata__", ()):
                if isinstance(mark, Off):
                    yield pytest.param(found, key, mark, id=f"{name}.{key}")


@pytest.mark.parametrize(("half", "key", "mark"), list(marked()))
def test_a_hyper_parameter_that_switches_its_method_off_is_told_and_the_default_is_not(half, key, mark):
    assert not list(half(half.Config()).notes(None))
    (text,) = half(half.Config(**{key: mark.at})).notes(None)
    assert text == f"strategy.{key} = 0 switches the method off: what is left is {mark.left}"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["strategy=fedprox", "strategy.mu=0"], "strategy.mu = 0 switches the method off: what is left is FedAvg"),
        (["strategy=fedbn"], "no BatchNorm layer that could stay with the clients: what is left is FedAvg"),
        (["strategy=feddf", "proxy=held-out", "strategy.distil_steps=0"], "strategy.distil_steps = 0 switches"),
        (["strategy.alpha=0", "strategy.beta=0"], "clients learn nothing from the generator: what is left is FedAvg"),
        (["strategy=knfu-generated", "strategy.alpha=0", "strategy.gamma=0"], "so latents teach nothing"),
        (["strategy=flower-fedavgm", "strategy.server_momentum=null"], "what is left is Flower's FedAvg"),
        (["parts=[anchor]", "part.anchor.weight=0"], "part.anchor.weight = 0 switches off the part"),
        (["strategy=fedavg", "part.anchor.weight=3"], "part.anchor has no effect unless `parts` names it"),
        (["strategy=fedavg", "train.epochs=3"], "train.epochs = 3 has no effect while train.steps = 1"),
        (["strategy=fedavg", "train.optimiser=adam", "train.momentum=0.9"], "train.momentum = 0.9 has no effect"),
        (["strategy=fedavg", "train.schedule=step"], "train.schedule = step has no effect while train.lr_decay = 1"),
        (["strategy=fedavg", "train.schedule=constant", "train.lr_decay=0.9"], "train.lr_decay = 0.9 has no effect"),
        (["train.optimiser=adagrad", "train.beta1=0.8"], "train.beta1 and train.beta2 have no effect"),
        (["strategy=fedavg", "train.moments=keep"], "train.moments = keep has no effect"),
        (["strategy=fedprox", "proxy=held-out"], "proxy = held-out has no effect: strategy 'fedprox' uses no"),
        (["strategy=fedavg", "students.statistics=local"], "students.statistics = local has no effect"),
    ],
)
def test_a_setting_that_does_nothing_is_told_at_the_start(words, text):
    assert any(text in note for note in notes(*words)), notes(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg"],
        ["strategy=fedbn", "students=fedgen-cnn"],
        ["strategy=fedprox"],
        ["strategy=fedgen"],
        ["strategy=fedavg", "parts=[teacher]", "part.teacher.teacher=ema", "part.ema.decay=0.9"],
    ],
)
def test_a_run_in_which_every_setting_has_an_effect_has_no_notes(words):
    assert notes(*words) == ()


def test_a_note_is_shown_and_kept_among_the_events(tmp_path, capsys):
    words = [*SMALL, "strategy=fedprox", "strategy.mu=0", "engine=inline"]
    runs.start(compose.resolve(words), runs=tmp_path, name="run", options=Options())
    assert "note   strategy.mu = 0 switches the method off: what is left is FedAvg\n" in capsys.readouterr().out
    assert '"event":"note"' in (tmp_path / "run" / "events.jsonl").read_text()


def test_classes_that_nobody_holds_are_named():
    counts = np.array([[1, 0, 0], [2, 0, 5]])
    assert list(cautions.absent_labels(counts, "abc")) == ["no client holds a training sample of 1 of 3 classes: b"]
    assert not list(cautions.absent_labels(counts + 1, "abc"))
    (text,) = cautions.absent_labels(np.zeros((1, 14), int), [f"c{i}" for i in range(14)])
    assert text.endswith("14 of 14 classes: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 4 more")


def test_own_data_that_lack_a_class_are_warned_of_and_give_a_public_set(tmp_path, capsys):
    y = np.repeat([0, 2], 40)
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).integers(0, 255, (80, 1, 8, 8), np.uint8), y=y)
    own = [f"data.root={tmp_path}/own.npz", "data=own", "data.labels=[cat, dog, cow]", "data.shape=[1, 8, 8]"]
    words = [*own, *SMALL, "strategy=dsfl", "proxy=held-out", "partition=iid", "engine=inline"]
    assert main.main(["run", *words, "--out", str(tmp_path / "run"), "--json"]) == 0
    shown = capsys.readouterr()
    assert "warn   no client holds a training sample of 1 of 3 classes: dog\n" in shown.err
    assert json.loads(shown.out)["status"] == "done"
    assert main.main(["partition", *own, "partition=iid", "clients=2", "--json"]) == 0
    assert "1 of 3 classes: dog" in capsys.readouterr().err


def test_every_mark_is_a_value_that_its_key_may_have():
    for parameter in marked():
        half, key, mark = parameter.values
        assert dataclasses.replace(half.Config(), **{key: mark.at})
