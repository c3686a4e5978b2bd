"""From scores on episodes to what a benchmark tells: rows, paired differences, a card's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ltdi.evaluate import Scores, paired, summarise
from ltdi.memory import peak_mb
from ltdi.report.table import Row


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


def leads(scores: Mapping[str, Scores], ours: str = "lt-di") -> dict[str, dict[str, float]]:
    """`ours` minus every other method on the same episodes: "mean" and "ci95" by name."""
    if ours not in scores:
        return {}
    pairs = {n: paired(scores[ours].accuracy, s.accuracy) for n, s in scores.items() if n != ours}
    return {n: {"mean": round(d.mean, 5), "ci95": round(d.ci95, 5)} for n, d in pairs.items()}


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
