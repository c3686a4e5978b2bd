"""Weights of zero mean and unit scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.weights.space import WeightSpace


@dataclass(frozen=True)
class Normaliser:
    """Per-parameter affine map to zero mean and unit scale.

    Attributes:
        mean: [params].
        std: [params], positive.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, theta: Tensor, space: WeightSpace, *, centre: bool = True) -> Normaliser:
        """Fit to weights [..., n] of a zoo; `centre=False` keeps zero where it is."""
        flat = theta.reshape(-1, theta.shape[-1]).double()
        groups = [space.param_of == i for i in range(len(space.params))]
        mean = torch.stack([flat[:, g].mean() for g in groups])
        mean = mean if centre else torch.zeros_like(mean)
        std = torch.stack(
            [(flat[:, g] - m).square().mean().sqrt() for g, m in zip(groups, mean, strict=True)]
        )
        # A parameter that never moves keeps its value: scale one, not zero.
        std = torch.where(std > 1e-12, std, torch.ones_like(std))
        return cls(mean.float(), std.float())

    def scale(self, space: WeightSpace) -> Tensor:
        """[n] standard deviation of every entry of the flat vector."""
        return self.std[space.param_of.to(self.std.device)]

    def normalise(self, theta: Tensor, space: WeightSpace) -> Tensor:
        """Weights [..., n] -> normalised weights [..., n]."""
        return (theta - self.mean[space.param_of.to(self.mean.device)]) / self.scale(space)

    def denormalise(self, theta: Tensor, space: WeightSpace) -> Tensor:
        """The inverse of `normalise`."""
        return theta * self.scale(space) + self.mean[space.param_of.to(self.mean.device)]
