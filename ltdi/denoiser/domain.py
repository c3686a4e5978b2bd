"""A denoiser of heads for new domains: it also reads a pool of unlabelled samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.anchor import shrinkage
from ltdi.anchor.domain import Scene
from ltdi.denoiser.conditional import Guide
from ltdi.denoiser.equivariant import STEP, EquivariantDenoiser, Pace, Support, describe
from ltdi.denoiser.transformer import Block
from ltdi.errors import InputError

# No probability, and no NaN where it is multiplied by 0.
_NEVER = -1e30


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
    network that reads them learns the classes by heart (docs/lab-notes/domains.md). So it reads
    four numbers of a class: how many samples there are, how much of the pool it gets and how
    surely, and how wrong the estimate is on its support.
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


class DomainWalk:
    """Tasks along a chain, all at the same step: what no step changes is worked out once.

    A step equals `DomainDenoiser.denoise` to rounding, with a third of the operations: all samples
    go through one product with the heads, and classes that are not the task's through none.
    """

    def __init__(self, network: DomainDenoiser, code: Support, guide: Guide) -> None:
        scene, (way, width) = _scene(guide), code.mean.shape[1:]
        self.network, self.way, self.width = network, way, width
        self.shown_from = code.z.shape[1] * code.z.shape[2]
        self.start = guide.anchor.unflatten(-1, (way, width + 1))
        weight = self.start[..., :-1]
        self.unit = torch.cat([network.unit[:1].expand(width), network.unit[1:]])
        # Support, class means, pool; a column for the bias, and one for all other classes at once.
        every = scene.others[..., :-1] @ scene.pool.mT
        rest = (every + (scene.others[..., -1] + scene.absent).unsqueeze(-1)).logsumexp(1)
        x = torch.cat([code.z.flatten(1, 2), code.mean, scene.pool], 1)
        self.items = F.pad(x, (0, 2), value=1.0)
        self.items[:, : self.shown_from + way, -1] = _NEVER
        # Without another class that is known there is none.
        self.items[:, self.shown_from + way :, -1] = rest.clamp(min=_NEVER)
        self.heads = x.new_zeros(len(x), way + 1, width + 2)
        self.heads[:, -1, -1] = 1
        one = torch.eye(way).to(x)
        # A class is not confused with itself.
        self.offset = x.new_zeros(1, way + 1, x.shape[1])
        self.offset[:, :way, self.shown_from : self.shown_from + way] = _NEVER * one
        unit = 1 / code.count.mean(-1)[:, None, None]
        label = one.repeat_interleave(code.z.shape[2], 1)
        self.mask = code.mask.flatten(1).unsqueeze(1) * unit
        self.label = label * self.mask
        self.wrong = label / unit / code.count.unsqueeze(-1)
        self.mean, self.prior = code.mean, scene.prior
        self.count = code.count.log()
        both = torch.stack([one, (1 - one) / (way - 1)], 1)
        self.mix = both.expand(len(x), -1, -1, -1)
        belief = shrinkage(guide.between, code.count)
        self.filters = torch.stack([torch.ones_like(belief), belief, belief.square()], 2)
        self.size = STEP * weight.square().mean((1, 2)).sqrt().unsqueeze(-1)
        self.twice = 2 * (weight - scene.lean)
        self.fall = -1 / (4 * scene.scale.unsqueeze(-1))

    def step(self, x: Tensor, signal: float, pace: Pace) -> Tensor:
        """Normalised residual [B, n] to the anchor, for x_t [B, n]."""
        way, width, first = self.way, self.width, self.shown_from
        rows = x.view(self.start.shape)
        self.heads[:, :way, :-1] = torch.addcmul(self.start, self.unit, rows, value=signal)
        likely = torch.baddbmm(self.offset, self.heads, self.items.mT).softmax(1)[:, :way]
        ours = likely[..., first + way :]
        residual = torch.addcmul(self.label, likely[..., :first], self.mask, value=-1)
        uphill = torch.bmm(residual, self.items[:, :first])[..., :width]
        shared = torch.bmm(ours, self.items[:, first + way :])
        mass = shared[..., width]
        some = mass + 1e-3
        facts = torch.stack(
            [
                self.count,
                (mass / ours.shape[-1]).clamp(min=1e-4).log(),
                (ours * ours).sum(-1) / some,
                (residual * self.wrong).sum(-1),
            ],
            -1,
        )
        shown = shared[..., :width] / some.unsqueeze(-1)
        own = torch.stack(
            [self.mean, self.heads[:, :way, :width], uphill, self.prior, shown], 2
        ).flatten(2)
        confusion = likely[..., first : first + way].mT.unsqueeze(2)
        mix = torch.cat([self.mix, confusion], 2).flatten(1, 2)
        vectors = torch.bmm(mix, own).view(len(x), way, -1, width)
        length = (vectors.square().sum((1, 3)) / (way * width)).sqrt()
        network = self.network
        h = network.read(facts)
        for block, told in zip(network.blocks, pace, strict=True):
            h = cast(Block, block).run(h, told)
        out = network.write(F.layer_norm(h, h.shape[-1:]))
        weighed = (self.size / (length + 1e-6))[:, None, None]
        amount = out[..., :-2].unflatten(-1, (-1, network.vectors)) * weighed
        combined = torch.bmm(amount.flatten(0, 1), vectors.flatten(0, 1)).view(self.filters.shape)
        change = (combined * self.filters).sum(2)
        tied = (change * (change + self.twice)).sum(-1) * self.fall
        moved = self.start + torch.cat([change, (out[..., -2] + tied).unsqueeze(-1)], -1)
        whole = moved * out[..., -1].mean(1)[:, None, None].exp()
        residue: Tensor = ((whole - self.start) / self.unit).flatten(1)
        return residue


def _scene(guide: Guide) -> Scene:
    if not isinstance(guide, DomainGuide):
        raise InputError("this denoiser needs the scene of a domain", where="guide")
    return guide.scene
