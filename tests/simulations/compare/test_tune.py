"""What `--tune` stands for: which method is tried with what, what is refused, and what is said about the choice."""

import re

import fabricated
import pytest

from fedkd.errors import ConfigError
from simulations.analysis import candidates, cells, choices, metric, plan, sentences
from simulations.compare import tune

GRID = "data=digits clients=2 rounds=2 train.steps=1 students=mlp strategy=fedavg,fedprox seed=1"
MU = "tune.fedprox.strategy.mu=0.01,0.1,1"


def asked(*tuned, text=GRID):
    return cells.ask(text.split(), tune=tuned)


def tried(*tuned, text=GRID):
    found = asked(*tuned, text=text)
    return candidates.parse(found.tune, found)


def test_a_key_alone_is_tried_for_all_methods():
    each = (("train.lr=0.1",), ("train.lr=1",))
    assert tried("lr=0.1,1") == tried("tune.train.lr=0.1,1") == {"fedavg": each, "fedprox": each}


def test_a_method_before_the_key_is_tried_alone():
    own = tuple((f"strategy.mu={mu}",) for mu in ("0.01", "0.1", "1"))
    assert tried(MU) == tried(MU.removeprefix("tune.")) == {"fedavg": ((),), "fedprox": own}
    assert tried(MU, "lr=1,2")["fedavg"] == (("train.lr=1",), ("train.lr=2",))
    assert len(tried(MU, "lr=1,2")["fedprox"]) == 6


def test_values_for_one_method_replace_those_for_all_methods():
    assert tried("lr=1,2", "fedprox.lr=3,4,5")["fedprox"] == (("train.lr=3",), ("train.lr=4",), ("train.lr=5",))


def test_tuning_may_be_a_word_of_the_command_line():
    assert tried(text=f"{GRID} {MU}") == tried(MU)


def test_a_strategy_means_all_methods_that_use_it_and_case_does_not_matter():
    text = GRID.replace("strategy=fedavg,fedprox", "strategy=fedprox strategy.mu=0.1,1")
    assert [len(each) for each in tried("fedprox.lr=1,2", text=text).values()] == [2, 2]
    assert len(tried("fedprox, mu=0.1.lr=1,2", text=text)["fedprox, mu=0.1"]) == 2
    assert tried("FedProx.lr=1,2") == tried("fedprox.lr=1,2")


def test_a_file_has_its_own_grids_and_words_after_it_replace_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: data=digits\nsettings: {even: partition=iid}\nmethods: {A: strategy=fedavg, P: strategy=fedprox}\n"
        "tune: {lr: [0.1, 1], P.strategy.mu: '0.01,0.1'}\ntune_seeds: 2\n"
    )
    found = cells.ask([f"comparison={path}"])
    assert (found.tune, found.tune_seeds) == (("lr=0.1,1", "P.strategy.mu=0.01,0.1"), 2)
    assert cells.ask([f"comparison={path}", "tune.lr=5,6"]).tune == ("P.strategy.mu=0.01,0.1", "tune.lr=5,6")
    assert cells.ask([f"comparison={path}"], tune_seeds=1).tune_seeds == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tune.fedprx.strategy.mu=1,2", "'fedprx' is neither a method nor a key.*did you mean 'fedprox'"),
        ("trian.lr=1,2", "did you mean 'train'"),
        ("tune.fedprox.strategy.mux=1,2", "unknown key 'strategy.mux'.*did you mean 'strategy.mu'"),
        ("tune.fedavg.strategy.mu=1,2", "unknown key 'strategy.mu'"),
        ("tune.fedprox.strategy.mu=1", "strategy.mu has only one value"),
        ("tune.fedprox.strategy.mu", "is not a list"),
        ("fedprox.=1", "names no key"),
        ("tune.fedprox.train.steps=1,2", "train.steps is both set and tuned"),
        ("tune.fedprox.partition.alpha=1,2", "cannot be tuned"),
    ],
)
def test_what_cannot_be_tuned_is_told_with_the_nearest_name(text, says):
    with pytest.raises(ConfigError) as refused:
        tune.ask(asked(text), None, lambda: None)
    assert re.search(says, str(refused.value), re.DOTALL), str(refused.value)


def test_only_methods_with_a_grid_are_tried_and_only_over_their_own():
    found = tune.ask(asked(MU), None, lambda: None)
    trials = found.trials()
    assert [cell.method for cell in trials] == ["fedprox"] * 3
    assert [cell.overrides[-2] for cell in trials] == ["strategy.mu=0.01", "strategy.mu=0.1", "strategy.mu=1"]
    row = {"setting": "", "method": "fedprox", "tried": [], "chosen": ["strategy.mu=1"]}
    chosen = found.grid([row])
    assert chosen.resolved["", "fedprox"].config.strategy["mu"] == 1
    assert "mu" not in chosen.resolved["", "fedavg"].config.strategy


def row(method="fedprox", values=((0.5,), (0.7,), (0.6,)), chosen=1):
    each = [
        {"words": [f"strategy.mu={mu}"], "values": list(its)} for mu, its in zip((0.01, 0.1, 1), values, strict=True)
    ]
    return {"setting": "", "method": method, "tried": each, "chosen": each[chosen]["words"]}


def tuned(*rows):
    return choices.from_plan({"seeds": [1], "metric": "global last10"}, rows)


def test_the_screen_tells_what_was_tried_what_it_gave_and_what_was_taken():
    assert list(tuned(row()).lines()) == ["fedprox: strategy.mu = 0.1 of 0.01, 0.1, 1 (50.00, 70.00, 60.00)"]


def test_a_choice_at_the_edge_is_told_on_the_line_and_among_the_cautions():
    found = tuned(row(values=((0.5,), (0.6,), (0.7,)), chosen=2))
    assert next(found.lines()).endswith("at the edge: strategy.mu = 1 is the largest that was tried")
    verdict = fabricated.verdict(fabricated.members(methods=("fedavg", "fedprox")), tuned=found)
    said = " ".join(sentences.cautions(verdict))
    assert "strategy.mu = 1 is the largest that was tried, so a value beyond it may be better: fedprox" in said
    assert "unequal tuning budgets; values tried per method: fedavg none; fedprox 3" in said


def test_a_value_within_what_was_tried_and_words_have_no_edge():
    assert not list(tuned(row()).choices[0].edges())
    each = [{"words": [f"train.optimiser={name}"], "values": [0.5]} for name in ("sgd", "adam")]
    assert not list(tuned({**row(), "tried": each, "chosen": ["train.optimiser=sgd"]}).choices[0].edges())


def test_a_candidate_that_failed_under_a_seed_is_never_the_choice():
    trial = choices.Trial(("train.lr=1",), (0.9, None))
    assert trial.score is None
    assert choices.score(trial, metric.parse("global last10")) == "failed"
    assert not tuned(row(values=((None,), (None,), (None,)), chosen=0)).choices[0].is_made


def test_a_plan_keeps_the_grid_of_each_method():
    found = tune.ask(asked(MU), None, lambda: None)
    assert found.note()["candidates"]["fedavg"] == [[]]
    made = plan.make(found.grid(()), plan.fingerprint(asked(MU).overrides, found.candidates), "fedkd compare")[0]
    assert plan.tried_before(made) == {"fedavg": [()], "fedprox": [()]}
    assert plan.tried_before(plan.replace(made, tuning=found.note()))["fedprox"][2] == ("strategy.mu=1",)
