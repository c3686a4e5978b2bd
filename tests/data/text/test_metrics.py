"""`ltdi.data.text.metrics`: equal to scikit-learn and SciPy, also where nothing varies."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor

from ltdi.data.text.metrics import METRICS, REGRESSION, measure, predictions
from ltdi.errors import InputError

Reference = Callable[[np.ndarray, np.ndarray], float]
CLASSES: dict[str, Reference] = {
    "accuracy": reference.accuracy_score,
    "matthews": reference.matthews_corrcoef,
}
VALUES: dict[str, Reference] = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
}
# Quarters, so that ties are frequent and sums exact.
QUARTERS = st.integers(-40, 40).map(lambda i: i / 4)


def lists_of(value: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(value, value), min_size=2, max_size=30)


def columns(rows: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    predicted, labels = zip(*rows, strict=True)
    return torch.tensor(predicted), torch.tensor(labels)


def trusted(metric: Reference, x: Tensor, y: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        return float(metric(x.double().numpy(), y.double().numpy()))


@pytest.mark.parametrize("name", CLASSES)
@given(rows=lists_of(st.integers(0, 3)))
def test_metrics_of_classes_are_scikit_learns(name: str, rows: list[tuple[float, float]]) -> None:
    predicted, labels = columns(rows)
    expected = trusted(CLASSES[name], labels, predicted)
    assert METRICS[name](predicted, labels) == pytest.approx(expected, abs=1e-12)


@given(rows=lists_of(st.integers(0, 1)))
def test_f1_is_scikit_learns(rows: list[tuple[float, float]]) -> None:
    predicted, labels = columns(rows)
    expected = trusted(lambda y, p: reference.f1_score(y, p, zero_division=0), labels, predicted)
    assert METRICS["f1"](predicted, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", VALUES)
@given(rows=lists_of(QUARTERS))
def test_correlations_are_scipys(name: str, rows: list[tuple[float, float]]) -> None:
    predicted, labels = columns(rows)
    found = METRICS[name](predicted, labels)
    expected = trusted(VALUES[name], predicted, labels)
    if np.isnan(expected):  # undefined: one list is constant
        assert len(set(predicted.tolist())) == 1 or len(set(labels.tolist())) == 1
        assert found == 0.0
    else:
        assert found == pytest.approx(expected, abs=1e-9)


def test_every_metric_is_compared_with_a_reference() -> None:
    assert set(METRICS) == {*CLASSES, *VALUES, "f1"}
    assert set(VALUES) == REGRESSION


@pytest.mark.parametrize(
    ("name", "predicted", "expected"),
    [
        ("accuracy", [1, 1, 1, 1], 0.75),
        ("f1", [1, 1, 1, 1], 6 / 7),
        ("f1", [0, 0, 0, 0], 0.0),
        ("matthews", [1, 1, 1, 1], 0.0),
        ("matthews", [1, 1, 1, 0], 1.0),
        ("matthews", [0, 0, 0, 1], -1.0),
    ],
)
def test_cases_by_hand(name: str, predicted: list[int], expected: float) -> None:
    labels = torch.tensor([1, 1, 1, 0])
    assert METRICS[name](torch.tensor(predicted), labels) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_correlations_do_not_see_the_scale(scale: float) -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    y = torch.tensor([1.0, 3.0, 3.5, 3.0], dtype=torch.float64)
    for name in REGRESSION:
        assert METRICS[name](x * scale, y) == pytest.approx(METRICS[name](x, y))
        assert METRICS[name](-x * scale, y) == pytest.approx(-METRICS[name](x, y))


def test_predictions_are_the_largest_logit_or_the_value() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]])
    assert predictions(logits).tolist() == [1, 0]
    assert predictions(torch.tensor([[2.5], [-1.0]])).tolist() == [2.5, -1.0]


def test_measure_takes_outputs() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert measure("accuracy", logits, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    values = torch.tensor([[1.0], [2.0], [3.0]])
    assert measure("spearman", values, torch.tensor([0.1, 0.2, 0.4])) == pytest.approx(1.0)


LOGITS, LABELS = torch.eye(2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("metric", "logits", "labels", "message"),
    [
        (
            "accuracies",
            LOGITS,
            LABELS,
            "unknown metric 'accuracies'[\\s\\S]*did you mean 'accuracy'",
        ),
        ("pearson", LOGITS, LABELS, "pearson is no metric of a classification"),
        ("f1", LOGITS[:, :1], torch.rand(2), "f1 is no metric of a regression[\\s\\S]*spearman"),
        ("accuracy", LOGITS, LABELS[:1], "shape \\[2, 2\\] and labels \\[1\\]"),
        ("accuracy", LOGITS[:0], LABELS[:0], "n >= 1"),
        ("accuracy", LOGITS / 0, LABELS, "2 of 2 outputs are NaN or infinite"),
        ("f1", torch.eye(3), torch.tensor([0, 1, 2]), "F1 is of two classes"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    metric: str, logits: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure(metric, logits, labels)
