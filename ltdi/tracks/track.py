"""What a track is to the command line: a benchmark with options of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ltdi.backbone.wrapped import EFFICIENTNET
from ltdi.data.archive import stem_of
from ltdi.errors import InputError, unknown
from ltdi.generator import Generator
from ltdi.report.table import Result

P = TypeVar("P")
W = TypeVar("W")


@dataclass(frozen=True)
class Outcome(Generic[W]):
    """A finished benchmark.

    Attributes:
        result: Table and JSON.
        world: What the methods shared; where there are several worlds, by the domain held out.
        methods: Fitted, by name; where there are several worlds, by domain and name.
        generators: What a user may want to keep, by the name of a directory.
    """

    result: Result
    world: W
    methods: Mapping[str, Any] = field(default_factory=dict)
    generators: Mapping[str, Generator] = field(default_factory=dict)

    def publish(self, path: Path) -> None:
        """Write the generators, whose cards tell of the run, into an existing directory."""
        for name, generator in self.generators.items():
            generator.save(path / name)


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

    bench: Callable[..., Outcome[Any]]
    methods: tuple[str, ...]
    label: Callable[[Mapping[str, Any]], str]


# Arguments of `Track.bench` that are no options of its own.
SHARED = ("methods", "preset", "progress", "log")


def episode_label(options: Mapping[str, Any]) -> str:
    """The data set and the shape of the episodes: "omniglot-5w1s"."""
    dataset = stem_of(Path(str(options["dataset"])).name)
    if options.get("settings"):
        return f"{dataset}-{str(options['settings']).replace(',', '-').replace(' ', '')}"
    return f"{dataset}-{options['way']}w{options['shot']}s"


def chosen_preset(preset: str | P, known: Mapping[str, P]) -> tuple[str, P]:
    """A preset and what results call it: its name, or "custom" for one of the caller's own.

    Raises:
        InputError: If the name is unknown.
    """
    if not isinstance(preset, str):
        return "custom", preset
    if preset not in known:
        raise unknown("preset", preset, known, where="--preset")
    return preset, known[preset]


def check_methods(methods: Sequence[str], known: Collection[str]) -> None:
    """Refuse names of methods that a track does not have.

    Raises:
        InputError: If there is none, or one is unknown.
    """
    if not methods:
        raise InputError("no method was named", where="--methods", fix="name at least one")
    for name in methods:
        if name not in known:
            raise unknown("method", name, known, where="--methods")


def side_of(asked: int | None, preset: int | None, backbone: str | None) -> int | None:
    """The side in pixels that a pretrained backbone sees; None for its own.

    Args:
        asked: What the user asks for.
        preset: What the preset says of EfficientNet-lite0.
        backbone: Its name; None for one that is trained here.

    Raises:
        InputError: If a side is asked for and the backbone is trained here.
    """
    if backbone is None and asked is not None:
        raise InputError(
            "the backbone of this data set is trained here, on images of its own size",
            where="--side",
            fix="leave it out, or take photographs and a pretrained --backbone",
        )
    return asked or (preset if backbone == EFFICIENTNET else None)
