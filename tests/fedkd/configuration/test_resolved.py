import pytest

from fedkd.configuration import compose


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ([], "fedgen"),
        (["strategy=fedprox", "rounds=3"], "fedprox"),
        (["strategy=fedprox", "strategy.mu=0.5"], ""),
        (["strategy.variant=paper"], ""),
        (["preset=fedgen-mnist"], "fedgen"),
        (["preset=fedgen-emnist"], ""),
    ],
)
def test_a_strategy_is_named_only_where_it_is_as_conf_has_it(words, option):
    resolved = compose.resolve(words)
    assert compose.unchanged_setting(resolved.config.strategy) == option
    written = compose.from_yaml(resolved.to_yaml(), "config.yaml")  # as after a resume
    assert compose.unchanged_setting(written.config.strategy) == option


def test_keys_of_own_data_do_not_part_older_runs_from_their_configuration():
    # Digests from before these keys existed.
    assert compose.resolve([]).digest().startswith("b80730cfea247f64")
    assert compose.resolve(["preset=fedgen-mnist", "seed=1"]).digest().startswith("ef1aa485fb060670")
    base = compose.resolve(["data=mnist"]).digest()
    assert compose.resolve(["data=mnist", "data.test_share=0.2", "data.resize=refuse"]).digest() == base
    assert compose.resolve(["data=mnist", "data.resize=fit"]).digest() != base
    assert compose.resolve(["data=mnist", "data.root=/elsewhere"]).digest() == base


def test_the_place_of_own_data_says_which_data():
    words = ["data=own", "data.labels=[cat, dog]", "data.shape=[1, 28, 28]"]
    digests = {compose.resolve([*words, f"data.root=/{name}"]).digest() for name in ("a", "b")}
    assert len(digests) == 2
