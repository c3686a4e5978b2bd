"""What the methods of one run share, and a generator as one of these methods.

Solved tasks are prepared once for all recipes that agree on them, and a generator is trained once
for all shapes of episodes; the seconds that either took are remembered for every row that uses it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from ltdi.baselines import Banks, Budget, Method
from ltdi.data import ImageSet
from ltdi.generator import ImageGenerator
from ltdi.pipeline import tuned
from ltdi.progress import Progress, Step, staged
from ltdi.recipe import Recipe
from ltdi.tasks import Episodes, FeatureBank

V = TypeVar("V")
P = TypeVar("P", bound=Hashable)
S = TypeVar("S")
G = TypeVar("G", bound=ImageGenerator)


class Once(dict[Hashable, tuple[V, float]]):
    """Values that are made once for each key, with the seconds that it took to make them."""

    def once(self, key: Hashable, make: Callable[[], V]) -> tuple[V, float]:
        """The value of a key and its seconds; made where it is asked for first."""
        if key not in self:
            start = time.perf_counter()
            value = make()
            self[key] = (value, time.perf_counter() - start)
        return self[key]


@dataclass
class Workshop(ABC, Generic[P, S, G]):
    """Where solved tasks and generators are made once; a subclass knows one kind of weights.

    A plan is a recipe, or whatever else says how a generator is made.

    Attributes:
        directory: Where zoos are kept during the run.
        prepared: Solved tasks, by what plans must agree on to share them.
        trained: Generators before their sampling is chosen, by plan.
    """

    directory: Path
    prepared: Once[S] = field(default_factory=Once, init=False)
    trained: Once[G] = field(default_factory=Once, init=False)

    @abstractmethod
    def key(self, plan: P) -> Hashable:
        """What of a plan its solved tasks depend on."""

    @abstractmethod
    def solve(self, place: Path, plan: P, progress: Progress | None) -> S:
        """Solve the tasks of a plan into a zoo at `place`."""

    @abstractmethod
    def meta_train(self, solved: S, plan: P, progress: Progress | None) -> G:
        """A generator of these tasks, with the sampling of its recipe."""

    def prepare(self, plan: P, progress: Progress | None) -> tuple[S, float]:
        """Solved tasks and the seconds they took; plans that agree share them."""
        place = self.directory / f"zoo-{len(self.prepared)}"
        return self.prepared.once(self.key(plan), lambda: self.solve(place, plan, progress))

    def train_once(self, plan: P, progress: Progress | None) -> tuple[G, float, float]:
        """A generator before its sampling is chosen, and the seconds of preparation and training.

        One generator serves episodes of every shape, so a run trains it once.
        """
        solved, prepare_s = self.prepare(plan, progress)
        generator, train_s = self.trained.once(
            plan, lambda: self.meta_train(solved, plan, progress)
        )
        return generator, prepare_s, train_s


@dataclass
class SharedWorld(Workshop[Recipe, S, G]):
    """What the methods of one run on few-shot episodes share; an `Arena`.

    Attributes:
        train: Classes that what the weights live in did not see: features, or images.
        valid: Validation classes: every choice is made on them.
        test: Test classes: only measured on.
    """

    train: FeatureBank
    valid: FeatureBank
    test: FeatureBank

    def fit(self, method: Method, budget: Budget, progress: Step) -> None:
        """See `Arena.fit`."""
        method.fit(Banks(self.train, self.valid), budget, progress)

    def tests(self, budget: Budget, episodes: int) -> Episodes:
        """See `Arena.tests`."""
        return self.test.episodes(
            way=budget.way,
            shot=budget.shot,
            query=budget.query,
            episodes=episodes,
            seed=budget.seed + 77_000,
        )

    def predict(self, method: Method, tasks: Episodes) -> Tensor:
        """See `Arena.predict`."""
        features = self.test.features
        return method.predict(features[tasks.support], features[tasks.query])

    def classes(self, seen_by: str, parts: Mapping[str, ImageSet]) -> dict[str, int]:
        """Number of classes of every part, and of those that `seen_by` learned from."""
        return {
            seen_by: len(parts["train"].classes) - len(self.train.classes),
            "train": len(self.train.classes),
            "val": len(self.valid.classes),
            "test": len(self.test.classes),
        }


class GeneratorMethod(Method, Generic[G]):
    """A generator as a method: trained in the run's world, tuned on validation episodes.

    Attributes:
        judged: How many, in place of the budget's.
    """

    judged: int | None = None

    def __init__(self, name: str, recipe: Recipe, world: SharedWorld[Any, G]) -> None:
        self.name, self.recipe, self.world = name, recipe, world
        self.kind = "ours" if name in ("lt-di", "mc-di-paper") else "control"
        self.generator: G | None = None

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """See `Method.fit`; the recipe, not the budget, says how much is spent."""
        generator, self.prepare_s, train_s = self.world.train_once(self.recipe, staged(progress))
        start = time.perf_counter()
        shapes, many = [(budget.way, budget.shot)], self.judged or budget.valid_episodes
        self.generator = tuned(generator, banks.valid, self.recipe, shapes, many)
        self.train_s = train_s + time.perf_counter() - start
