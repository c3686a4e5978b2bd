"""Many small nets at once by products of windows, where `windows.c` can be compiled.

A convolution is a product of an image's windows with kernels, and one batched product has those of
E nets: it runs at the rate of the processor forward and backward, where the gradient of a grouped
convolution runs at half of it (`docs/lab-notes/speed.md`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.nets.grouped import Grouped
from ltdi.nets.net import NetConfig
from ltdi.nets.windows import Windows, library
from ltdi.products import fast_products


def grouped(config: NetConfig, like: Tensor) -> Grouped:
    """The faster way for weights and images of the type and device of `like`."""
    fast = like.dtype == torch.float32 and like.device.type == "cpu" and library() is not None
    return Unfolded(config) if fast else Grouped(config)


class Unfolded(Grouped):
    """`Grouped` for float32 on the CPU, in a third less time or half of it."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        layers, groups = len(config.strides), config.groups
        shapes = zip(
            (config.size, *config.sides),
            (config.channels, *config.widths),
            (0, *[groups] * layers),
            # The head sees one window, the whole image.
            (*config.kernels, config.sides[-1]),
            (*config.strides, 1),
            (*[1] * layers, 0),
            strict=True,
        )
        self.windows = [Windows(*shape) for shape in shapes]

    def enter(self, images: Tensor) -> Tensor:
        """Windows of images [E, P, channels, side, side] that the first layer sees."""
        x = images.permute(0, 1, 3, 4, 2).contiguous()
        return self.windows[0].forward(x, x)[0]

    def logits(self, parts: list[Tensor], x: Tensor) -> Tensor:
        """Logits [E, P, way] of images as `enter` has them."""
        return self._classes(parts, x)[0].mT

    def _classes(
        self, parts: list[Tensor], x: Tensor
    ) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Logits [E, way, P], all layers' windows, and what each normalisation keeps."""
        seen, kept = [x], []
        with fast_products():
            for i, windows in enumerate(self.windows[1:]):
                y = torch.bmm(x, parts[2 * i].flatten(2).mT)
                x, norm = windows.forward(y, parts[2 * i + 1])
                seen.append(x)
                kept.append((y, norm))
        # Classes first: softmax is ten times as fast over a dimension that is not the last one.
        return torch.baddbmm(parts[-1].unsqueeze(2), parts[-2], x.mT), seen, kept

    def gradient(
        self, parts: list[Tensor], x: Tensor, target: Tensor, share: Tensor | None = None
    ) -> list[Tensor]:
        """See `Grouped.gradient`."""
        logits, seen, kept = self._classes(parts, x)
        wrong = logits.softmax(1) - target.mT
        wrong.mul_(1 / wrong.shape[2] if share is None else share.mT)
        z = seen.pop()
        found = [wrong.sum(2), torch.bmm(wrong, z)]
        g = torch.bmm(wrong.mT, parts[-2], out=z)  # what was seen has served: g is written over it
        with fast_products():
            for i in range(len(kept) - 1, -1, -1):
                y, norm = kept[i]
                found.append(self.windows[i + 1].back(g, y, norm))
                found.append(torch.bmm(y.mT, seen[i]).view(parts[2 * i].shape))
                if i:  # nobody asks for the images' gradient
                    g = torch.bmm(y, parts[2 * i].flatten(2), out=seen[i])
        return found[::-1]
