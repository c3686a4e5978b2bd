"""What every method without labels offers, and what its choices are made by."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.anchor import GaussianAnchor
from ltdi.anchor.frame import Frame
from ltdi.baselines.method import Contender
from ltdi.progress import Step
from ltdi.unseen.tasks import NamedBank, TaskBatch


@dataclass(frozen=True)
class UnseenBudget:
    """What a method may spend.

    Attributes:
        iterations: Of gradient descent, for methods that have it.
        pool: Fewest and most unlabelled images per class of a training task; (0, 0) for names
            alone.
        ways: Classes per training task.
        seed: Of everything.
    """

    iterations: int
    pool: tuple[int, int]
    ways: tuple[int, ...] = (5, 10, 20)
    seed: int = 0


class NamedBanks(NamedTuple):
    """What a method learns from.

    Attributes:
        train: Source classes, with names and features.
        valid: Tasks of other classes, one batch for each way.
    """

    train: NamedBank
    valid: Sequence[TaskBatch]


class UnseenMethod(Contender):
    """A classifier of images for tasks without labels, on the features of a shared backbone."""

    _final: Self | None = None

    @abstractmethod
    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """Learn from the source classes; make every choice on the validation tasks.

        Args:
            banks: Both.
            budget: What may be spent, and the shape of training tasks.
            progress: Called with (iterations done, of how many, a short message).
        """

    def again(self, source: NamedBank, budget: UnseenBudget) -> Self:
        """This method learned again from more source classes, with the choices that `fit` made.

        Validation classes have done their work once everything is chosen, and are source classes
        like any other. The method itself stays as it is; what comes of it is kept.

        Args:
            source: All source classes.
            budget: That of `fit`.
        """
        if self._final is None:
            self._final = copy.copy(self)
            self._final._learn(source, budget)
        return self._final

    @abstractmethod
    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        """Replace all that is learned, and nothing that was chosen."""

    @abstractmethod
    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """Logits [E, P, way] of images [E, P, D] of E tasks; `batch.query` is not looked at."""


@torch.no_grad()
def accuracy(logits: Tensor, batch: TaskBatch) -> float:
    """Of logits [E, way Q, way] of a batch's query."""
    label = torch.arange(batch.way).repeat_interleave(batch.query.shape[2])
    return float((logits.argmax(-1) == label).float().mean())


@torch.no_grad()
def mean_accuracy(
    logits: Callable[[TaskBatch, Tensor], Tensor], valid: Sequence[TaskBatch]
) -> float:
    """Over validation tasks; every way counts the same."""
    found = [accuracy(logits(batch, batch.query.flatten(1, 2)), batch) for batch in valid]
    return sum(found) / len(found)


@dataclass(frozen=True)
class Coordinates:
    """Features as a peer sees them: centred on the source classes, and whitened where that helps.

    Attributes:
        frame: Centre and basis.
        means: [classes, D] source class means in these coordinates.
    """

    frame: Frame
    means: Tensor

    @classmethod
    def fit(cls, source: NamedBank, whiten: bool) -> Coordinates:
        """On the source classes, the sets that they are of centred alike.

        Args:
            source: The classes.
            whiten: Whether the spread within classes becomes the identity (Fisher, 1936).
        """
        bank = source.centred().bank
        if whiten:
            frame = GaussianAnchor(bank.width).fit(bank, 0.1).frame(bank.width)
        else:
            plain = Frame.identity(bank.width)
            frame = Frame(bank.features.mean(0), plain.basis, plain.between)
        return cls(frame, bank.means(frame.enter(bank.features)))

    def cosine(self, images: Tensor, rows: Tensor) -> Tensor:
        """Cosines [E, P, way] of images [E, P, D] and rows [E, way, D]."""
        z = F.normalize(self.frame.enter(images), dim=-1)
        return z @ F.normalize(rows, dim=-1).mT


class FromNames(UnseenMethod):
    """A peer that goes from names to images or back, in coordinates that it chooses.

    Attributes:
        coordinates: Of images.
        whiten: Which of both it has chosen.
        centre: [W] mean vector of the source classes' names.
    """

    def __init__(self) -> None:
        self.coordinates: Coordinates
        self.whiten = True
        self.centre: Tensor

    def begin(self, train: NamedBank) -> dict[bool, Coordinates]:
        """Centre the names; the coordinates to choose from, plain and whitened."""
        self.centre = train.text.mean(0)
        return {whiten: Coordinates.fit(train, whiten) for whiten in (False, True)}
