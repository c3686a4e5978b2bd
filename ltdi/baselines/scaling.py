"""Feature scaling learnt from the training classes, so that one set of step sizes fits all."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scaling:
    """Centre features by the training mean and bring them to unit length.

    Attributes:
        mean: [D] of the training features.
        length: Root mean square norm of the centred training features.
        sphere: Give every sample unit length (L2 normalisation) instead of the set on average,
            which keeps Euclidean geometry.
    """

    mean: Tensor
    length: float
    sphere: bool

    @classmethod
    def fit(cls, features: Tensor, *, sphere: bool) -> Scaling:
        """Learn the scaling from training features [n, D]."""
        mean = features.mean(0)
        length = float((features - mean).square().sum(-1).mean().sqrt())
        # Features that are all equal keep their (zero) length.
        return cls(mean, length or 1.0, sphere)

    def __call__(self, features: Tensor) -> Tensor:
        """Scale features [..., D]."""
        centred = features - self.mean
        return F.normalize(centred, dim=-1) if self.sphere else centred / self.length


def scalings(features: Tensor) -> tuple[Scaling, Scaling]:
    """Both candidates for a method that chooses its scaling on validation."""
    return Scaling.fit(features, sphere=False), Scaling.fit(features, sphere=True)
