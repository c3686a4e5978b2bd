"""Features of made-up classes, and comparisons."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltdi.generator import HeadGenerator
from ltdi.parts import tensors_of
from ltdi.tasks import FeatureBank

WIDTH, ITEMS = 8, 12


def gaussian_bank(classes: int, seed: int, prefix: str) -> FeatureBank:
    """Class means ~ N(1, I), items ~ N(mean, diagonal)."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.3, 1.5, WIDTH)
    means = 1 + torch.randn(classes, 1, WIDTH, generator=rng)
    items = means + spread * torch.randn(classes, ITEMS, WIDTH, generator=rng)
    names = tuple(f"{prefix}{c}" for c in range(classes))
    return FeatureBank(items.flatten(0, 1), torch.arange(classes + 1) * ITEMS, names)


def tensors(generator: HeadGenerator) -> dict[str, Tensor]:
    return tensors_of(generator.parts)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


Train = Callable[..., HeadGenerator]
