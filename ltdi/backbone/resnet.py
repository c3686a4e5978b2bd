"""The residual encoder of few-shot learning, for small natural images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32


class Stage(nn.Module):
    """Three 3x3 convolutions and a 1x1 shortcut around them, then 2x2 max pooling."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *_conv(inner, outer, 3),
            nn.LeakyReLU(0.1, inplace=True),
            *_conv(outer, outer, 3),
            nn.LeakyReLU(0.1, inplace=True),
            *_conv(outer, outer, 3),
        )
        self.shortcut = nn.Sequential(*_conv(inner, outer, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, h, w] -> [n, outer, ceil(h / 2), ceil(w / 2)]."""
        x = F.leaky_relu(self.main(x) + self.shortcut(x), 0.1, inplace=True)
        return F.max_pool2d(x, 2, ceil_mode=True)


class ResNet12(nn.Module):
    """ResNet-12 (Oreshkin et al., 2018, section 4) behind a stem that may be strided.

    A stem of stride 2 divides the cost by four: 64 pixels enter the first stage as 32.

    Args:
        channels: Input channels.
        widths: Output channels of each stage; D is the last one.
        stride: Of the stem's 5x5 convolution.
    """

    def __init__(
        self, channels: int = 3, widths: Sequence[int] = (32, 64, 128, 256), stride: int = 2
    ) -> None:
        super().__init__()
        self.width = widths[-1]
        self.stem = nn.Sequential(
            *_conv(channels, STEM, 5, stride), nn.LeakyReLU(0.1, inplace=True)
        )
        self.stages = nn.Sequential(*(Stage(a, b) for a, b in pairwise((STEM, *widths))))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, D], the mean over the positions that are left."""
        out: Tensor = self.stages(self.stem(x))
        return out.float().mean((2, 3))


def _conv(inner: int, outer: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outer)]
