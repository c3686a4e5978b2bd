"""A denoiser of heads for new domains: it also reads a pool of unlabelled samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ltdi.denoiser.conditional import Guide
from ltdi.denoiser.equivariant import EquivariantDenoiser, Support, describe
from ltdi.domain import Scene
from ltdi.errors import InputError


@dataclass(frozen=True)
class DomainGuide(Guide):
    """A guide for tasks of a domain.

    Attributes:
        scene: What other domains and the pool tell.
    """

    scene: Scene


class DomainDenoiser(EquivariantDenoiser):
    """Two more vectors a class: what other domains lead to expect, and what the pool shows.

    The pool is shared out among the classes by the *current* estimate. So every step of the chain
    reads it anew, and several steps are a learned expectation maximisation.

    Source domains are few and have the same classes, which inner products would tell apart: a
    network that reads them learns the classes by heart (docs/lab-notes.md). So it reads four
    numbers a class: how many samples there are, how much of the pool it gets and how surely, and
    how wrong the estimate is on its support.
    """

    own: ClassVar[int] = 5
    scalars: ClassVar[int] = 4
    grams: ClassVar[bool] = False

    def describe(self, rows: Tensor, code: Support, guide: Guide) -> tuple[Tensor, Tensor, Tensor]:
        """See `EquivariantDenoiser.describe`."""
        scene = _scene(guide)
        vectors, scalars, confusion = describe(rows, code)
        way = rows.shape[1]
        every = torch.cat([rows, scene.others], 1)
        offset = torch.cat([torch.zeros_like(rows[..., 0]), scene.absent], 1)
        logits = scene.pool @ every[..., :-1].mT + (every[..., -1] + offset).unsqueeze(1)
        ours = logits.softmax(-1)[..., :way]
        mass = ours.sum(1)
        shown = (ours.mT @ scene.pool) / (mass + 1e-3).unsqueeze(-1)
        sure = ours.square().sum(1) / (mass + 1e-3)
        share = (mass / scene.pool.shape[1]).clamp(min=1e-4).log()
        facts = torch.stack([code.count.log(), share, sure, scalars[..., 1]], -1)
        vectors = torch.cat([vectors, scene.prior.unsqueeze(2), shown.unsqueeze(2)], 2)
        return vectors, facts, confusion

    def tie(self, weight: Tensor, change: Tensor, guide: Guide) -> Tensor:
        """Bias of a Gaussian head: -|w|^2 / (4 scale), which moves with the weights.

        What a source head has added has a bias of its own, which does not.
        """
        scene = _scene(guide)
        own = weight - scene.lean
        moved = ((own + change).square() - own.square()).sum(-1)
        return -moved / (4 * scene.scale.unsqueeze(-1))


def _scene(guide: Guide) -> Scene:
    if not isinstance(guide, DomainGuide):
        raise InputError("this denoiser needs the scene of a domain", where="guide")
    return guide.scene
