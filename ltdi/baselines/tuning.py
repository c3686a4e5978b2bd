"""Careful choices for every peer: all of them on validation episodes, never on train or test."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from ltdi.baselines.method import Banks, Budget, Method, fitted
from ltdi.errors import DivergedError
from ltdi.evaluate import accuracy, calibrate
from ltdi.progress import Step
from ltdi.tasks import FeatureBank

C = TypeVar("C")
T = TypeVar("T")


class Batch(NamedTuple):
    """Features of E episodes: support [E, way, shot, D] and query [E, way, Q, D]."""

    support: Tensor
    query: Tensor


def draw(bank: FeatureBank, budget: Budget, *, episodes: int, seed: int) -> Batch:
    """Draw episodes of the budget's shape, as near to it as the bank's size allows.

    A bank with fewer classes than `way`, or fewer items than `shot + query`, gives smaller
    episodes rather than none: every peer serves any way and any number of queries.

    Raises:
        InputError: If a class has no item left for the query.
    """
    counts = bank.offsets.diff()
    room = int(counts.min()) - budget.shot
    drawn = bank.episodes(
        way=min(budget.way, len(counts)),
        shot=budget.shot,
        query=max(1, min(budget.query, room)),
        episodes=episodes,
        seed=seed,
    )
    return Batch(bank.features[drawn.support], bank.features[drawn.query])


def validation_episodes(valid: FeatureBank, budget: Budget) -> Batch:
    """The episodes of validation classes on which a method makes its choices."""
    return draw(valid, budget, episodes=budget.valid_episodes, seed=budget.seed)


def score(logits: Tensor) -> float:
    """Mean accuracy over episodes, by which candidates are compared."""
    return float(accuracy(logits).mean())


class Chosen(Method, Generic[C]):
    """A method whose only freedom is one choice: the candidate best on validation, calibrated."""

    def __init__(self) -> None:
        self.scale = 1.0
        self.choice: C | None = None

    @abstractmethod
    def candidates(self, train: FeatureBank) -> Iterable[C]:
        """What there is to choose from."""

    @abstractmethod
    def logits(self, choice: C, support: Tensor, query: Tensor) -> Tensor:
        """Support [E, way, shot, D], query [E, way, Q, D] -> logits before calibration."""

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """Choose, then calibrate; see `Method.fit`."""
        train, valid = banks
        episodes = validation_episodes(valid, budget)
        candidates = self.candidates(train)
        self.choice = choose(candidates, lambda c: score(self.logits(c, *episodes)))
        self.scale = calibrate(self.logits(self.choice, *episodes))

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        return self.scale * self.logits(fitted(self.choice, self), support, query)


def choose(candidates: Iterable[T], score: Callable[[T], float]) -> T:
    """The candidate with the highest finite score; the earliest among equals.

    Raises:
        DivergedError: If no candidate has a finite score.
    """
    best: tuple[T, float] | None = None
    for candidate in candidates:
        value = score(candidate)
        if math.isfinite(value) and (best is None or value > best[1]):
            best = (candidate, value)
    if best is None:
        raise DivergedError("no candidate has a finite score", where="choice on validation")
    return best[0]
