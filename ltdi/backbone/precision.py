"""Which arithmetic a forward pass uses."""

from __future__ import annotations

import torch

from ltdi.errors import unknown

PRECISIONS = ("auto", "float32")


def lowers(precision: str) -> bool:
    """Whether a precision means bfloat16 on this processor.

    Raises:
        InputError: For another name.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    # Without the instructions bfloat16 is emulated, and slower than float32.
    return precision == "auto" and torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str) -> torch.autocast:
    """bfloat16 where the processor computes in it and the caller allows it; see `lowers`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=lowers(precision))
