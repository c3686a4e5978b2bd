"""What every few-shot method offers: maybe a meta-training, then logits for batches of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import Tensor

from ltdi.errors import InputError
from ltdi.progress import Step
from ltdi.tasks import FeatureBank

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """What a method may spend, and the episodes it will be judged on.

    Attributes:
        iterations: Outer iterations of meta-training; methods without one ignore it.
        way: Classes per episode.
        shot: Support items per class.
        query: Query items per class.
        valid_episodes: Episodes every choice and calibration is made on.
        seed: Fixes initial weights, training episodes and validation episodes.
    """

    iterations: int
    way: int
    shot: int
    query: int
    valid_episodes: int = 200
    seed: int = 0


class Banks(NamedTuple):
    """What a method learns from.

    Attributes:
        train: Features of the classes to learn from.
        valid: Features of other classes, for choices and calibration only.
    """

    train: FeatureBank
    valid: FeatureBank


class Contender(ABC):
    """What a comparison tells of a method of any family.

    Attributes:
        name: Its name in tables and on the command line.
        kind: `"ours"`, `"control"` or `"peer"`.
        note: One sentence: what is re-implemented and what is left out.
        prepare_s: Seconds of weight preparation, after `fit`.
        train_s: Seconds of training, after `fit`; 0 where they are those of `fit` itself.
    """

    name: str
    kind: str = "peer"
    note: str
    prepare_s: float = 0.0
    train_s: float = 0.0


class Method(Contender):
    """A few-shot classifier on the features of a shared frozen backbone."""

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """Learn from the classes of `train`; make every choice on episodes of `valid`.

        Raises:
            InputError: If a bank is too small for a single episode.
            DivergedError: If meta-training leaves the finite numbers.
        """

    @abstractmethod
    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """Classify the queries of E independent tasks at once; memory is linear in E.

        Args:
            support: [E, way, shot, D]; a sample's label is its index on the way axis.
            query: [E, way, Q, D]; the way axis only arranges the samples.

        Returns:
            Logits [E, way, Q, way]; their softmax is calibrated on the validation episodes.

        Raises:
            InputError: If the method needs `fit` first.
        """


def fitted(value: T | None, method: object) -> T:
    """`value`, which a method's `fit` sets, or an error that says to call it.

    Raises:
        InputError: If `fit` has not run.
    """
    if value is None:
        kind = type(method).__name__
        raise InputError(
            f"{getattr(method, 'name', kind)} cannot predict before it is fitted",
            where=f"{kind}.predict",
            fix="call fit first",
        )
    return value
