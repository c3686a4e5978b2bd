"""Seeds for what only draws from torch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ltdi.errors import InputError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generator has this seed; afterwards it is as it was.

    Modules take their initial weights, and dropout its masks, from there and from nowhere else.
    Everything that can be told of a `torch.Generator` gets one instead.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def check_seed(seed: object, where: str = "seed") -> None:
    """Refuse what cannot seed torch's generators.

    Raises:
        InputError: For anything but a whole number of 63 bits.
    """
    if not isinstance(seed, int) or abs(seed) >= 1 << 63:
        raise InputError(
            f"a seed is a whole number of at most 63 bits, got {seed!r}",
            where=where,
            fix="take a small one, such as 0",
        )
