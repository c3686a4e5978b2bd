"""ConSE: an image is a convex combination of the source classes' names."""

from __future__ import annotations

from itertools import product

import torch.nn.functional as F
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


class Conse(FromNames):
    """Norouzi et al., 2014: the source classifier's top classes, weighed by their probability."""

    name = "conse"
    note = (
        "as published, on the Gaussian classifier of the source classes; coordinates, its "
        "temperature and the number of top classes chosen on validation"
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: Tensor
        self.sharpness = 0.05
        self.top = 10

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        train, valid = banks
        both = self._read(train)
        # A quarter of the tasks tells candidates apart.
        few = [batch[: max(4, len(batch) // 4)] for batch in valid]
        best = (-1.0, False, 0.0, 0)
        for whiten, sharpness, top in product((False, True), (0.01, 0.03, 0.1), (5, 20, 80)):
            self.coordinates, self.sharpness = both[whiten], sharpness
            self.top = min(top, len(train.names))
            best = max(best, (mean_accuracy(self.logits, few), whiten, sharpness, self.top))
        _, self.whiten, self.sharpness, self.top = best
        self.coordinates = both[self.whiten]

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        self.coordinates = self._read(source)[self.whiten]

    def _read(self, source: NamedBank) -> dict[bool, Coordinates]:
        """Take in the names; the coordinates to choose from."""
        both = self.begin(source)
        self.names = F.normalize(source.text - self.centre, dim=-1)
        return both

    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        means = self.coordinates.means
        z = self.coordinates.frame.enter(images)
        known = self.sharpness * (2 * z @ means.mT - means.square().sum(-1))
        top = known.softmax(-1).topk(self.top, -1)
        weight = known.new_zeros(known.shape).scatter(-1, top.indices, top.values)
        said = F.normalize(weight @ self.names, dim=-1)
        return said @ F.normalize(batch.text - self.centre, dim=-1).mT
