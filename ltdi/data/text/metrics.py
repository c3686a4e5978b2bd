"""Metrics of text tasks (Wang et al., 2019, section 2), one number for a list of predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltdi.errors import InputError, unknown

Metric = Callable[[Tensor, Tensor], float]


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Fraction of the predictions [n] that equal the labels [n]."""
    return float((predicted == labels).double().mean())


def f1(predicted: Tensor, labels: Tensor) -> float:
    """F1 of class 1 against class 0, 2 TP / (2 TP + FP + FN); 0 where there is no class 1.

    Raises:
        InputError: For a class other than 0 and 1.
    """
    if not bool(torch.isin(torch.cat([predicted, labels]), torch.tensor([0, 1])).all()):
        raise InputError(
            f"F1 is of two classes, 0 and 1, got {sorted(set(labels.tolist()))[:5]} as labels and "
            f"{sorted(set(predicted.tolist()))[:5]} as predictions",
            where="metric",
            fix="choose accuracy or matthews for more classes",
        )
    positive = int(predicted.sum() + labels.sum())
    return 2 * int((predicted * labels).sum()) / positive if positive else 0.0


def matthews(predicted: Tensor, labels: Tensor) -> float:
    """Matthews' correlation of classes, for any number of them (Gorodkin, 2004, equation 8).

    It lies in -1..1, and is 0 where all predictions, or all labels, are one class.
    """
    way = 1 + int(torch.maximum(predicted.max(), labels.max()))
    guessed = predicted.bincount(minlength=way).double()
    true = labels.bincount(minlength=way).double()
    n = float(len(labels))
    right = float((predicted == labels).sum())
    covariance = right * n - float(guessed @ true)
    spread = (n * n - float(guessed @ guessed)) * (n * n - float(true @ true))
    return covariance / spread**0.5 if spread > 0 else 0.0


def pearson(predicted: Tensor, labels: Tensor) -> float:
    """Pearson's correlation of values [n]; 0 where either list is constant (SciPy: NaN)."""
    x, y = predicted.double(), labels.double()
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    # Scaled first: squares of very small or large numbers leave the range.
    x, y = x / x.abs().max(), y / y.abs().max()
    return float((x @ y / (x.norm() * y.norm())).clamp(-1, 1))


def spearman(predicted: Tensor, labels: Tensor) -> float:
    """Pearson's correlation of the ranks, ties having their mean rank; see `pearson`."""
    return pearson(_ranks(predicted), _ranks(labels))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
REGRESSION = frozenset({"pearson", "spearman"})


def predictions(logits: Tensor) -> Tensor:
    """Outputs [n, outputs] -> classes int64 [n]; of a regression, [n, 1] -> values [n]."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)


def measure(metric: str, logits: Tensor, labels: Tensor) -> float:
    """One metric of a classifier's or a regression's outputs.

    Logits are [n, outputs], one output being a regression; labels [n] are classes or values.

    Raises:
        InputError: For an unknown metric, one that does not fit the labels, other shapes, or
            numbers that are not finite.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS, where="metric")
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InputError(
            f"outputs have shape {list(logits.shape)} and labels {list(labels.shape)}; expected "
            "[n, outputs] and [n], n >= 1",
            where="metric",
        )
    if not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite()).any(1).sum())
        raise InputError(
            f"{bad} of {len(logits)} outputs are NaN or infinite",
            where="metric",
            fix="drop these weights: their optimisation or generation diverged",
        )
    check_metric(metric, regression=labels.is_floating_point())
    return METRICS[metric](predictions(logits), labels)


def check_metric(metric: str, *, regression: bool) -> None:
    """Refuse a metric that is unknown, or of the other kind of task.

    Raises:
        InputError: With the metrics that fit.
    """
    fitting = sorted(m for m in METRICS if (m in REGRESSION) == regression)
    if metric not in METRICS:
        raise unknown("metric", metric, fitting, where="metric")
    if metric not in fitting:
        kind = "regression" if regression else "classification"
        raise InputError(
            f"{metric} is no metric of a {kind}",
            where="metric",
            fix=f"choose one of: {', '.join(fitting)}",
        )


def _ranks(values: Tensor) -> Tensor:
    """[n] values -> [n] ranks from 1."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    ranks: Tensor = (last - (count - 1) / 2)[place]
    return ranks
