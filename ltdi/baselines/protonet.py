"""Nearest class mean (Snell, Swersky & Zemel, 2017, arXiv 1703.05175)."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.baselines.method import Banks, Budget, Method
from ltdi.baselines.tuning import validation_episodes
from ltdi.evaluate import calibrate
from ltdi.progress import Step


class ProtoNet(Method):
    """Squared Euclidean distance to the mean of each class's support."""

    name = "protonet"
    note = (
        "nearest class mean on the shared frozen backbone, inverse temperature calibrated; "
        "end-to-end training of the backbone is left out"
    )

    def __init__(self) -> None:
        self.scale = 1.0

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """Calibrate; see `Method.fit`."""
        self.scale = calibrate(nearest_mean(*validation_episodes(banks.valid, budget)))

    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`; needs no `fit`."""
        return self.scale * nearest_mean(support, query)


def nearest_mean(support: Tensor, query: Tensor) -> Tensor:
    """Negative squared distances [E, way, Q, way] of queries to class means."""
    means = support.mean(2)
    distance = torch.cdist(query.flatten(1, 2), means).square()
    return -distance.reshape(*query.shape[:3], -1)
