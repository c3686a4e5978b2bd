"""Ridge regression from class names to classifier weights."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from ltdi.baselines.unseen.method import (
    Coordinates,
    FromNames,
    NamedBanks,
    UnseenBudget,
    mean_accuracy,
)
from ltdi.progress import Step
from ltdi.unseen.tasks import NamedBank, TaskBatch


class Devise(FromNames):
    """A linear map between names and images, as DeViSE (Frome et al., 2013) has."""

    name = "devise"
    note = (
        "ridge regression from name vectors to class means, cosine scores; the published method "
        "maps images to names with a ranking loss; coordinates and ridge chosen on validation"
    )

    def __init__(self) -> None:
        super().__init__()
        self.map: Tensor
        self.offset: Tensor
        self.ridge = 1.0

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        train, valid = banks
        both = self.begin(train)
        best = (-1.0, False, 0.0)
        for whiten, ridge in product((False, True), (0.3, 1.0, 2.0, 4.0, 8.0, 16.0)):
            self._solve(both[whiten], train, ridge)
            best = max(best, (mean_accuracy(self.logits, valid), whiten, ridge))
        _, self.whiten, self.ridge = best
        self._solve(both[self.whiten], train, self.ridge)

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        self._solve(self.begin(source)[self.whiten], source, self.ridge)

    def _solve(self, coordinates: Coordinates, source: NamedBank, ridge: float) -> None:
        x = (source.text - self.centre).double()
        self.coordinates = coordinates
        self.offset = coordinates.means.mean(0)
        y = (coordinates.means - self.offset).double()
        gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.double)
        self.map = torch.linalg.solve(gram, x.T @ y).float()

    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        rows = self.offset + (batch.text - self.centre) @ self.map
        return self.coordinates.cosine(images, rows)
