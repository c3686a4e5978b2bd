"""Features made ready for peers: few axes, and one scale, so that one set of step sizes fits all.

Both are learnt from the training classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.tasks import FeatureBank

_MOST_AXES = 256


@dataclass(frozen=True, eq=False)
class Reduction:
    """Features in their leading principal axes, so that a square map of them stays small.

    The axes are those of the second moment, not of the covariance: the mean keeps its direction,
    and so a sample its length.

    Attributes:
        axes: [D, d] orthonormal columns; None leaves features as they are.
    """

    axes: Tensor | None

    @classmethod
    def fit(cls, features: Tensor, most: int = _MOST_AXES) -> Reduction:
        """The `most` leading axes of training features [n, D]; nothing is done where D <= most."""
        if features.shape[1] <= most:
            return cls(None)
        x = features.double()
        _, axes = torch.linalg.eigh(x.mT @ x)
        return cls(axes[:, -most:].flip(1).to(features.dtype))

    def __call__(self, features: Tensor) -> Tensor:
        """Features [..., D] -> [..., d]."""
        return features if self.axes is None else features @ self.axes

    def bank(self, bank: FeatureBank) -> FeatureBank:
        """The bank with reduced features."""
        return replace(bank, features=self(bank.features))


@dataclass(frozen=True, eq=False)
class Scaling:
    """Centre features by the training mean and bring them to unit length.

    Attributes:
        mean: [D] of the training features, or zeros.
        length: Root mean square norm of the centred training features.
        sphere: Give every sample unit length (L2 normalisation) instead of the set on average,
            which keeps Euclidean geometry.
        unit: Give every sample unit length before it is centred, too: where features have no
            negative part, their length says little about the class.
    """

    mean: Tensor
    length: float
    sphere: bool
    unit: bool = False

    @classmethod
    def fit(
        cls, features: Tensor, *, sphere: bool, unit: bool = False, centre: bool = True
    ) -> Scaling:
        """Learn the scaling from training features [n, D]."""
        features = F.normalize(features, dim=-1) if unit else features
        mean = features.mean(0) if centre else torch.zeros_like(features[0])
        length = float((features - mean).square().sum(-1).mean().sqrt())
        # Features that are all equal keep their (zero) length.
        return cls(mean, length or 1.0, sphere, unit)

    def __call__(self, features: Tensor) -> Tensor:
        """Scale features [..., D]."""
        features = F.normalize(features, dim=-1) if self.unit else features
        centred = features - self.mean
        return F.normalize(centred, dim=-1) if self.sphere else centred / self.length


def scalings(features: Tensor) -> tuple[Scaling, ...]:
    """The candidates for a method that chooses its scaling on validation."""
    return (
        Scaling.fit(features, sphere=False),
        Scaling.fit(features, sphere=True),
        Scaling.fit(features, sphere=True, unit=True),
    )
