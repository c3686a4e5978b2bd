"""A zoo with a plan: what is to be solved, shard by shard, by whoever does it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from ltdi.collect import Preparation
from ltdi.engine.arrivals import Arrivals
from ltdi.engine.workers import Engine, Running
from ltdi.files import tuples
from ltdi.progress import Progress
from ltdi.recipe import Recipe, Tasks
from ltdi.zoo import Zoo


class Planned(Protocol):
    """One shard of a plan."""

    @property
    def name(self) -> str:
        """Of the shard."""

    @property
    def tasks(self) -> int:
        """How many it has."""


P = TypeVar("P", bound=Planned)


@dataclass(frozen=True)
class Piece:
    """One shard of a plan.

    Attributes:
        name: Of the shard.
        fold: Number of the fold that its tasks are of; 0 where there are none.
        way: Classes per task.
        shot: Support samples per class.
        tasks: How many.
    """

    name: str
    fold: int
    way: int
    shot: int
    tasks: int


def plan_of(tasks: Tasks, folds: int = 1) -> list[Piece]:
    """The shards of a recipe's tasks; the first few have something of every setting."""
    each = -(-tasks.per_setting // folds)
    rows = [
        (fold, way, shot, min(tasks.shard, each - start))
        for start in range(0, each, tasks.shard)
        for fold in range(folds)
        for way in tasks.ways
        for shot in tasks.shots
    ]
    return [Piece(f"shard-{j:06d}", *row) for j, row in enumerate(rows)]


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a zoo keeps of the recipe that its tasks are solved by; `recipe_of` reads it."""
    return {
        "tasks": asdict(recipe.tasks),
        "prepare": asdict(recipe.prepare),
        "seed": recipe.meta.seed,
    }


def recipe_of(zoo: Zoo, base: Recipe | None = None) -> Recipe:
    """How a zoo was collected; what it does not say is that of `base`, or the default."""
    base = base or Recipe()
    about = tuples(zoo.about)
    own = {n: about[n] for n in ("anchor", "start", "start_std", "refine") if n in about}
    return replace(
        base,
        tasks=Tasks(**tuples(about["tasks"])),
        prepare=Preparation(**about["prepare"]),
        meta=replace(base.meta, seed=about["seed"]),
        **own,
    )


class Collection(ABC, Generic[P]):
    """A zoo that has been started, with what it takes to solve any of its shards.

    All of it is read from the zoo's directory, so that whoever solves a shard, and whenever,
    solves the same tasks. Shard j is drawn with a seed of its own.
    """

    # Shards, the first of the plan, that training cannot begin without.
    least = 1

    def __init__(self, zoo: Zoo, plan: Sequence[P]) -> None:
        self.zoo, self.plan = zoo, list(plan)

    @classmethod
    @abstractmethod
    def open(cls, zoo: Zoo) -> Collection[P]:
        """The collection in a zoo that has been started."""

    @classmethod
    def job(cls, path: str, number: int) -> None:
        """Solve one shard of a zoo on disk: the job of workers, which open it once."""
        _opened(cls, path).make(number)

    @abstractmethod
    def make(self, number: int) -> None:
        """Solve one shard."""

    def seed(self, number: int) -> int:
        """Of a shard."""
        return (int(self.zoo.about["seed"]) + 1) * 1_000_003 + number

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there."""
        self.zoo.refresh()
        return [j for j, piece in enumerate(self.plan) if not self.zoo.has(piece.name)]

    def start(self, engine: Engine) -> Running:
        """Let an engine make the shards that are missing."""
        here = engine.workers == 0
        job = (lambda _, number: self.make(number)) if here else type(self).job
        return engine.start(job, str(self.zoo.path), self.missing())

    def fill(self, engine: Engine = Engine(), progress: Progress | None = None) -> Self:
        """Solve what is missing: a zoo of two runs, or of several workers, is that of one."""
        sizes = [piece.tasks for piece in self.plan]
        done = sum(sizes) - sum(sizes[j] for j in self.missing())
        with self.start(engine) as running:
            while running.left:
                for number in running.poll():
                    done += sizes[number]
                    if progress:
                        self.zoo.refresh()
                        loss = self.zoo.entry(self.plan[number].name)["mean"]["loss"]
                        text = "all tasks diverged" if loss is None else f"loss {loss:.4f}"
                        progress("solving tasks", done, sum(sizes), text)
        self.zoo.refresh()
        return self

    def arrivals(
        self,
        iterations: int,
        running: Running,
        *,
        rule: str = "planned",
        journal: Path | None = None,
    ) -> Arrivals:
        """What a training sees of the shards that are being made; see `Arrivals`."""
        names = [piece.name for piece in self.plan]
        return Arrivals(
            self.zoo,
            names,
            iterations,
            rule=rule,
            journal=journal,
            running=running,
            least=self.least,
        )


@functools.lru_cache(maxsize=1)
def _opened(kind: type[Collection[Any]], path: str) -> Collection[Any]:
    return kind.open(Zoo.open(path))
