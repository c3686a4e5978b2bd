"""The figures as a table: for a terminal, and for docs/scale.md."""

from __future__ import annotations

from rich.table import Table

from benchmarks.speed.common import Figure


def terminal(figures: list[Figure]) -> Table:
    """A line for each figure."""
    table = Table("part", "figure", "median", "goal")
    for f in figures:
        table.add_row(f.part, f.name, shown(f.value), f.goal)
    return table


def markdown(figures: list[Figure]) -> str:
    """A table for each part; what is measured of one thing stands in one line."""
    lines: list[str] = []
    for part in dict.fromkeys(f.part for f in figures):
        own = [f for f in figures if f.part == part]
        if part == "generate":
            lines += ["", "| | ms | tasks/s | floor / time |", "| --- | --- | --- | --- |"]
            things: dict[str, list[str]] = {}
            for f in own:
                things.setdefault(f.name.split(": ")[0], []).append(shown(f.value))
            lines += [f"| {name} | {' | '.join(values)} |" for name, values in things.items()]
        else:
            lines += ["", "| | | goal |", "| --- | --- | --- |"]
            lines += [f"| {f.name.strip()} | {shown(f.value)} | {f.goal or '-'} |" for f in own]
    return "\n".join(lines)


def shown(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
