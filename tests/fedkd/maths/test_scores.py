"""Metrics of a served student: scikit-learn's values, golden ones, and what becomes of a metric that fails."""

import math

import pytest
import sklearn.metrics
import torch

from fedkd import config, extensions, seeds
from fedkd.maths import scores

STREAM = seeds.stream(0, "metric")


def some(classes: int, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    y = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), y] += 1
    return logits.round(decimals=1), y  # with ties


def value(name: str, logits: torch.Tensor, y: torch.Tensor):
    return scores.of([name], logits, y, STREAM)[name]


@pytest.mark.parametrize("classes", [2, 5])
def test_values_are_those_of_scikit_learn(classes):
    logits, y = some(classes)
    p, label = logits.double().softmax(1).numpy(), logits.argmax(1).numpy()
    area = sklearn.metrics.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert value("auroc", logits, y) == pytest.approx(area)
    assert value("balanced_accuracy", logits, y) == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, label))
    assert value("macro_f1", logits, y) == pytest.approx(sklearn.metrics.f1_score(y, label, average="macro"))
    assert value("confusion", logits, y) == sklearn.metrics.confusion_matrix(y, label).tolist()


def test_calibration_error_and_brier_score_are_golden():
    """Confidences 0.9 (right), 0.9 (wrong) and 0.6 (right): bins hold |1.0 - 1.8| and |1 - 0.6|."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    y = torch.tensor([0, 1, 1])
    assert value("ece", p.log(), y) == pytest.approx((0.8 + 0.4) / 3)
    assert value("brier", p.log(), y) == pytest.approx((0.02 + 1.62 + 0.32) / 3)


def test_classes_without_a_sample_do_not_count():
    logits, y = some(3)
    wider = torch.cat([logits, torch.full((len(y), 2), -20.0)], 1)
    for name in ("balanced_accuracy", "macro_f1"):
        assert value(name, wider, y) == pytest.approx(value(name, logits, y))
    assert value("auroc", wider, y) == pytest.approx(value("auroc", logits, y), abs=1e-6)


def test_a_metric_without_a_value_says_why():
    logits, y = some(3)
    assert value("auroc", logits, torch.zeros_like(y)) == "its value is nan"
    assert value("brier", torch.full_like(logits, math.nan), y) == "its value is nan"


def test_a_users_metric_is_called_and_its_error_is_theirs():
    logits, y = some(3)
    with extensions.kept():
        extensions.register("metric", "top", lambda logits, y: logits.max())
        extensions.register("metric", "bad", lambda logits, y: 1 / 0)
        extensions.register("metric", "many", lambda logits, y: logits)
        extensions.register("metric", "spoils", lambda logits, y: float(logits.zero_().sum()))
        extensions.register("metric", "draws", lambda logits, y: float(torch.rand(1)))
        found = scores.of(["spoils", "top", "bad", "many", "draws"], logits, y, STREAM)
        assert found["spoils"] == 0
        assert found["top"] == pytest.approx(float(logits.max()))
        assert found["bad"].startswith("ZeroDivisionError: division by zero (")
        assert "can be converted to Python scalars" in found["many"]
        assert found["draws"] == scores.of(["draws"], logits, y, STREAM)["draws"]


def test_the_configuration_knows_their_names():
    assert tuple(scores.BUILT_IN) == config.METRICS
