"""Few-shot methods on the same test episodes, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from ltdi.baselines import Banks, Budget, Method
from ltdi.evaluate import Scores, on_bank
from ltdi.progress import Log, Progress
from ltdi.report.table import Row
from ltdi.tasks import Episodes
from ltdi.tracks.measured import facts_of, measure
from ltdi.tracks.world import GeneratorMethod, SharedWorld

M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class Run(Generic[M]):
    """All methods on the episodes of one shape.

    Attributes:
        label: Of the shape, or None where a benchmark has only one.
        methods: Fitted.
        scores: By method.
        rows: Of the result.
    """

    label: str | None
    methods: dict[str, M]
    scores: dict[str, Scores]
    rows: list[Row]

    def measured(self) -> dict[str, Any]:
        """What is told of every method beside its row."""
        generators = {
            name: method.generator
            for name, method in self.methods.items()
            if isinstance(method, GeneratorMethod) and method.generator
        }
        sampling = {name: asdict(g.parts.sampling) for name, g in generators.items()}
        return {"sampling": sampling, **facts_of(self.scores)}


def run_methods(
    methods: dict[str, M],
    kind_of: Callable[[str], str],
    world: SharedWorld[Any, Any],
    tests: Episodes,
    budget: Budget,
    progress: Progress,
    log: Log,
    label: str | None = None,
) -> Run[M]:
    """Fit every method in a world, and measure it on the test episodes.

    Args:
        methods: Unfitted, by name.
        kind_of: Says whether a name is ours, a control or a peer.
        world: What they share.
        tests: Episodes of the test classes.
        budget: Of the peers, and the shape of the episodes.
        progress: Called as progress(stage, done, total, text).
        log: Called with a record for every method.
        label: Of the shape of the episodes, where there are several.
    """
    banks = Banks(world.train, world.valid)
    rows: list[Row] = []
    scores: dict[str, Scores] = {}
    for name, method in methods.items():
        told = partial(progress, name if label is None else f"{name} {label}")
        scores[name], row = measure(
            name,
            kind_of(name),
            method,
            partial(method.fit, banks, budget, told),
            on_bank(method.predict, world.test),
            tests,
            dataset=label,
        )
        rows.append(row)
        # A run that is stopped has told what it measured so far.
        found = Run(label, {name: method}, scores, rows).measured()
        facts = {key: value.get(name) for key, value in found.items()}
        log({"event": "method", **asdict(row), **facts})
    return Run(label, methods, scores, rows)
