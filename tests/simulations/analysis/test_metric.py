import math

import handmade
import pytest

from fedkd import extensions
from fedkd.errors import ConfigError
from simulations.analysis import metric

RUN = handmade.member(accuracy=[k / 100 for k in range(1, 21)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("global last", 0.20),
        ("global last5", 0.18),
        ("global last10", 0.155),
        ("global", 0.155),
        ("global top5", 0.18),
        ("global best", 0.20),
        ("clients.worst_decile last", 0.5),
        ("drift.weights last", 1.8),
        ("bytes.up sum", 20.0),
        ("bytes.all mean", 3.5),
        ("seconds.clients median", 1.5),
    ],
)
def test_a_metric_is_a_path_and_a_rule(text, expected):
    assert metric.parse(text).value(RUN) == pytest.approx(expected)


def test_a_metric_that_no_round_has_is_none():
    assert metric.parse("common.mean last").value(RUN) is None
    assert metric.parse("global last").value(handmade.member(rows=())) is None


def test_the_last_ten_rounds_are_rounds_not_evaluations():
    """Evaluated every 5 rounds: rounds 15 and 20 are among the last 10, 10 is not."""
    sparse = [row | {"accuracy": row["accuracy"] if row["round"] % 5 == 0 else {}} for row in RUN.rows]
    assert metric.parse("global last10").value(handmade.member(rows=sparse)) == pytest.approx((0.15 + 0.20) / 2)


@pytest.mark.parametrize("text", ["global newest", "accuracies last", "bytes.left sum", "bytes sum", "drift last"])
def test_what_names_nothing_is_refused(text):
    with pytest.raises(ConfigError):
        metric.parse(text)


def test_less_is_better_for_costs():
    assert metric.parse("bytes.up sum").sign == metric.parse("drift.weights last").sign == -1
    assert metric.parse("local_accuracy.out last").sign == 1


def test_a_metric_of_the_evaluation_has_its_own_scale_and_direction():
    row = RUN.rows[-1] | {"accuracy": {"metrics": {"ece": 0.25, "auroc": None}}}
    run = handmade.member(rows=[row])
    assert metric.parse("metrics.ece last").value(run) == 0.25
    assert metric.parse("metrics.auroc last").value(run) is None
    assert metric.parse("metrics.ece last").sign == -1
    assert metric.parse("metrics.auroc last").sign == 1
    assert metric.parse("metrics.brier").bounds == (0, 2)
    assert metric.parse("metrics.auroc").unit == ""
    with pytest.raises(ConfigError, match="there is no metric 'cost'"):
        metric.parse("metrics.cost")
    with extensions.kept():
        extensions.register("metric", "cost", lambda logits, y: 0.0, lower=True)
        assert metric.parse("metrics.cost").sign == -1
        assert metric.parse("metrics.cost").bounds == (-math.inf, math.inf)


def test_without_a_choice_the_metric_is_what_all_strategies_have():
    assert str(metric.default(["global", "both"])) == "global last10"
    assert str(metric.default(["global", "personal"])) == "clients.mean last10"
