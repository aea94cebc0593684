import pytest

from fedkd import compose


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
    assert compose.resolve(words).as_in_conf("strategy") == option
