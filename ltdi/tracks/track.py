"""What a track is to the command line: a benchmark with options of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ltdi.report.table import Result


class Outcome(Protocol):
    """A finished benchmark."""

    @property
    def result(self) -> Result:
        """Table and JSON."""

    def publish(self, path: Path) -> None:
        """Write what a user may want to keep, such as our generator, into an existing directory."""


@dataclass(frozen=True)
class Track:
    """A family of tasks, as `ltdi bench` knows it.

    Attributes:
        bench: Runs the benchmark. Its typed keyword arguments are the options of `ltdi bench
            NAME`, and its docstring is their help. Beside its own it takes `methods` (a sequence of
            names), `preset`, `progress` and `log`, which all tracks share.
        methods: The names that "all" stands for.
        label: Names a run from its options.
    """

    bench: Callable[..., Outcome]
    methods: tuple[str, ...]
    label: Callable[[Mapping[str, Any]], str]


# Arguments of `Track.bench` that are no options of its own.
SHARED = ("methods", "preset", "progress", "log")


def episode_label(options: Mapping[str, Any]) -> str:
    """The data set and the shape of the episodes: "omniglot-5w1s"."""
    dataset = Path(str(options["dataset"])).name.removesuffix(".zip")
    if options.get("settings"):
        return f"{dataset}-{str(options['settings']).replace(',', '-').replace(' ', '')}"
    return f"{dataset}-{options['way']}w{options['shot']}s"
