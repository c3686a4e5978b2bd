"""Features made alike: power, unit length, principal components.

Pooled activations of a network trained elsewhere are skewed and differ in length for reasons that
are not the class; a power below one and unit length take both out (Wang et al., 2019, 1911.04623;
Yang et al., 2021, 2101.06395). Every method on the backbone sees the mapped features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.errors import InputError
from ltdi.tasks import FeatureBank


@dataclass(frozen=True)
class FeatureMapping:
    """How features are mapped.

    Attributes:
        power: Exponent of an activation's absolute value.
        width: Principal components kept; fewer where the features have fewer.
    """

    power: float = 0.5
    width: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.power <= 1 or self.width < 1:
            raise InputError(
                f"power must lie in (0, 1] and width be positive, got {self.power}, {self.width}",
                where="FeatureMapping",
            )


class FeatureMap(nn.Module):
    """x -> unit length of (x^power / |x^power| - mean) @ basis, times the root of the width.

    The power is that of the absolute value; the sign is kept.

    Args:
        features: D.
        mapping: Power and width d <= D.
    """

    def __init__(self, features: int, mapping: FeatureMapping) -> None:
        super().__init__()
        self.power, self.width = mapping.power, min(mapping.width, features)
        self.mean = nn.Buffer(torch.zeros(features))
        self.basis = nn.Buffer(torch.eye(features, self.width))

    @torch.no_grad()
    def fit(self, features: Tensor) -> FeatureMap:
        """Take mean and principal components from training features [n, D]."""
        x = self._unit(features).double()
        self.mean.copy_(x.mean(0))
        x = x - x.mean(0)
        vectors = torch.linalg.eigh(x.T @ x).eigenvectors.flip(-1)[:, : self.width]
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.basis.copy_(vectors * largest.sign())
        return self

    def forward(self, features: Tensor) -> Tensor:
        """[n, D] -> [n, d]."""
        with torch.autocast("cpu", enabled=False):
            z = (self._unit(features) - self.mean) @ self.basis
            out: Tensor = F.normalize(z, dim=-1) * float(self.width) ** 0.5
        return out

    def bank(self, bank: FeatureBank) -> FeatureBank:
        """Mapped features of a whole bank."""
        return FeatureBank(self(bank.features), bank.offsets, bank.classes)

    def _unit(self, features: Tensor) -> Tensor:
        x = features.float()
        return F.normalize(x.sign() * x.abs() ** self.power, dim=-1)


class MappedNet(nn.Module):
    """A network followed by a feature map."""

    def __init__(self, net: nn.Module, map: FeatureMap) -> None:
        super().__init__()
        self.net, self.map = net, map

    def forward(self, x: Tensor) -> Tensor:
        """Mapped features [n, d]."""
        out: Tensor = self.map(self.net(x))
        return out


def mapped_config(config: dict[str, Any], map: FeatureMap) -> dict[str, Any]:
    """How to build `MappedNet` again around a net that `config` builds."""
    about = {"kind": "mapped", "net": config, "features": len(map.mean)}
    kept = {"precision": config["precision"]} if "precision" in config else {}
    return {**about, "power": map.power, "width": map.width, **kept}
