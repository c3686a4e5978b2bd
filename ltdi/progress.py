"""Progress for people (bars) and for programs (JSON lines)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich import progress as rich
from rich.console import Console

# Called as (stage, done, total, text); as (done, total, text), where there is one stage; with a
# JSON-able record.
Progress = Callable[[str, int, int, str], None]
Step = Callable[[int, int, str], None]
Log = Callable[[dict[str, Any]], None]


def staged(step: Step | None) -> Progress:
    """Progress of several stages as that of one: the name of the stage goes into the text."""

    def told(stage: str, done: int, total: int, text: str) -> None:
        if step:
            step(done, total, f"{stage}: {text}")

    return told


class Bars:
    """One bar per stage; call it as `bars(stage, done, total, text)`."""

    def __init__(self, progress: rich.Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, rich.TaskID] = {}
        self.prefix = ""

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Move the stage's bar, made on its first call."""
        name = f"{self.prefix}{stage}"
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self.tasks[name], completed=done, total=total, note=text)


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Show progress bars on a terminal; elsewhere print nothing but a line per finished stage."""
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=24),
        rich.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        rich.TimeRemainingColumn(compact=True),
        rich.TextColumn("{task.fields[note]}"),
    )
    with rich.Progress(*columns, console=console) as progress:
        yield Bars(progress)


class JsonLog:
    """Appends one JSON object a line, flushed at once; `seconds` counts from the start.

    Args:
        path: File to append to, or None to discard.
    """

    def __init__(self, path: Path | None) -> None:
        self.start = time.perf_counter()
        self.stream: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = path.open("a", encoding="utf-8")

    def __call__(self, record: dict[str, Any]) -> None:
        """Append a record."""
        if self.stream is not None:
            seconds = round(time.perf_counter() - self.start, 3)
            self.stream.write(json.dumps({"seconds": seconds, **record}) + "\n")
            self.stream.flush()

    def __enter__(self) -> JsonLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stream is not None:
            self.stream.close()
