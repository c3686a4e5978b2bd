"""Seeds for what only draws from torch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generator has this seed; afterwards it is as it was.

    Modules take their initial weights, and dropout its masks, from there and from nowhere else.
    Everything that can be told of a `torch.Generator` gets one instead.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
