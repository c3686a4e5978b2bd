"""Many small nets by `direct.c`, where it can be compiled.

What one net makes of its images fits into a core's cache; what torch's operations on many nets hand
to each other does not. So the C code takes a net through all layers, forward and backward, before
the next one (`docs/lab-notes/speed.md`).

The file is compiled when first needed (0.5 s) where there is a C compiler: `cc`, or what the
environment variable CC names, with its options (nothing: it is not compiled).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shlex
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.nets.grouped import Grouped
from ltdi.nets.net import NetConfig

# The order of additions stays that of the source; but nobody asks for errno, with which no square
# root is vectorised.
_FLAGS = "-O2 -ftree-vectorize -march=native -fno-math-errno -fPIC -shared -lm"
# Images that go through a net together.
TOGETHER = 32


def grouped(config: NetConfig, like: Tensor) -> Grouped:
    """The faster way for weights and images of the type and device of `like`."""
    fast = like.dtype == torch.float32 and like.device.type == "cpu" and library() is not None
    return Direct(config) if fast else Grouped(config)


class Direct(Grouped):
    """`Grouped` for float32 on the CPU, in a third of its time or less.

    Parts have their outputs last: [E, side, side, in, out] and [E, positions x channels, way].
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        c = config
        # The first layer's windows are taken once for all steps: one position, of more channels.
        seen = c.channels * c.kernels[0] ** 2
        self.layers = [(c.sides[0], seen, c.widths[0], 1, 1, 0, c.groups)]
        rest = zip(c.sides, c.widths, c.widths[1:], c.kernels[1:], c.strides[1:], strict=False)
        self.layers += [(*shape, 1, c.groups) for shape in rest]

    def parts(self, weights: dict[str, Tensor]) -> list[Tensor]:
        """See `Grouped.parts`."""
        return [x.movedim(1, -1) for x in super().parts(weights)]

    def whole(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """See `Grouped.whole`."""
        return super().whole([x.movedim(-1, 1) for x in parts])

    def enter(self, images: Tensor) -> Tensor:
        """Windows [E, steps, steps, side, side, channels, P] of images [E, P, channels, ..]."""
        kernel, stride = self.config.kernels[0], self.config.strides[0]
        # Images last: what is copied lies side by side.
        x = F.pad(images, (1, 1, 1, 1)).permute(0, 3, 4, 2, 1).contiguous()
        x = x.unfold(1, kernel, stride).unfold(2, kernel, stride)
        return x.permute(0, 1, 2, 5, 6, 3, 4).contiguous()

    def logits(self, parts: list[Tensor], x: Tensor) -> Tensor:
        """Logits [E, P, way] of images as `enter` has them."""
        out = x.new_empty(len(x), x.shape[-1], parts[-1].shape[1])
        self._run(parts, x, out=out)
        return out

    def gradient(
        self, parts: list[Tensor], x: Tensor, target: Tensor, share: Tensor | None = None
    ) -> list[Tensor]:
        """See `Grouped.gradient`."""
        found = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parts]
        self._run(parts, x, found, target.expand(len(x), -1, -1), share)
        return found

    def _run(
        self,
        parts: list[Tensor],
        x: Tensor,
        found: list[Tensor] | None = None,
        target: Tensor | None = None,
        share: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        code, side = library(), self.config.sides[-1]
        assert code is not None
        layers = [*self.layers, (side, self.config.widths[-1], parts[-1].shape[1], side, 1, 0, 0)]
        numbers = (ctypes.c_long * (7 * len(layers)))(*itertools.chain(*layers))
        # The C code takes every pointer for so many floats in a row.
        given = [None if t is None else t.contiguous() for t in (*parts, x, target, share)]
        if any(t is not None and t.dtype != torch.float32 for t in given):
            raise TypeError("nets, images and targets of the C code are float32")
        *of, images, targets, shares = map(_address, given)
        into = None if found is None else _addresses(map(_address, found))
        sizes = len(x), x.shape[-1], TOGETHER, len(layers)
        others = images, targets, shares, _address(out)
        if not code.nets(*sizes, numbers, _addresses(of), into, *others):
            raise MemoryError("the images of small nets")


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _addresses(found: Iterable[int | None]) -> ctypes.Array[ctypes.c_void_p]:
    all_of = list(found)
    return (ctypes.c_void_p * len(all_of))(*all_of)


@cache
def library() -> ctypes.CDLL | None:
    """`direct.c`, compiled for this processor, or None where that is not possible."""
    source = Path(__file__).with_name("direct.c")
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"), posix=os.name == "posix")
        if not compiler:
            return None
        # Windows does not delete a library that is loaded.
        with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            target = Path(directory, "direct.so")
            command = [*compiler, str(source), "-o", str(target), *_FLAGS.split()]
            subprocess.run(command, check=True, capture_output=True)
            found = ctypes.CDLL(str(target))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    n, p = ctypes.c_long, ctypes.c_void_p
    found.nets.argtypes = [n, n, n, n, p, p, p, p, p, p, p]
    return found
