"""From words to settings, methods, seeds and configurations; every contradiction is told before anything runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.configuration import compose
from fedkd.errors import ConfigError
from simulations.analysis import cells, grid, metric, named_comparison


def asked(text, **options):
    return cells.ask(text.split(), **options)


def test_a_product_of_settings_methods_and_seeds():
    found = asked("preset=fedgen-mnist strategy=fedavg,fedprox partition.alpha=0.1,0.5 seed=1..3,7")
    assert found.settings == ("alpha 0.1", "alpha 0.5")
    assert found.methods == ("fedavg", "fedprox")
    assert found.seeds == (1, 2, 3, 7)
    assert found.overrides["alpha 0.5", "fedprox"] == ("preset=fedgen-mnist", "strategy=fedprox", "partition.alpha=0.5")


@given(st.permutations(["rounds=2,3", "strategy=fedavg,fedgen", "clients=2,4", "seed=5..6", "data=digits"]))
def test_words_keep_their_order_and_lose_only_the_seed(words):
    found = grid.parse(words)
    keys = [word.partition("=")[0] for word in words if not word.startswith("seed")]
    assert all([word.partition("=")[0] for word in its] == keys for its in found.overrides.values())
    assert len(found.overrides) == 8 == len(set(found.overrides.values()))
    assert found.seeds == (5, 6)


def test_one_setting_has_no_label_and_seeds_have_a_default():
    found = asked("strategy=fedavg,fedgen")
    assert found.settings == ("",)
    assert found.seeds == (1, 2, 3)


def test_lists_below_strategy_multiply_the_methods():
    found = asked("strategy=fedgen strategy.variant=paper,code")
    assert found.methods == ("fedgen, variant=paper", "fedgen, variant=code")
    assert asked("strategy=fedprox,moon strategy.mu=0.1,1").methods == (
        "fedprox, mu=0.1",
        "fedprox, mu=1",
        "moon, mu=0.1",
        "moon, mu=1",
    )


def test_a_strategy_that_a_preset_chooses_has_its_name():
    assert asked("preset=knfu-mnist strategy.beta=0,10").methods == ("knfu, beta=0", "knfu, beta=10")


def test_labels_have_whole_keys_where_last_parts_are_the_same():
    found = asked("strategy=fedavg part.teacher.weight=0,1 part.ema.weight=0,0.5")
    assert found.settings[0] == "part.teacher.weight 0, part.ema.weight 0"


def test_every_cell_has_the_configuration_of_its_words():
    found = cells.check(asked("data=digits strategy=fedavg,fedprox rounds=2,3 seed=4,9"))
    for pair, words in found.overrides.items():
        for seed in found.seeds:
            assert found.configuration(pair, seed).digest() == compose.resolve([*words, f"seed={seed}"]).digest()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "no override has a list"),
        ("strategy=fedavg", "no override has a list"),
        ("strategy=fedavg seed=5..5", "no override has a list"),
        ("strategy=fedavg,fedgen rounds=2 rounds=3", "rounds is given 2 times"),
        ("preset=fedgen-mnist preset=knfu-mnist strategy=fedavg,fedgen", "preset is given 2 times"),
        ("strategy=fedavg,fedgen engine.workers=1,2", "engine.workers cannot be a list"),
        ("strategy=fedavg,fedgen engine=inline,ray", "engine cannot be a list"),
        ("strategy=fedavg,fedgen data.root=/a,/b", "data.root cannot be a list"),
        ("strategy=fedavg,fedgen evaluate.on=test,validation", "evaluate.on cannot be a list"),
        ("strategy=fedavg,fedgen seed=one,two", "seed = one"),
        ("strategy=fedavg,fedgen seed=-1..2", "seed = -1"),
        ("strategy=fedavg,fedavg", "has fedavg twice"),
        ("strategy=fedavg,fedprox,knfu strategy.mu=1", "fedavg, knfu lack it"),
        ("strategy=fedavg,fedprox strategy.mu=0.1,1", "fedavg lacks it"),
        ("strategy=fedavg,nix rounds=0,2", "strategy = nix"),
        ("strategy=fedavg,fedgen rounds=0,-1,2", "2 problems"),
        ("rounds=1..1000 seed=1..1000", "at most 2000"),
        ("comparison=nix", "there is no comparison"),
        ("comparison=costs comparison=knfu-mnist", "given 2 times"),
        ("comparison=costs strategy=fedavg", "strategy cannot be chosen"),
        ("comparison=costs rounds=2,3", "rounds is a list"),
        ("strategy=fedavg,fedgen partition=iid,dirichlet partition.alpha=0.5", "unknown key 'partition.alpha'"),
        (
            "strategy=fedgen strategy.variant=reference strategy.teacher=per_label,per_client data=digits data=mnist",
            "data",
        ),
    ],
)
def test_grids_that_make_no_sense_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        cells.check(asked(words))


def test_two_names_of_one_experiment_are_refused(tmp_path):
    path = tmp_path / "same.yaml"
    path.write_text(
        "base: data=digits\nsettings: {a: ''}\nmethods: {x: strategy=fedavg, y: strategy=fedavg rounds=30}\n"
    )
    with pytest.raises(ConfigError, match="'x' in 'a' and 'y' in 'a' are the same experiment"):
        cells.check(asked(f"comparison={path}"))


def test_a_method_that_is_evaluated_less_often_than_the_others_is_refused(tmp_path):
    path = tmp_path / "seldom.yaml"
    path.write_text(
        "base: data=digits\nsettings: {a: '', b: clients=4}\n"
        "methods: {x: strategy=fedavg, y: strategy=fedprox evaluate.every=5}\n"
    )
    with pytest.raises(ConfigError, match=r"'y' has evaluate\.every = 5, 'x' has 1") as found:
        cells.check(asked(f"comparison={path}"))
    assert len(found.value.mistakes) == 1


@pytest.mark.parametrize("name", compose.options("comparison"))
def test_a_comparison_of_ours_evaluates_all_its_methods_alike(name):
    """From its words alone: the data need not be there."""
    of_method: dict[str, dict[str, set[str]]] = {}
    for (setting, method), words in asked(f"comparison={name}").overrides.items():
        of_method.setdefault(setting, {})[method] = {word for word in words if word.startswith("evaluate.")}
    for its in of_method.values():
        assert len({frozenset(words) for words in its.values()}) == 1, its


@pytest.mark.parametrize(
    ("method", "options"), [("nix", {}), ("local", {"metric": "nix"}), ("", {"metric": "global no"})]
)
def test_an_unknown_baseline_or_metric_is_refused(method, options):
    with pytest.raises(ConfigError, match=r"baseline 'nix'|metric"):
        cells.check(asked("strategy=fedavg,local", baseline=method or None, **options))


def test_the_baseline_is_fedavg_unless_another_one_is_named():
    assert cells.check(asked("data=digits strategy=local,fedavg")).baseline == "fedavg"
    assert cells.check(asked("data=digits strategy=local,fedprox")).baseline == "local"
    assert cells.check(asked("data=digits strategy=local,FedAvg".lower(), baseline="LOCAL")).baseline == "local"


def test_the_metric_is_of_what_all_strategies_serve():
    assert cells.check(asked("data=digits strategy=fedavg,fedgen")).metric == "global last10"
    assert cells.check(asked("data=digits strategy=fedavg,local")).metric == "clients.mean last10"
    assert cells.check(asked("data=digits strategy=fedavg,fedgen", metric="clients.pooled top5")).primary.rule == "top5"


NAMED = """# two of them
base: data=digits clients=4
settings:
  even: partition=iid
  skewed: ""
methods:
  A: strategy=fedavg
  B: strategy=fedgen strategy.variant=paper
seeds: [0, 1]
columns: {worst: clients.worst_decile last}
metric: clients.mean last
baseline: B
target: 0.5
published: {even: {A: "90.1 ± 0.2"}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(NAMED)
    return path


def test_a_file_says_it_all_and_words_after_it_override(file):
    found = asked(f"comparison={file} rounds=2 clients=3 seed=5..7")
    assert found.about == "two of them"
    assert found.overrides["even", "A"] == (
        "data=digits",
        "clients=4",
        "partition=iid",
        "strategy=fedavg",
        "rounds=2",
        "clients=3",
    )
    assert found.seeds == (5, 6, 7)
    assert asked(f"comparison={file}").seeds == (0, 1)
    assert (found.baseline, found.metric, found.target) == ("B", "clients.mean last", 0.5)
    assert str(found.columns["worst"]) == "clients.worst_decile last"
    checked = cells.check(found)
    assert checked.resolved["skewed", "B"].config.clients == 3
    assert checked.published == {"even": {"A": "90.1 ± 0.2"}}
    assert asked(f"comparison={file}", baseline="A").baseline == "A"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("base: data=digits clients=4\n", "", "base is missing"),
        ("seeds", "seed", "unknown key 'seed'"),
        ("[0, 1]", "[0, 0]", "seeds has the wrong form"),
        ("[0, 1]", "[]", "seeds has the wrong form"),
        ("target: 0.5", "target: much", "target has the wrong form"),
        ("worst_decile last", "worst_decile newest", "has no rule"),
        ("published: {even: {A", "published: {odd: {A", "published names 'odd'"),
        ("published: {even: {A", "published: {even: {C", "published names 'C'"),
        ("strategy=fedavg", "strategy='fedavg", "cannot be split"),
        ("baseline: B", "baseline: C", "baseline 'C'"),
    ],
)
def test_a_file_that_does_not_say_what_it_must_is_refused(file, old, new, says):
    file.write_text(NAMED.replace(old, new))
    with pytest.raises(ConfigError, match=says):
        cells.check(asked(f"comparison={file}"))


def test_comparisons_of_the_repository_are_whole():
    for name in named_comparison.names():
        found = asked(f"comparison={name}")
        assert found.about, name
        assert len(found.overrides) == len(found.settings) * len(found.methods)
        for setting, method in found.overrides:
            if setting == found.settings[0] or method == found.methods[0]:
                compose.check(found.overrides[setting, method])
        assert found.baseline in found.methods
        assert metric.parse(found.metric)


def test_a_grid_of_a_published_experiment_is_judged_as_it_was_and_beside_it():
    found = cells.check(asked("preset=fedgen-mnist strategy=fedavg,fedgen,local seed=1..3"))
    assert found.published == {"": {"fedavg": "90.16 ± 0.59", "fedgen": "93.03 ± 0.32"}}
    assert found.primary.is_optimistic
    assert "last 10 rounds" in found.columns
    other = cells.check(asked("preset=fedgen-mnist strategy=fedavg,fedgen", metric="global last10"))
    assert (other.published, other.metric) == (None, "global last10")
    assert cells.check(asked("preset=fedgen-mnist strategy=fedavg,fedgen rounds=5")).published is None
