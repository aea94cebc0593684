import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkd import strict_yaml
from fedkd.config import EvaluateConfig
from fedkd.configuration import compose, foreign_words, resolved
from fedkd.errors import ConfigError

FILES = {
    "config.yaml": "# base\ndata: digits\npartition: dirichlet\npartition.alpha: 0.1\nstudents: cnn\n"
    "strategy: toy\nengine: inline\nrounds: 7\n",
    "data/digits.yaml": "name: digits\n",
    "data/mnist.yaml": "name: mnist\n",
    "partition/dirichlet.yaml": "name: dirichlet\n",
    "partition/iid.yaml": "name: iid\n",
    "students/cnn.yaml": "name: fedgen-cnn\n",
    "engine/inline.yaml": "name: inline\n",
    "engine/ray.yaml": "name: ray\n",
    "strategy/fedavg.yaml": "name: fedavg\nclient: supervised\n",
    "strategy/toy.yaml": "name: fedavg\nclient: fedprox\nvariant: soft\nmu: 0.25\n"
    "variants:\n  soft: {decay: 0.5}\n  hard: {mu: 2, share: head}\n  plain: {}\n",
    "preset/small.yaml": "rounds: 3\nclients: 4\nstrategy: toy\nstrategy.mu: 1\n",
    "preset/smaller.yaml": "preset: small\nrounds: 2\n",
    "preset/circle.yaml": "preset: circle\n",
}


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    root = tmp_path_factory.mktemp("conf")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda text, name="my.yaml": (tmp_path / name).write_text(text)


def problem(conf, *args):
    with pytest.raises(ConfigError) as caught:
        compose.resolve(args, conf=conf)
    return caught.value.message()


# What wins, and where it comes from


def test_later_wins_over_files_and_presets(conf, write):
    write("rounds: 20\nclients: 30\n")
    assert compose.resolve([], conf=conf).config.rounds == 7
    assert compose.resolve(["preset=small"], conf=conf).config.rounds == 3
    assert compose.resolve(["preset=small", "my.yaml"], conf=conf).config.rounds == 20
    assert compose.resolve(["my.yaml", "preset=small"], conf=conf).config.rounds == 3
    assert compose.resolve(["my.yaml", "rounds=9"], conf=conf).config.rounds == 9
    assert compose.resolve(["rounds=9", "my.yaml"], conf=conf).config.rounds == 20


def test_every_value_has_a_source(conf, write):
    write("train:\n  lr: 0.5\n# comment\npartition.alpha: 3\n")
    found = compose.resolve(["preset=small", "my.yaml", "seed=4", "strategy.variant=hard"], conf=conf)
    assert found.sources.keys() == found.values().keys()
    assert {key: found.sources[key] for key in ("seed", "rounds", "clients", "train.lr", "partition.alpha")} == {
        "seed": "command line",
        "rounds": "preset small",
        "clients": "preset small",
        "train.lr": "my.yaml:2",
        "partition.alpha": "my.yaml:4",
    }
    assert found.sources["data.name"] == "conf/data/digits.yaml"
    assert found.sources["train.batch"] == "default (schema)"
    assert found.sources["strategy.share"] == "variant hard"
    assert found.sources["partition.min_samples"] == "default (schema)"


def test_a_value_replaces_all_that_is_below_it_and_what_is_above_it(conf, write):
    write("evaluate.every: 5\n")
    assert compose.resolve(["my.yaml", "evaluate.probe=3"], conf=conf).config.evaluate.every == 5
    found = compose.resolve(["my.yaml", "evaluate=null", "evaluate.probe=3"], conf=conf).config.evaluate
    assert found == EvaluateConfig(probe=3)


def test_a_chosen_group_replaces_what_was_there(conf):
    found = compose.resolve(["partition=iid"], conf=conf)
    assert found.config.partition == {"name": "iid", "samples": None, "test": "matched"}
    assert found.choices["partition"] == "iid"


def test_the_order_of_words_within_a_command_line_does_not_matter_to_groups(conf):
    one = compose.resolve(["strategy.mu=5", "strategy=toy"], conf=conf)
    other = compose.resolve(["strategy=toy", "strategy.mu=5"], conf=conf)
    assert one == other
    assert one.config.strategy["mu"] == 5.0


def test_a_preset_can_be_combined_with_another_strategy(conf):
    found = compose.resolve(["preset=small", "strategy=fedavg"], conf=conf)
    assert found.config.clients == 4
    assert found.config.strategy == {
        "name": "fedavg", "client": "supervised", "variant": None, "setting": "fedavg",
        "share": "all", "weighting": "examples",
    }  # fmt: skip


def test_a_preset_may_build_on_another(conf):
    found = compose.resolve(["preset=smaller"], conf=conf)
    assert (found.config.rounds, found.sources["rounds"]) == (2, "preset smaller")
    assert (found.config.clients, found.sources["clients"]) == (4, "preset small")


def test_files_and_the_command_line_share_one_grammar(conf, write):
    write("preset: small\ndata: mnist\ntrain: {lr: 0.5, batch: 8}\nstrategy: {mu: 3}\nengine.name: ray\n")
    words = ["preset=small", "data=mnist", "train={lr: 0.5, batch: 8}", "strategy={mu: 3}", "engine.name=ray"]
    assert compose.resolve(["my.yaml"], conf=conf).config == compose.resolve(words, conf=conf).config


def test_a_mapping_with_a_name_replaces_its_group_and_one_without_merges(conf, write):
    write("partition: {name: iid}\n")
    assert "alpha" not in compose.resolve(["my.yaml"], conf=conf).config.partition
    write("partition: {min_samples: 3}\n")
    partition = compose.resolve(["my.yaml"], conf=conf).config.partition
    assert (partition["alpha"], partition["min_samples"]) == (0.1, 3)


def test_null_is_a_value(conf, write):
    write("train.steps: null\n")
    assert compose.resolve(["my.yaml"], conf=conf).config.train.steps is None
    assert compose.resolve(["my.yaml", "train.steps=5"], conf=conf).config.train.steps == 5
    assert compose.resolve(["train.steps=null"], conf=conf).config.train.steps is None


# Variants


def strategy(conf, *args):
    return compose.resolve(args, conf=conf).config.strategy


def test_a_variant_lies_between_the_file_and_the_user(conf):
    assert strategy(conf)["decay"] == 0.5  # the file's own variant
    assert strategy(conf, "strategy=toy", "strategy.share=head")["decay"] == 0.5  # also where it is chosen again
    hard = strategy(conf, "strategy.variant=hard")
    assert (hard["mu"], hard["share"], hard["decay"]) == (2.0, "head", 0.0)  # the switches of `soft` are undone
    for words in (["strategy.mu=9", "strategy.variant=hard"], ["strategy.variant=hard", "strategy.mu=9"]):
        mine = strategy(conf, *words)
        assert (mine["mu"], mine["share"], mine["variant"]) == (9.0, "head", "hard")


def test_a_variant_chosen_later_wins_over_a_preset(conf):
    assert strategy(conf, "preset=small")["mu"] == 1.0
    assert strategy(conf, "preset=small", "strategy.variant=hard")["mu"] == 2.0
    assert strategy(conf, "preset=small", "strategy.variant=soft")["mu"] == 1.0  # the same as before changes nothing
    assert strategy(conf, "preset=small", "strategy.variant=plain")["mu"] == 1.0


def test_the_resolved_configuration_names_its_variant_only(conf):
    found = strategy(conf, "strategy.variant=hard")
    assert found["variant"] == "hard"
    assert "variants" not in found


def test_an_unknown_variant_names_those_there_are(conf):
    message = problem(conf, "strategy.variant=hrad")
    assert "strategy.variant = hrad (command line)" in message
    assert "did you mean 'hard'?   must be one of: soft, hard, plain" in message
    assert "(there is none)" in problem(conf, "strategy=fedavg", "strategy.variant=hard")
    assert "strategy.variant = [1]" in problem(conf, "strategy.variant=[1]")


def test_the_variant_of_a_written_run_can_be_changed(conf, write):
    write(compose.resolve(["strategy.variant=hard", "strategy.decay=0.125"], conf=conf).to_yaml())
    soft = strategy(conf, "my.yaml", "strategy.variant=soft")
    fresh = strategy(conf, "strategy.decay=0.125", "strategy.variant=soft", "strategy.mu=0.01")
    assert soft == {**fresh, "decay": 0.5}  # switches of `hard` undone (mu falls to the schema's), those of `soft` set
    assert strategy(conf, "my.yaml", "strategy.variant=hard")["decay"] == 0.125


def test_a_handwritten_mapping_gets_the_switches_of_its_variant(conf, write):
    write("strategy: {name: fedavg, client: fedprox, variant: hard, decay: 1}\n")
    found = strategy(conf, "my.yaml")
    assert (found["mu"], found["share"], found["decay"]) == (2.0, "head", 1.0)


# Errors: what, where, how to mend


def test_all_mistakes_are_told_at_once_with_their_places(conf, write):
    write("# mine\n\n\nrounds: 0\nclients: 5\nclients_per_round: x\n")
    message = problem(conf, "my.yaml", "partition.alpha=-1", "train.lr_clock=rond")
    assert [" ".join(line.split()) for line in message.splitlines()] == [
        "config: 4 problems",
        "rounds = 0 my.yaml:4 must be at least 1",
        "clients_per_round = x my.yaml:6 must be a whole number",
        "train.lr_clock = rond command line did you mean 'round'?",
        "partition.alpha = -1 command line must be greater than 0",
    ]


def test_a_word_that_does_not_exist_hides_no_other_mistake(conf):
    message = problem(conf, "partition.alpha=-1", "train.lr=abc", "clients=0", "data=minst", "strategy.mu=-1", "x")
    assert [" ".join(line.split()) for line in message.splitlines()] == [
        "config: 6 problems",
        "'x' is neither key=value nor a YAML file command line write rounds=20, strategy=fedgen or my.yaml",
        "data = minst command line did you mean 'mnist'?",
        "clients = 0 command line must be at least 1",
        "train.lr = abc command line must be a number",
        "partition.alpha = -1 command line must be greater than 0",
        "strategy.mu = -1 command line must be at least 0",
    ]


def test_values_of_an_option_that_does_not_exist_are_not_judged(conf):
    message = problem(conf, "partition=shrads", "partition.shards=3", "rounds=0")
    assert "2 problems" in message
    assert "partition.shards" not in message


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("model=cnn", "write students=NAME"),
        ("batch_size=32", "write train.batch=N"),
        ("learning-rate=0.1", "write train.lr=X"),
        ("optimizer=adam", "write train.optimiser=sgd, adam, ..."),
        ("epochs=5", "write train.epochs=N train.steps=null"),
        ("dataset=mnist", "write data=NAME"),
        ("num_rounds=3", "write rounds=N"),
        ("num_clients=3", "write clients=N"),
        ("fraction=0.1", "write clients_per_round=N, a number and no share"),
        ("algorithm=fedavg", "write strategy=NAME"),
        ("device=cuda", "write nothing: students are trained on the CPU"),
        ("train.learning_rate=0.1", "write train.lr=X"),
    ],
)
def test_the_words_of_other_platforms_are_answered_with_ours(conf, word, hint):
    assert f"       {hint}   " in problem(conf, word) + "   "


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--rounds", "write rounds=VALUE"),
        ("--seed=1", "write seed=1"),
        ("--clients-per-round", "write clients_per_round=VALUE"),
        ("--train.lr", "write train.lr=VALUE"),
        ("--momentum", "write train.momentum=VALUE"),
        ("--alpha=1", "write partition.alpha=1 or strategy.alpha=1"),
        ("--nix", ""),
        ("rounds", ""),
    ],
)
def test_a_key_that_is_given_as_an_option_is_answered_with_the_word(option, word):
    assert compose.as_override(option) == word


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("partition=noniid", "dirichlet"),
        ("partition=dir", "dirichlet"),
        ("strategy=fedavgm", "flower-fedavgm"),
        ("proxy=public", "held-out"),
        ("partition=shrads", "shards"),
    ],
)
def test_the_options_of_other_platforms_are_answered_with_ours(word, ours):
    with pytest.raises(ConfigError, match=f"did you mean '{ours}'"):
        compose.resolve([word])


def test_every_hint_at_an_option_names_one_that_exists():
    known = {name for group in compose.GROUPS for name in compose.options(group)}
    assert set(foreign_words._OPTIONS) <= known


@pytest.mark.parametrize("word", ["strategy=fedavg,fedprox", "seed=1,2", "seed=1..3", "train.lr=0.1,0.01"])
def test_several_values_of_a_run_are_answered_with_the_comparison(word):
    with pytest.raises(ConfigError, match=re.escape(f"to compare several: fedkd compare {word}")):
        compose.resolve([word])


def test_a_key_of_another_method_names_the_methods_that_have_it():
    with pytest.raises(ConfigError, match=r"it is a key of .*strategy=fedprox.* allowed here: "):
        compose.resolve(["strategy=fedgen", "strategy.mu=0.1"])
    with pytest.raises(ConfigError, match=r"did you mean 'strategy\.mu'"):
        compose.resolve(["strategy=fedprox", "strategy.m=0.1"])


def test_every_hint_names_a_key_that_exists():
    for mend in foreign_words._KEYS:
        for word in re.findall(r"([a-z_.]+)=", mend):
            with pytest.raises(ConfigError) as caught:
                compose.resolve([f"{word}=[]", "rounds=0"])
            assert "unknown key" not in caught.value.message()


def test_a_strategy_without_its_public_set_is_told_at_once_with_the_word_that_mends_it():
    with pytest.raises(ConfigError, match="'knfu' needs a public set of samples, and proxy is none") as caught:
        compose.resolve(["strategy=knfu"])
    assert compose.resolve(["strategy=knfu", caught.value.mistakes[0].add]).config.proxy.name == "held-out"


def test_one_unknown_key_is_told_with_what_was_meant_and_what_is_allowed(conf):
    message = problem(conf, "stratgy.weigthing=1")
    assert message.startswith(
        "config: unknown key 'stratgy.weigthing' (command line)\n       did you mean 'strategy.weighting'?   "
    )
    assert "allowed here: name, client, variant, share, weighting, mu, decay" in message
    assert message.endswith("fedkd config schema strategy=toy")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("strategy.m=1", "'strategy.mu'"),
        ("train.epoch=1", "'train.epochs'"),
        ("trian.lr=1", "'train.lr'"),
        ("round=1", "'rounds'"),
        ("lr=1", "'train.lr'"),
        ("alpha=1", "'partition.alpha'"),
        ("partition.alhpa=1", "'partition.alpha'"),
        ("batch=1", "'train.batch'"),
        (
            "name=1",
            "'data.name' or 'partition.name' or 'students.name' or 'strategy.name' or 'proxy.name' or 'engine.name'",
        ),
    ],
)
def test_the_key_that_was_meant_is_found(conf, word, meant):
    assert f"did you mean {meant}?" in problem(conf, word)


def test_an_unknown_key_like_nothing_lists_what_is_allowed(conf):
    message = problem(conf, "train.qqq=1")
    assert "did you mean" not in message
    assert "allowed here: batch, steps, epochs, optimiser, lr" in message


def test_an_unknown_option_names_the_nearest_and_all(conf):
    message = problem(conf, "data=minst")
    assert "data = minst (command line)" in message
    assert "did you mean 'mnist'?   must be one of: digits, mnist" in message


def test_unknown_options_and_presets_are_told_together(conf, write):
    write("data: minst\n")
    message = problem(conf, "my.yaml", "strategy=nix", "preset=smal")
    assert "3 problems" in message
    assert "data = minst" in message
    assert "my.yaml:1" in message
    assert "did you mean 'small'?" in message


def test_wrong_names_of_halves_recipe_and_source_are_told(conf):
    for word in ("strategy.name=fedavgg", "strategy.client=fedprx", "partition.name=iidd", "data.name=digit"):
        assert f"{word.replace('=', ' = ')} (command line)" in problem(conf, word)
        assert "did you mean" in problem(conf, word)


def test_values_of_the_strategy_are_checked_by_its_halves(conf, write):
    write("strategy:\n  mu: -1\n  share: hed\n")
    message = problem(conf, "my.yaml")
    assert "2 problems" in message
    assert "strategy.mu = -1" in message
    assert "my.yaml:2" in message
    assert "did you mean 'head'?" in message


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["clients=5", "clients_per_round=6"], "must be at most clients = 5"),
        (["clients=5", "evaluate.clients=6"], "must be at most clients = 5"),
        (["train.nesterov=true"], "needs momentum"),
        (["evaluate.metrics=[ece,macro-f1]"], "did you mean 'macro_f1'?"),
        (["rounds=5", "train.warmup=5"], "must be below rounds = 5"),
        (["clients=5", "quorum=6"], "must be at most the 5 clients of a round"),
        (["clients=5", "clients_per_round=3", "quorum=4"], "must be at most the 3 clients of a round"),
    ],
)
def test_values_that_contradict_each_other_are_told(conf, words, what):
    assert what in problem(conf, *words)


@pytest.mark.parametrize("word", ["rounds=${seed}", "data.root=${oc.env:HOME}", "rounds='${a}'"])
def test_interpolation_is_refused(conf, word):
    assert "looks like an interpolation" in problem(conf, word)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("rounds", "neither key=value nor a YAML file"),
        ("mnist", "did you mean data=mnist?"),
        ("rounds=", "has no value"),
        ("=3", "is no key"),
        ("a..b=3", "is no key"),
        ("missing.yaml", "there is no such file (missing.yaml)"),
        ("data=3", "must be one of: digits, mnist"),
        ("data=null", "must be one of: digits, mnist"),
        ("train=3", "must be a mapping of keys"),
        ("rounds.x=3", "must be a whole number"),
        ("rounds=true", "must be a whole number"),
        ("rounds=5.0", "must be a whole number"),
        ("train.lr=fast", "must be a number"),
        ("data.root=5", "must be text"),
        ("data.download=1", "must be true or false"),
        ("preset=circle", "leads back to itself"),
        ("preset=../config", "there is no preset"),
        ("strategy=../config", "must be one of"),
    ],
)
def test_every_other_slip_is_told(conf, word, what):
    assert what in problem(conf, word)


def test_files_that_are_no_configuration_are_refused(conf, write, tmp_path):
    write("- 1\n")
    assert "no mapping of keys (my.yaml)" in problem(conf, "my.yaml")
    write("rounds: [1\n")
    assert "(my.yaml:" in problem(conf, "my.yaml")
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\xff")
    assert "cannot be read" in problem(conf, "my.yaml")


# The result


def test_the_text_shows_each_value_with_its_source(conf):
    lines = compose.resolve(["partition.alpha=0.3"], conf=conf).to_yaml().splitlines()
    assert lines[1].split() == ["rounds:", "7", "#", "conf/config.yaml"]
    assert "partition:" in lines
    assert "  alpha: 0.3" in {line.partition("  # command")[0].rstrip() for line in lines}
    assert len({line.index("#") for line in lines if "#" in line}) == 1


WORDS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**70),
        "clients": st.integers(1, 10**6),
        "train.lr": st.floats(1e-300, 1e300),
        "train.steps": st.none() | st.integers(1, 9),
        "partition.alpha": st.floats(1e-9, 1e9),
        "strategy.mu": st.integers(0, 9) | st.floats(0, 9),
        "strategy.variant": st.sampled_from(["soft", "hard", None]),
        "data.root": st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$")),
        "engine.deadline": st.none() | st.floats(0.5, 1e9),
        "engine": st.sampled_from(["inline", "ray"]),
    },
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_the_text_makes_the_same_configuration_again(conf, tmp_path, words):
    first = compose.resolve([f"{key}={strict_yaml.write(value)}" for key, value in words.items()], conf=conf)
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml(), encoding="utf-8")
    for again in (compose.from_yaml_file(path, conf=conf), compose.resolve([str(path)], conf=conf)):
        assert again.config == first.config
        assert again.digest() == first.digest()
        assert resolved.diff(first, again) == []


def test_the_hash_tells_results_apart_and_not_machines(conf):
    base = compose.resolve([], conf=conf).digest()
    for word in ("engine=ray", "engine.workers=3", "checkpoint.every=2", "data.root=/tmp", "data.download=true"):
        assert compose.resolve([word], conf=conf).digest() == base, word
    for word in ("seed=1", "strategy.mu=0.5", "engine.deadline=5", "partition.alpha=0.2", "train.lr=0.02"):
        assert compose.resolve([word], conf=conf).digest() != base, word


def test_an_integer_and_the_same_float_are_one_configuration(conf):
    assert compose.resolve(["strategy.mu=1"], conf=conf) == compose.resolve(["strategy.mu=1.0"], conf=conf)


def test_differences_are_listed_by_key(conf):
    left = compose.resolve([], conf=conf)
    right = compose.resolve(["rounds=8", "partition=iid"], conf=conf)
    found = {d.key: (d.left, d.right) for d in resolved.diff(left, right)}
    assert found == {
        "rounds": (7, 8),
        "partition.name": ("dirichlet", "iid"),
        "partition.alpha": (0.1, None),
        "partition.min_samples": (10, None),
    }


# What ships


def test_every_option_that_ships_can_be_run():
    for group in compose.GROUPS:
        for name in compose.options(group):
            assert compose.draft([f"{group}={name}"]).values[group]["name"]
    for name in compose.options("preset"):
        assert compose.resolve([f"preset={name}"]).choices
    for name in compose.options("strategy"):
        assert compose.resolve([f"strategy={name}", "proxy=held-out"]).config.strategy["name"]
    for name in compose.options("partition"):
        assert compose.resolve([f"partition={name}"]).config.partition["name"] == name


def test_every_file_that_ships_opens_with_a_line_about_itself():
    for path in compose.CONF.rglob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("# "), path
