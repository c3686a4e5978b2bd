"""Domains whose classes are Gaussians: what the truth is, is known."""

from __future__ import annotations

import torch

from ltdi.crossdomain import Domain, split_domain
from ltdi.tasks import FeatureBank

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
NAMES = ("clay", "glass", "ink", "wax")


def make_bank(
    seed: int, *, count: int = 30, width: int = 12, drift: float = 0.35, shift: float = 3.0
) -> FeatureBank:
    """One domain: class means common to all, moved by the domain, and by class and domain."""
    common = torch.randn(len(CLASSES), width, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    means = 0.7 * common + drift * torch.randn(common.shape, generator=rng)
    means = means + shift * torch.randn(width, generator=rng)
    features = means.repeat_interleave(count, 0)
    features = features + torch.randn(features.shape, generator=rng)
    offsets = torch.arange(len(CLASSES) + 1) * count
    return FeatureBank(features, offsets, CLASSES)


def make_domains(**options: float) -> list[Domain]:
    """Four of them, a third of each without labels."""
    return [
        split_domain(name, make_bank(i, **options), share=1 / 3, seed=i)  # type: ignore[arg-type]
        for i, name in enumerate(NAMES)
    ]
