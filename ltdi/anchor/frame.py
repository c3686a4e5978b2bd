"""Frames: coordinates of features in which all directions mean the same thing.

In a frame the spread within classes is the identity and that between classes is diagonal. A
network that reads a task there, and knows how much classes differ along each coordinate, needs to
know nothing else about the features: it cannot learn the training classes by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """An affine change of coordinates z = (x - mean) @ basis.

    Attributes:
        mean: [D] origin.
        basis: [D, D] invertible.
        between: [D] variance of class means along each coordinate, in units of the variance
            within classes.
    """

    mean: Tensor
    basis: Tensor
    between: Tensor

    @classmethod
    def identity(cls, width: int) -> Frame:
        """The features' own coordinates."""
        return cls(torch.zeros(width), torch.eye(width), torch.ones(width))

    def enter(self, features: Tensor) -> Tensor:
        """Features [..., D] in this frame."""
        return (features - self.mean) @ self.basis

    def leave(self, theta: Tensor, origin: Tensor | None = None) -> Tensor:
        """Heads [..., way * (D + 1)] of this frame, as heads on the features themselves.

        `head_logits(frame.leave(theta, origin), x)` equals
        `head_logits(theta, frame.enter(x) - origin)`.

        Args:
            theta: The heads.
            origin: [..., D] where in this frame they have their origin; the frame's by default.
        """
        width = len(self.mean)
        rows = theta.unflatten(-1, (-1, width + 1))
        bias = rows[..., -1]
        if origin is not None:
            bias = bias - (rows[..., :-1] @ origin.unsqueeze(-1)).squeeze(-1)
        weight = rows[..., :-1] @ self.basis.mT
        bias = bias - weight @ self.mean
        return torch.cat([weight, bias.unsqueeze(-1)], -1).flatten(-2)
