"""What is between the products of small conv nets: norm, ReLU and windows, and the way back.

torch goes through memory a dozen times for it. `windows.c` does it image by image, in the cache. It
is compiled when first needed (0.3 s) where there is a C compiler: `cc`, or what the environment
variable CC names (nothing: it is not compiled).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

# The order of additions stays that of the source; but nobody asks for errno, and a call for each
# short copy would take longer than the copy.
_FLAGS = "-O3 -march=native -fno-math-errno -fno-tree-loop-distribute-patterns -fPIC -shared -lm"


class Windows:
    """Windows that a layer sees of images, [E, P x side x side, channels] for E nets.

    Args:
        side: Of the images.
        channels: Theirs.
        groups: Of the GroupNorm and ReLU before; 0 for images as they are.
        kernel: Side of a window.
        stride: From one to the next.
        pad: Zeros around an image.
    """

    def __init__(
        self, side: int, channels: int, groups: int, kernel: int, stride: int, pad: int
    ) -> None:
        steps = (side + 2 * pad - kernel) // stride + 1
        self.channels, self.groups, self.side = channels, groups, side
        self.count, self.size = steps * steps, kernel * kernel * channels
        self._shape = (side, channels, groups, kernel, stride, pad)

    def forward(self, y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of y + bias, bias [E, channels], and what the way back needs of their norm.

        Returns:
            [E, P x steps x steps, kernel x kernel x channels], and [2, images, side x channels].
        """
        nets, row = len(y), self.side * self.channels
        images = y.numel() // (row * self.side)
        out = y.new_empty(nets, images // nets * self.count, self.size)
        norm = y.new_empty(2, images, row if self.groups else 0)
        self._run("windows", y, bias.contiguous(), out, norm)
        return out, norm

    def back(self, g: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        """Gradient of the bias, [E, channels], and over y that of y, from that of the windows."""
        bias = y.new_empty(len(y), self.channels)
        self._run("back", y, bias, g, norm)
        return bias

    def _run(self, name: str, y: Tensor, *others: Tensor) -> None:
        images = others[-1].shape[1]
        # The C code takes every pointer for so many floats in a row.
        if any(x.dtype != torch.float32 or not x.is_contiguous() for x in (y, *others)):
            raise TypeError("windows are of contiguous float32 tensors")
        pointers = [x.data_ptr() for x in (y, *others)]
        if not getattr(library(), name)(*pointers, images, images // len(y), *self._shape):
            raise MemoryError("the windows of small nets")


@cache
def library() -> ctypes.CDLL | None:
    """`windows.c`, compiled for this processor, or None where that is not possible."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    # Windows does not delete a library that is loaded.
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        target = Path(directory, "windows.so")
        source = Path(__file__).with_name("windows.c")
        try:
            command = [compiler, str(source), "-o", str(target), *_FLAGS.split()]
            subprocess.run(command, check=True, capture_output=True)
            found = ctypes.CDLL(str(target))
        except (OSError, subprocess.CalledProcessError):
            return None
    for call in (found.windows, found.back):
        call.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 8
    return found
