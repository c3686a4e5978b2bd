"""The result of a benchmark: one row per method, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltdi import files
from ltdi.errors import InputError, unknown

KINDS = ("ours", "control", "peer")
# Digits kept in the JSON: far below any interval, and no digits that a rerun would not give.
DIGITS = {
    "mean": 6,
    "ci95": 6,
    "episodes": 0,
    "latency_ms": 3,
    "prepare_s": 2,
    "train_s": 2,
    "peak_mb": 0,
}


@dataclass(frozen=True)
class Row:
    """One method's score and cost.

    Attributes:
        method: Name of the method.
        kind: "ours", "control" or "peer".
        metric: What `mean` is, such as "accuracy".
        mean: Mean over episodes; accuracies are fractions.
        ci95: Half width of its 95 % interval.
        episodes: Number of episodes.
        latency_ms: Time to adapt to one task and classify its queries.
        prepare_s: Time of weight preparation.
        train_s: Time of (meta-)training.
        peak_mb: Peak memory.
        dataset: Where it differs between rows.
    """

    method: str
    kind: str
    metric: str
    mean: float
    ci95: float
    episodes: int
    latency_ms: float
    prepare_s: float
    train_s: float
    peak_mb: float
    dataset: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of method", self.kind, KINDS, where=f"row {self.method!r}")
        for name, digits in DIGITS.items():
            value = getattr(self, name)
            # JSON has no NaN: a method that failed has no row.
            if not math.isfinite(value):
                raise InputError(
                    f"{name} is {value}",
                    where=f"row {self.method!r}",
                    fix="leave the method out, and say why in the settings",
                )
            object.__setattr__(self, name, round(float(value), digits or None))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; no "dataset" where there is none."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.dataset is None:
            del row["dataset"]
        return row


@dataclass(frozen=True)
class Result:
    """A run of `ltdi bench`.

    Attributes:
        track: Such as "fewshot".
        dataset: Name of the data.
        preset: "smoke", "standard" or "paper".
        seed: Seed of the run.
        settings: JSON-able. "paired" maps a method to the "mean" and "ci95" of lt-di minus it, or
            a dataset of the rows to such a map.
        rows: In any order.
    """

    track: str
    dataset: str
    preset: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `write_json` writes."""
        top = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**top, "rows": [row.to_dict() for row in self.rows]}

    def write_json(self, path: Path | str) -> None:
        """Write the JSON file atomically."""
        files.write_json(Path(path), self.to_dict())


def show(result: Result, console: Console) -> None:
    """Print a result: rows by kind, then best first; no number is ever cut.

    What is not a terminal gets the full width; a terminal too narrow for the table gets one line
    per number instead.
    """
    columns = _columns(result, ascii_only=console.options.ascii_only)
    preset = "" if result.preset == "none" else f"preset {result.preset}, "
    table = Table(
        title=Text(f"{result.track}, {result.dataset} ({preset}seed {result.seed})"),
        caption=Text("* best peer" if _best_peers(result) else ""),
        box=box.SIMPLE_HEAD,
    )
    for name in columns:
        side: Any = "left" if name in ("method", "kind", "dataset", "metric") else "right"
        table.add_column(Text(name), justify=side, no_wrap=True)
    rows = ordered(result.rows)
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or _group(rows[number + 1]) != _group(row)
        cells = [Text(column[number]) for column in columns.values()]
        table.add_row(*cells, style="bold" if row.kind == "ours" else "", end_section=last)
    # A table's own width overrides the console's, which is a guess of 80 for files and pipes.
    wide = console.options.update(max_width=10_000)
    table.width = console.measure(table, options=wide).maximum
    if console.is_terminal and table.width > console.width:
        _show_stacked(table.title, columns, console)
        console.print(table.caption)
    else:
        console.print(table, crop=False)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Rows by dataset and metric as they come, then by kind, then best first."""
    rows = list(rows)
    groups = list(dict.fromkeys(_group(row) for row in rows))
    return sorted(
        rows, key=lambda row: (groups.index(_group(row)), KINDS.index(row.kind), -row.mean)
    )


def _show_stacked(title: Any, columns: dict[str, list[str]], console: Console) -> None:
    console.print(title)
    for i, method in enumerate(columns["method"]):
        console.print(Text(f"\n{method}", style="bold"))
        for name, column in columns.items():
            if name != "method" and column[i]:
                console.print(Text(f"  {name}: {column[i]}"), soft_wrap=True)


def _columns(result: Result, *, ascii_only: bool) -> dict[str, list[str]]:
    """Heading -> cells, in the order of `ordered`."""
    rows, best = ordered(result.rows), _best_peers(result)
    sign = "+/-" if ascii_only else "\u00b1"
    metrics = {row.metric for row in rows}
    columns = {
        "method": [row.method + (" *" if row in best else "") for row in rows],
        "kind": [row.kind for row in rows],
    }
    if any(row.dataset for row in rows):
        columns["dataset"] = [row.dataset or "" for row in rows]
    if len(metrics) > 1:
        columns["metric"] = [row.metric for row in rows]
    score = metrics.pop() if len(metrics) == 1 else "mean"
    columns[score] = [f"{row.mean:.4f} {sign} {row.ci95:.4f}" for row in rows]
    pairs = [_pair(row, result) for row in rows]
    if any(pairs):
        columns["lt-di minus this"] = [
            f"{p['mean']:+.4f} {sign} {p['ci95']:.4f}" if p else "" for p in pairs
        ]
    columns["episodes"] = [str(row.episodes) for row in rows]
    columns["latency ms"] = [f"{row.latency_ms:.2f}" for row in rows]
    columns["prepare s"] = [f"{row.prepare_s:.1f}" for row in rows]
    columns["train s"] = [f"{row.train_s:.1f}" for row in rows]
    columns["peak MB"] = [str(row.peak_mb) for row in rows]
    return columns


def _pair(row: Row, result: Result) -> Mapping[str, float] | None:
    """The paired difference that surely belongs to this row."""
    pairs = result.settings.get("paired") or {}
    if row.dataset in pairs:
        pairs = pairs[row.dataset]
        alike = [r for r in result.rows if (r.method, r.dataset) == (row.method, row.dataset)]
    else:
        alike = [r for r in result.rows if r.method == row.method]
    pair: Mapping[str, float] | None = pairs.get(row.method)
    return pair if len(alike) == 1 else None


def _best_peers(result: Result) -> list[Row]:
    """The first peer of every dataset and metric."""
    best: dict[tuple[str | None, str], Row] = {}
    for row in ordered(result.rows):
        if row.kind == "peer":
            best.setdefault(_group(row), row)
    return list(best.values())


def _group(row: Row) -> tuple[str | None, str]:
    return row.dataset, row.metric
