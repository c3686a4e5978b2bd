"""A zoo with a plan: what is to be solved, shard by shard, by whoever does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ltdi.engine.arrivals import Arrivals
from ltdi.engine.workers import Engine, Job, Running
from ltdi.progress import Progress
from ltdi.recipe import Tasks
from ltdi.zoo import Zoo


@dataclass(frozen=True)
class Piece:
    """One shard of a plan: so many tasks of a fold (0 where there are none), way and shot."""

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


class Collection(ABC):
    """A zoo that has been started, with what it takes to solve any of its shards.

    All of it is read from the zoo's directory, so that whoever solves a shard, and whenever,
    solves the same tasks. Shard j is drawn with a seed of its own.

    Args:
        zoo: The zoo.
        plan: All its shards.
    """

    job: ClassVar[Job]  # a function of a module: opens the collection in a worker and makes a shard

    def __init__(self, zoo: Zoo, plan: Sequence[Piece]) -> None:
        self.zoo, self.plan = zoo, list(plan)

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

    def fill(self, engine: Engine = Engine(), progress: Progress | None = None) -> None:
        """Solve the shards that are missing."""
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

    def arrivals(
        self,
        iterations: int,
        running: Running,
        *,
        rule: str = "planned",
        journal: Path | None = None,
    ) -> Arrivals:
        """What a training of so many iterations sees of the shards that are being made."""
        names = [piece.name for piece in self.plan]
        return Arrivals(self.zoo, names, iterations, rule=rule, journal=journal, running=running)
