"""The small convolutional encoder."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Small convolutional encoder: a strided stem, then blocks of convolution and pooling.

    Args:
        channels: Input channels.
        width: Channels of the first block; later blocks have twice as many.
        size: Side of the input; the output is pooled to one position.
    """

    def __init__(self, channels: int = 1, width: int = 64, size: int = 28) -> None:
        super().__init__()
        self.width = 2 * width
        plan = [(channels, 32, 5, 2), (32, width, 3, 1), (width, 2 * width, 3, 1)]
        plan.append((2 * width, 2 * width, 3, 1))
        layers: list[nn.Module] = []
        for number, (inner, outer, kernel, stride) in enumerate(plan):
            layers += [
                nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]
            if 0 < number < len(plan) - 1:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, width]."""
        out: Tensor = self.layers(x)
        return out
