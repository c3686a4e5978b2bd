"""A small convolutional classifier, all of whose weights can be generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.errors import InputError
from ltdi.weights import WeightSpace


@dataclass(frozen=True)
class NetConfig:
    """An architecture: convolutions with ReLU, then a linear head on all that is left.

    The normalisation has neither weights nor running statistics (GroupNorm without affine part),
    so the weights are all there is: no buffer has to be generated, recomputed or carried along.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: Side of the input in pixels.
        widths: Channels of the convolutions.
        kernels: Their sides.
        strides: Their strides.
        groups: Of GroupNorm; divides every width.
    """

    channels: int = 1
    size: int = 28
    widths: tuple[int, ...] = (16, 32, 32)
    kernels: tuple[int, ...] = (5, 3, 3)
    strides: tuple[int, ...] = (3, 2, 2)
    groups: int = 4

    def __post_init__(self) -> None:
        """Check that the pieces fit together.

        Raises:
            InputError: If they do not.
        """
        if not len(self.widths) == len(self.kernels) == len(self.strides) > 0:
            raise InputError(
                f"{len(self.widths)} widths, {len(self.kernels)} kernels and {len(self.strides)} "
                "strides do not describe one stack of convolutions",
                where="net",
                fix="give one of each for every convolution",
            )
        if min(self.kernels + self.strides + (self.groups, self.channels, self.size)) < 1:
            raise InputError("sizes of a net must be at least 1", where="net")
        if any(w < 1 or w % self.groups for w in self.widths):
            raise InputError(
                f"{self.groups} groups do not divide the widths {list(self.widths)}",
                where="net.groups",
            )
        if min(self.sides) < 1:
            raise InputError(
                f"images of {self.size} pixels are too small for kernels {list(self.kernels)} "
                f"with strides {list(self.strides)}: sides {list(self.sides)}",
                where="net.size",
                fix="give larger images, smaller kernels or fewer convolutions",
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of what each convolution gives."""
        found, side = [], self.size  # every convolution is padded by one pixel
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            side = (side + 2 - kernel) // stride + 1
            found.append(side)
        return tuple(found)

    @property
    def features(self) -> int:
        """Inputs of the head."""
        return int(self.widths[-1] * self.sides[-1] ** 2)

    @property
    def largest(self) -> int:
        """Most numbers that a convolution gives for an image."""
        return max(w * side**2 for w, side in zip(self.widths, self.sides, strict=True))


class SmallNet(nn.Module):
    """The net of a `NetConfig`: (images [n, channels, size, size]) -> logits [n, way].

    Args:
        config: Architecture.
        way: Classes.
    """

    def __init__(self, config: NetConfig, way: int) -> None:
        super().__init__()
        self.groups = config.groups
        sizes = zip(
            (config.channels, *config.widths),
            config.widths,
            config.kernels,
            config.strides,
            strict=False,
        )
        self.layers = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel, stride, 1) for inner, outer, kernel, stride in sizes
        )
        self.head = nn.Linear(config.features, way)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees of images, [n, D]."""
        for layer in self.layers:
            x = F.relu(F.group_norm(layer(x), self.groups))
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.head(self.features(x))
        return out


def net_space(config: NetConfig, way: int) -> WeightSpace:
    """The weight space of all weights of a net; its head's rows are classes."""
    with torch.device("meta"):
        return WeightSpace.from_module(SmallNet(config, way), per_class="head.*")
