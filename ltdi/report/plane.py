"""The plane of weight space that a figure is drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.errors import InputError


@dataclass(frozen=True)
class Plane:
    """A plane in weight space.

    Attributes:
        mean: [n] a point of it.
        axes: [2, n] orthonormal directions.
        share: [2] share of the points' variance along each.
    """

    mean: Tensor
    axes: Tensor
    share: Tensor

    def project(self, points: Tensor) -> Tensor:
        """[m, n] -> coordinates [m, 2] of the nearest points of the plane."""
        return (points.to(self.mean) - self.mean) @ self.axes.T

    def lift(self, coordinates: Tensor) -> Tensor:
        """[m, 2] -> points [m, n] of the plane."""
        return coordinates.to(self.mean) @ self.axes + self.mean


def principal_plane(points: Tensor) -> Plane:
    """The plane through the mean of points [m, n] that holds most of their variance.

    Raises:
        InputError: If there are fewer than 2 points or dimensions, or a number is not finite.
    """
    if points.ndim != 2 or min(points.shape) < 2 or not bool(points.isfinite().all()):
        raise InputError(
            f"a plane needs finite points [m >= 2, n >= 2], got {list(points.shape)}",
            where="principal_plane",
            fix="drop diverged weights, and give at least two points",
        )
    x = points.detach().cpu().double()
    mean = x.mean(0)
    _, spread, axes = torch.linalg.svd(x - mean, full_matrices=False)
    axes = axes[:2]
    # A singular vector's sign is arbitrary: its largest entry shall be positive.
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    variance = spread.square()
    return Plane(mean, axes, variance[:2] / variance.sum().clamp(min=1e-300))
