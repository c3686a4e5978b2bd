"""Products of float32 matrices by the faster of torch's two libraries, where both are as exact.

On a CPU torch gives float32 products to MKL, which uses half of the width of an AMD processor
(111 GFLOP/s on a core of Zen 5, where oneDNN has 246). torch gives them to oneDNN where products
may be rounded to bfloat16. oneDNN rounds only where the processor has units for it (AMX), and is as
exact as MKL elsewhere. So the permission is given where a product of this process shows that no use
is made of it, and never asked for where float32 was promised.

A product that starts by oneDNN costs 10 us more: only large ones, or many in one, are worth it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

# Tasks at once from which on products are large enough.
MANY = 32


@contextmanager
def fast_products() -> Iterator[None]:
    """Products of float32 matrices on the CPU by oneDNN inside, if they stay those of float32."""
    if not exact():
        yield
        return
    before = _settings().fp32_precision
    _settings().fp32_precision = "bf16"
    try:
        yield
    finally:
        _settings().fp32_precision = before


def _settings() -> Any:
    """Of float32 products; None before torch 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@cache
def exact() -> bool:
    """Whether oneDNN, allowed to round to bfloat16, does not; False where torch cannot ask it."""
    settings = _settings()
    if not hasattr(settings, "fp32_precision"):
        return False
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        return all(_unrounded(size) for size in (16, 128, 512))
    finally:
        settings.fp32_precision = before


def _unrounded(size: int) -> bool:
    """Whether numbers that bfloat16 does not hold come out of products as they went in."""
    fine = torch.full((size, size), 1 + 2.0**-20)
    one = torch.eye(size)
    many = torch.bmm(fine.expand(2, -1, -1), one.expand(2, -1, -1))
    return bool(torch.equal(fine @ one, fine)) and bool((many == fine).all())
