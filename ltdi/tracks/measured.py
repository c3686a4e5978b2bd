"""From methods to what a benchmark tells: scores, rows, paired differences, a card's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ltdi.evaluate import Scores, class_ci95, latency_ms, paired, score_tasks, summarise
from ltdi.generator import Generator
from ltdi.memory import peak_mb, reset_peak
from ltdi.report.table import Row
from ltdi.tasks import Episodes

G = TypeVar("G", bound=Generator)


class Timed(Protocol):
    """A method that may share what it is made of with others, and knows what that took."""

    prepare_s: float
    train_s: float


def measure(
    name: str,
    kind: str,
    method: Timed,
    fit: Callable[[], None],
    predict: Callable[[Episodes], Tensor],
    tasks: Episodes,
    *,
    dataset: str | None = None,
) -> tuple[Scores, Row]:
    """Fit one method, and measure it on test episodes.

    Args:
        name: Of the method.
        kind: "ours", "control" or "peer".
        method: For the seconds that it says itself.
        fit: Fits it; timed where the method says nothing.
        predict: Episodes -> logits [E, way, Q, way].
        tasks: The test episodes.
        dataset: Where it differs between rows.
    """
    reset_peak()
    start = time.perf_counter()
    fit()
    fit_s = time.perf_counter() - start
    scores = score_tasks(predict, tasks)
    row = scored(
        name,
        kind,
        scores,
        latency_ms=latency_ms(predict, tasks),
        prepare_s=method.prepare_s,
        train_s=method.train_s or fit_s,
        dataset=dataset,
    )
    return scores, row


def scored(
    name: str,
    kind: str,
    scores: Scores,
    *,
    latency_ms: float,
    prepare_s: float = 0.0,
    train_s: float = 0.0,
    dataset: str | None = None,
) -> Row:
    """The row of a method, with the peak of memory until now.

    Args:
        name: Of the method.
        kind: "ours", "control" or "peer".
        scores: On the test episodes.
        latency_ms: Of one task.
        prepare_s: Time of weight preparation.
        train_s: Time of training.
        dataset: Where it differs between rows.
    """
    s = summarise(scores.accuracy)
    return Row(
        name,
        kind,
        "accuracy",
        s.mean,
        s.ci95,
        s.episodes,
        latency_ms,
        prepare_s,
        train_s,
        peak_mb(),
        dataset,
    )


def leads(scores: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """lt-di minus every other method on the same episodes, by name.

    "mean" and "ci95" over episodes, and "classes_ci95" had other classes been drawn.
    """
    if "lt-di" not in scores:
        return {}
    out, own = {}, scores["lt-di"]
    for name, other in scores.items():
        if name != "lt-di":
            lead = paired(own.accuracy, other.accuracy)
            classes = class_ci95(own.accuracy - other.accuracy, own.classes)
            facts = {"mean": lead.mean, "ci95": lead.ci95, "classes_ci95": classes}
            out[name] = {key: round(value, 5) for key, value in facts.items()}
    return out


def facts_of(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What is told of every method beside its row: leads of lt-di, calibration, throughput."""
    return {
        "paired": leads(scores),
        "nll": nll_of(scores),
        "ece": {name: round(s.ece, 5) for name, s in scores.items()},
        "tasks_per_s": {n: round(len(s.accuracy) / s.seconds, 1) for n, s in scores.items()},
    }


def nll_of(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean negative log-likelihood of every method, in nats."""
    return {name: round(float(s.nll.mean()), 5) for name, s in scores.items()}


def metrics_of(rows: Iterable[Row], label: Callable[[Row], str]) -> dict[str, Any]:
    """What a generator's card tells of a run: every row but the controls.

    Args:
        rows: Of the run.
        label: Says what a row was measured on.
    """
    return {
        f"{label(row)}, {row.method}": {
            "mean": row.mean,
            "ci95": row.ci95,
            "episodes": row.episodes,
        }
        for row in rows
        if row.kind != "control"
    }


def publish(generator: G, path: Path, **about: Any) -> G:
    """Save a generator whose card tells of a run.

    Args:
        generator: The generator.
        path: Directory to write.
        **about: Entries of the card, such as `data` and `metrics`.

    Returns:
        The generator as it was saved.
    """
    parts = generator.parts
    published = type(generator)(replace(parts, about={**parts.about, **about}))
    published.save(path)
    return published
