"""An exported student survives its file to the last bit, and no file that is not whole is taken for one."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor

from fedkd import seeds, student
from fedkd.errors import DataError
from fedkd.models import exported, predictors, students
from fedkd.models.exported import Exported

SHAPE, CLASSES = (1, 8, 8), 3
LABELS = ("cat", "dog", "naïve")
FORM = {"name": "resnet8", "shape": SHAPE, "classes": CLASSES, "norm": "batch"}


def build(number: int = 0) -> student.Student:
    stream = seeds.stream(number, "init")
    made = student.build(lambda: students.make("resnet8", SHAPE, CLASSES), stream)
    with torch.no_grad():
        for value in made.statistics.values():
            value.mul_(0.1).add_(0.01 * torch.rand(value.shape, generator=stream.child(1).torch()))
    return made.eval()


def module(rule: predictors.Predictor | None = None, members: int = 1) -> Exported:
    return Exported([build(n) for n in range(members)], (2 / 16,), (-1.0,), rule or predictors.SingleModel()).eval()


def save(path: Path, made: Exported, *, entries: dict[str, Tensor] | None = None, **about: str) -> Path:
    kept = made.entries if entries is None else entries
    said = {**exported.make(FORM, LABELS, made.rule, kept, {"run": "pilot"}), **about}
    if "sha256" not in about:
        said["sha256"] = exported.digest(said, kept)  # a forger would do the same
    safetensors.torch.save_file(dict(kept), path, said)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "a.safetensors", module())


def images(count: int = 9) -> Tensor:
    return torch.randint(0, 17, (count, *SHAPE), generator=seeds.stream(0, "x").torch()).to(torch.uint8)


RULES = [
    predictors.SingleModel(),
    predictors.PriorAdjusted(torch.tensor([0.5, -1.0, -2.0])),
    predictors.Prototypes(torch.linspace(0, 1, CLASSES * 64).view(CLASSES, 64), torch.tensor([True, False, True])),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_loaded_says_the_same_to_the_last_bit(tmp_path, rule):
    made = module(rule)
    loaded, labels = exported.load(save(tmp_path / "a.safetensors", made))
    assert labels == LABELS
    tiny.assert_same(tiny.canonical(loaded(images())), tiny.canonical(made(images())))
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_an_ensemble_keeps_its_members_and_their_shares(tmp_path, combine):
    made = module(predictors.Ensemble(torch.tensor([0.75, 0.25]), combine), members=2)
    loaded, _ = exported.load(save(tmp_path / "a.safetensors", made))
    tiny.assert_same(tiny.canonical(loaded(images())), tiny.canonical(made(images())))


def test_a_loaded_student_can_be_traced(path):
    """No counter of BatchNorm is left on the meta device."""
    loaded, _ = exported.load(path)
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}
    torch.export.export(loaded, (images(2),))


def test_bytes_are_scaled_inside():
    made = module()
    by_hand = made.members[0](images().float().mul_(2 / 16).add_(-1.0))
    assert by_hand.std(0).min() > 0.01  # images matter
    tiny.assert_same(tiny.canonical(made(images())), tiny.canonical(by_hand))


@pytest.mark.parametrize("kept", [0, 7, 500, -1, -5000])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="damaged"):
        exported.load(path)


@pytest.mark.parametrize("place", [-3, -4000, -100_000])
def test_one_flipped_bit_is_found(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.*SHA-256 differs"):
        exported.load(path)


def test_changed_labels_are_found(tmp_path, path):
    about = exported.metadata(path)
    forged = {**about, "labels": json.dumps(["dog", "cat", "naïve"])}
    safetensors.torch.save_file(module().entries, tmp_path / "b.safetensors", forged)
    with pytest.raises(DataError, match="SHA-256"):
        exported.load(tmp_path / "b.safetensors")


def less(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in entries.items() if name != "members.0.head.bias"}


def more(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**entries, "members.0.tail.bias": torch.zeros(1)}


def wider(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**entries, "members.0.head.bias": torch.zeros(4)}


def doubles(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**entries, "members.0.head.bias": torch.zeros(3, dtype=torch.float64)}


def endless(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**entries, "members.0.head.bias": torch.tensor([0.0, float("nan"), 0.0])}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (less, "lacks 1 entries.*members.0.head.bias"),
        (more, "has 1 entries that its student does not have.*members.0.tail.bias"),
        (wider, r"'members.0.head.bias' is \(4,\) torch.float32, should be \(3,\) torch.float32"),
        (doubles, "is .*torch.float64, should be"),
        (endless, "'members.0.head.bias' has values that are not finite"),
    ],
)
def test_entries_that_are_not_the_architectures_are_refused(tmp_path, spoil, words):
    made = module()
    with pytest.raises(DataError, match=words):
        exported.load(save(tmp_path / "a.safetensors", made, entries=spoil(made.entries)))


@pytest.mark.parametrize(
    "about",
    [
        {"architecture": json.dumps({**FORM, "name": "gpt"})},
        {"architecture": json.dumps({**FORM, "shape": [1, 10**7, 10**7]})},
        {"architecture": json.dumps({**FORM, "shape": [1, -8, 8]})},
        {"architecture": json.dumps({**FORM, "classes": 10**9})},
        {"architecture": json.dumps({**FORM, "norm": "none"})},
        {"architecture": "[]"},
        {"architecture": "{"},
        {"labels": '["a"]'},
        {"rule": "oracle"},
        {"rule_options": '{"device": "cuda"}'},
        {"rule_options": "3"},
    ],
    ids=str,
)
def test_words_that_cannot_be_are_refused(tmp_path, about):
    with pytest.raises(DataError, match="cannot be"):
        exported.load(save(tmp_path / "a.safetensors", module(), **about))


def test_another_file_is_named_for_what_it_is_not(tmp_path):
    pickled = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(3)}, pickled)
    stranger = tmp_path / "b.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, stranger)
    for place, words in ((pickled, "damaged"), (stranger, "'nothing' of its format"), (tmp_path / "c", "no file")):
        with pytest.raises(DataError, match=words):
            exported.load(place)
        assert exported.metadata(place) == {}


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    place = tmp_path / "a.safetensors"
    place.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        exported.load(place)
    assert not (tmp_path / "exploded").exists()


def test_a_device_without_the_heavy_packages_can_load_one(path):
    heavy = ["ray", "sklearn", "scipy", "matplotlib", "tensorboard", "jinja2", "flwr", "pydantic", "onnx"]
    code = f"""
import sys
for name in {heavy!r}: sys.modules[name] = None  # importing it now raises
from fedkd.models import exported
print(exported.load({str(path)!r})[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(LABELS), done.stderr


@pytest.mark.parametrize(("name", "shape", "vocabulary", "scale"), [("mlp", (4,), 0, (2.0,) * 4), ("gru", (5,), 9, ())])
def test_table_rows_and_token_ids_are_taken_as_stored(tmp_path, name, shape, vocabulary, scale):
    made = student.build(lambda: students.make(name, shape, 3, vocabulary=vocabulary), seeds.stream(0, "init"))
    module = Exported([made], scale, scale, predictors.SingleModel(), len(shape)).eval()
    form = {"name": name, "shape": shape, "classes": 3, "norm": "batch", "vocabulary": vocabulary}
    about = exported.make(form, "abc", module.rule, module.entries, {})
    safetensors.torch.save_file(module.entries, tmp_path / "a.safetensors", about)
    loaded, labels = exported.load(tmp_path / "a.safetensors")
    x = torch.randint(0, 9, (6, *shape))
    x = x if vocabulary else x.float()
    assert labels == ("a", "b", "c")
    assert torch.equal(loaded(x), module(x))
    assert torch.equal(module(x), made.eval()(x * 2 + 2 if scale else x))
