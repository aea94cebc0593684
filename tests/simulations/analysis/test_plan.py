"""plan.yaml: what a comparison folder says of itself, what may change in it, and what is refused."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.errors import ConfigError, FolderError
from simulations.analysis import cells, plan
from simulations.run import provenance, run_folder

TRIED = [("train.lr=0.1",), ("train.lr=1",)]
WORDS = "data=digits clients=2 rounds=2 train.steps=1 students=mlp checkpoint.every=1 strategy=fedavg,fedprox"


def planned(text=f"{WORDS} seed=1..3", before=None, **options):
    grid = cells.check(cells.ask(text.split(), **options))
    return plan.make(grid, plan.fingerprint(grid.overrides, {}), f"fedkd compare {text}", before)[0]


@pytest.fixture(scope="module")
def usual():
    return planned()


@pytest.fixture
def folder(tmp_path):
    held = run_folder.hold(tmp_path / "skew")
    yield held
    held.release()


def test_a_plan_is_read_back_as_it_was_written(usual, folder):
    failed = {usual.cells[0].folder: 'a "quoted"\n<script>: text ✓'}
    odd = replace(
        usual, failed=failed, published={"": {"fedavg": "90.16 ± 0.59"}}, target=0.5, columns={"up": "bytes.up sum"}
    )
    odd.write(folder)
    assert plan.load(folder.path) == odd
    assert not list(folder.path.glob(".*.new"))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_the_plan(usual, text):
    lines = "".join(plan._lines(replace(usual, command=text, failed={text: text})))
    found = plan._plan(plan.strict_yaml.read(lines, "plan.yaml").plain)
    assert (found.command, found.failed) == (text, {text: text})


def test_cells_are_named_by_what_decides_their_results(usual):
    first = usual.cells[0]
    code = provenance.decisive()
    assert first.folder == f"runs/fedavg-s1-{first.digest[:8]}-{code[:6]}"
    assert len({cell.folder for cell in usual.cells}) == 6
    assert [cell.seed for cell in usual.cells] == [1, 1, 2, 2, 3, 3]
    assert (
        planned("strategy=fedavg,fedgen partition.alpha=0.1,0.5")
        .cells[0]
        .folder.startswith("runs/fedavg-alpha-0.1-s1-")
    )


def test_a_longer_seed_list_only_adds_cells_and_a_shorter_one_takes_none_away(usual):
    longer = planned(f"{WORDS} seed=1..5", before=usual)
    assert set(usual.cells) < set(longer.cells)
    assert longer.seeds == (1, 2, 3, 4, 5)
    assert longer.asked == usual.asked
    assert set(planned(f"{WORDS} seed=2..3", before=longer).cells) == set(longer.cells)


def test_what_is_asked_does_not_depend_on_the_order_of_words_or_on_the_analysis(usual):
    turned = planned(" ".join(reversed(WORDS.replace("fedavg,fedprox", "fedprox,fedavg").split())))
    assert turned.asked == usual.asked
    other = planned(metric="clients.mean last", baseline="fedprox")
    assert (other.asked, other.cells) == (usual.asked, usual.cells)
    assert planned(f"{WORDS} train.lr=0.1").asked != usual.asked


@pytest.mark.parametrize(
    ("words", "there", "here"),
    [
        (WORDS.replace("fedprox", "local"), "fedavg, fedprox", "fedavg, local"),
        (WORDS.replace("rounds=2", "rounds=2,3"), "fedavg, fedprox", "rounds 2; rounds 3"),
        (WORDS.replace("rounds=2", "rounds=3"), "rounds=2", "rounds=3"),
        (f"{WORDS} train.lr=0.1", "nothing of this", "train.lr=0.1"),
    ],
)
def test_another_grid_in_the_same_folder_is_refused_and_both_are_named(usual, words, there, here):
    with pytest.raises(ConfigError) as refused:
        plan.check_same(usual, cells.ask(words.split()).overrides, {})
    assert there in str(refused.value)
    assert here in str(refused.value)
    plan.check_same(usual, cells.ask(f"{WORDS} seed=9".split()).overrides, {})


def test_a_tuned_comparison_with_an_older_plan_can_be_continued(usual):
    """Then one list of candidates was written for all methods, and hashed."""
    old = replace(usual, tuning={"words": [list(words) for words in TRIED], "seeds": [1], "metric": "global last10"})
    pairs = sorted([*pair, sorted(set(its))] for pair, its in cells.ask(WORDS.split()).overrides.items())
    assert (
        plan.fingerprint(cells.ask(WORDS.split()).overrides, dict.fromkeys(old.methods, TRIED))
        == hashlib.sha256(json.dumps([pairs, TRIED]).encode()).hexdigest()
    )
    assert plan.tried_before(old) == dict.fromkeys(old.methods, TRIED)


def test_tuning_and_none_are_different_comparisons(usual):
    with pytest.raises(ConfigError, match="there no --tune, here --tune"):
        plan.check_same(usual, cells.ask(WORDS.split()).overrides, dict.fromkeys(usual.methods, TRIED))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("schema: 1", "schema: 2", r"another version wrote the comparison \(schema 2, here 1\)"),
        ("schema: 1\n", "", "is damaged"),
        ("methods:", "methods", "is damaged"),
        ("cells:", "cells: 5\nrows:", "is damaged"),
        ("seed: 1,", "sead: 1,", "is damaged"),
        ("folder: runs/", "folder: ../../runs/", "is damaged"),
    ],
)
def test_a_plan_of_another_version_or_a_damaged_one_is_refused(usual, folder, old, new, says):
    usual.write(folder)
    path = folder.path / "plan.yaml"
    path.write_text(path.read_text().replace(old, new))
    for read in (plan.load, plan.read):
        with pytest.raises(FolderError, match=says):
            read(folder.path)


def test_a_folder_that_is_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("notes", "file"):
        with pytest.raises(FolderError, match="is no comparison"):
            plan.load(tmp_path / name)
    with pytest.raises(FolderError, match="there is no comparison"):
        plan.read(tmp_path / "nothing")
    assert plan.load(tmp_path / "nothing") is None


def test_members_stand_where_the_plan_says_and_know_why_they_are_missing(usual, folder):
    replace(usual, failed={usual.cells[1].folder: "data: digits are damaged"}).write(folder)
    question, members = plan.read(folder.path)
    assert (question.name, question.methods, question.seeds) == ("skew", ("fedavg", "fedprox"), (1, 2, 3))
    assert str(question.metric) == "global last10"
    assert [member.state for member in members[:3]] == ["missing", "failed", "missing"]
    assert members[1].reason == "data: digits are damaged"
    assert members[0].overrides == usual.cells[0].overrides
    assert not any(member.is_done for member in members)
