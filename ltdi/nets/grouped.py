"""Many small nets at once, forward and backward in closed form.

E nets are one net of E groups of channels, laid out with channels last: that is the layout in which
grouped convolutions run at the rate of the processor. What automatic differentiation would record
and a generic normalisation would read twice is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.nets.net import NetConfig

EPS = 1e-5  # of GroupNorm


class Grouped:
    """Forward and backward pass of E nets of one architecture.

    Weights come as parts: for every convolution its kernels [E, out, side, side, in] and biases
    [E, out], then the head's rows [E, way, positions x channels] and biases [E, way].

    Args:
        config: Architecture.
    """

    def __init__(self, config: NetConfig) -> None:
        self.config = config

    def parts(self, weights: dict[str, Tensor]) -> list[Tensor]:
        """Parts of weights by name, each [E, ...]."""
        out = []
        for i in range(len(self.config.strides)):
            out.append(weights[f"layers.{i}.weight"].permute(0, 1, 3, 4, 2))
            out.append(weights[f"layers.{i}.bias"])
        rows = weights["head.weight"].unflatten(2, (self.config.widths[-1], -1))
        return [*out, rows.mT.flatten(2), weights["head.bias"]]

    def whole(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """The inverse of `parts`."""
        out = {}
        for i in range(len(self.config.strides)):
            out[f"layers.{i}.weight"] = parts[2 * i].permute(0, 1, 4, 2, 3)
            out[f"layers.{i}.bias"] = parts[2 * i + 1]
        rows = parts[-2].unflatten(2, (-1, self.config.widths[-1]))
        return out | {"head.weight": rows.mT.flatten(2), "head.bias": parts[-1]}

    def enter(self, images: Tensor) -> Tensor:
        """Images [E, P, channels, side, side] as one net sees them: [P, E channels, side, side]."""
        x = images.permute(1, 3, 4, 0, 2)
        return x.contiguous().flatten(3).permute(0, 3, 1, 2)

    def logits(self, parts: list[Tensor], x: Tensor) -> Tensor:
        """Logits [E, P, way] of images as `enter` has them."""
        return self._forward(parts, x)[0]

    def _forward(
        self, parts: list[Tensor], x: Tensor
    ) -> tuple[Tensor, list[Tensor], list[_Normed]]:
        """Logits, all layers' inputs, and what each normalisation keeps."""
        c, inputs, kept = self.config, [x], []
        count = len(parts[0])
        for i, stride in enumerate(c.strides):
            y = F.conv2d(x, _kernel(parts[2 * i]), parts[2 * i + 1].flatten(), stride, 1, 1, count)
            normed = _Normed(y, c.groups * count)
            x = normed.positive
            inputs.append(x)
            kept.append(normed)
        z = x.permute(0, 2, 3, 1).unflatten(3, (count, -1)).flatten(1, 2).permute(2, 0, 1, 3)
        inputs[-1] = z = z.flatten(2)  # [E, P, positions x channels]
        return torch.baddbmm(parts[-1].unsqueeze(1), z, parts[-2].mT), inputs, kept

    def gradient(
        self, parts: list[Tensor], x: Tensor, target: Tensor, share: Tensor | None = None
    ) -> list[Tensor]:
        """Gradient of every net's mean cross entropy, in parts.

        Args:
            parts: Weights of E nets.
            x: Images of all, as `enter` has them.
            target: [E, P, way] probabilities; or [P, way], the same for all.
            share: [E, P, 1] weights of the samples, in place of those of a mean.
        """
        c, count = self.config, len(parts[0])
        logits, inputs, kept = self._forward(parts, x)
        wrong = (logits.softmax(2) - target).mul_(1 / len(x) if share is None else share)
        z = inputs.pop()
        found = [wrong.sum(1), torch.bmm(wrong.mT, z)]
        g = torch.bmm(wrong, parts[-2])
        g = g.unflatten(2, (-1, c.widths[-1])).permute(1, 2, 0, 3).flatten(2)
        g = g.unflatten(1, (c.sides[-1], -1)).permute(0, 3, 1, 2)
        for i in range(len(c.strides) - 1, -1, -1):
            g = kept[i].back(g)
            found.append(g.sum((0, 2, 3)).view(count, -1))
            kernel, size = _kernel(parts[2 * i]), parts[2 * i].shape
            g, own, _ = torch.ops.aten.convolution_backward(
                g,
                inputs[i],
                kernel,
                None,
                [c.strides[i]] * 2,
                [1, 1],
                [1, 1],
                False,
                [0, 0],
                count,
                [i > 0, True, False],  # nobody asks for the images' gradient
            )
            found.append(own.permute(0, 2, 3, 1).reshape(size))
        return found[::-1]


class _Normed:
    """GroupNorm and ReLU of y [P, C, side, side], channels last, and their backward pass."""

    def __init__(self, y: Tensor, groups: int) -> None:
        self.y = y.contiguous(memory_format=torch.channels_last)
        samples, channels, *side = y.shape
        self.sizes = samples, channels, side[0] * side[1], groups
        z, self.mean, self.rate = torch.native_group_norm(self.y, None, None, *self.sizes, EPS)
        self.positive = z.relu_()

    def back(self, g: Tensor) -> Tensor:
        """Gradient [P, C, side, side] of y from that of the output, in place."""
        # torch reads it as if it lay like y, which the head's of nets of one channel does not.
        g = g.contiguous(memory_format=torch.channels_last)
        torch.ops.aten.threshold_backward.grad_input(g, self.positive, 0, grad_input=g)
        found: tuple[Tensor, ...] = torch.ops.aten.native_group_norm_backward(
            g, self.y, self.mean, self.rate, None, *self.sizes, [True, False, False]
        )
        return found[0]


def _kernel(part: Tensor) -> Tensor:
    """Kernels [E, out, side, side, in] as one grouped convolution takes them."""
    return part.flatten(0, 1).permute(0, 3, 1, 2)
