"""A denoiser of heads that cannot learn the training classes by heart.

It reads inner products alone, so what it writes turns with the features: rotating all features of
a task among coordinates of equal `between` rotates the generated rows, and permuting classes
permutes them. A generated row is the anchor's plus a combination of the task's own vectors (class
mean, current estimate, gradient of the support loss at the estimate; those of the other classes),
each filtered by how much classes differ along a coordinate. With the gradient as an input, a
chain of several steps is a learned optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor import masked_mean, shrinkage
from ltdi.denoiser.conditional import Guide, Network
from ltdi.denoiser.transformer import Block, StepEmbedding, silent
from ltdi.weights import WeightSpace, head_logits

Pace = list[tuple[Tensor, ...]]
_OWN, _FILTERS, _SCALARS = 3, 3, 6
# Outputs of a fresh network of this size are a fraction of the anchor.
STEP = 0.3


@dataclass(frozen=True)
class Support:
    """A task as the equivariant denoiser keeps it.

    Attributes:
        z: [B, way, shot, D] support in the coordinates of a frame.
        mask: [B, way, shot].
        mean: [B, way, D].
        count: [B, way] samples per class.
    """

    z: Tensor
    mask: Tensor
    mean: Tensor
    count: Tensor


def support_gradient(theta: Tensor, support: Support) -> tuple[Tensor, Tensor, Tensor]:
    """Negative gradient of the support's cross entropy, in closed form.

    Args:
        theta: [B, way * (D + 1)] heads.
        support: The tasks.

    Returns:
        [B, way, D] for the weights, [B, way] for the bias, both in units of one sample per class,
        and [B, way, shot, way] the residuals (one-hot label minus prediction), 0 where masked.
    """
    way = support.z.shape[1]
    logits = head_logits(theta, support.z.flatten(1, 2)).unflatten(1, support.z.shape[1:3])
    label = torch.eye(way, dtype=theta.dtype, device=theta.device)[:, None]
    residual = (label - logits.softmax(-1)) * support.mask.unsqueeze(-1)
    share = residual / support.count.mean(-1)[:, None, None, None]
    weight = share.flatten(1, 2).mT @ support.z.flatten(1, 2)
    return weight, share.sum((1, 2)), residual


class EquivariantDenoiser(Network):
    """x0-prediction of heads for any way, any shot and any number of features.

    The output layer starts at zero, where the prediction is the anchor.
    """

    # What `describe` returns of each class.
    own: ClassVar[int] = _OWN
    scalars: ClassVar[int] = _SCALARS
    # Whether the inner products of the vectors are read.
    grams: ClassVar[bool] = True

    def __init__(self, *, steps: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.vectors = 3 * self.own
        # Size of a normalised unit of a weight and of a bias.
        self.unit = nn.Buffer(torch.ones(2))
        pairs = torch.triu_indices(self.vectors, self.vectors)
        self.pairs = nn.Buffer(pairs[0] * self.vectors + pairs[1], persistent=False)
        self.read = nn.Linear(self.scalars + self.grams * _FILTERS * pairs.shape[1], width)
        self.of_time = StepEmbedding(width, steps, 3)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.write = silent(width, self.vectors * _FILTERS + 2)

    def encode(self, support: Tensor, mask: Tensor) -> Support:
        """See `Network.encode`."""
        keep = mask.unsqueeze(-1)
        z = torch.where(keep > 0, support, 0.0)
        return Support(z, mask, masked_mean(z, mask), mask.sum(-1))

    def pace(self, t: Tensor, signal: Tensor, stage: Tensor, way: int) -> Pace:
        """What the blocks are told: of the steps [B], and of how many classes there are."""
        context = self.of_time(t, signal, stage, torch.full_like(stage, way).log())
        return [cast(Block, block).pace(context) for block in self.blocks]

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        code: Support,
        space: WeightSpace,
        guide: Guide,
        pace: Pace | None = None,
    ) -> Tensor:
        """See `Network.denoise`; `pace` is that of the step, where it is known already."""
        way, width = code.mean.shape[1:]
        unit = torch.cat([self.unit[:1].expand(width), self.unit[1:]])
        rows = (way, width + 1)
        start = guide.anchor.unflatten(-1, rows)
        # The linear estimate of theta from x_t when theta has unit variance.
        estimate = start + unit * (guide.signal[:, None] * x).unflatten(-1, rows)
        own, scalars, confusion = self.describe(estimate, code, guide)
        others = (own.sum(1, keepdim=True) - own) / (way - 1)
        rivals = (confusion @ own.flatten(2)).unflatten(2, own.shape[2:])
        vectors = torch.cat([own, others, rivals], 2)
        vectors = vectors / (vectors.square().mean((1, 3), keepdim=True).sqrt() + 1e-6)
        belief = shrinkage(guide.between, code.count)
        filters = torch.stack([torch.ones_like(belief), belief, belief.square()], 2)
        h = self.read(self.facts(vectors, filters, scalars))
        pace = self.pace(t, guide.signal, guide.stage, way) if pace is None else pace
        for block, told in zip(self.blocks, pace, strict=True):
            h = cast(Block, block).run(h, told)
        out = self.write(F.layer_norm(h, h.shape[-1:]))
        size = start[..., :-1].square().mean((1, 2), keepdim=True).sqrt()
        amount = STEP * out[..., :-2].unflatten(-1, (_FILTERS, self.vectors))
        change = ((amount @ vectors) * filters).sum(2) * size
        bias = out[..., -2] + self.tie(start[..., :-1], change, guide)
        moved = start + torch.cat([change, bias.unsqueeze(-1)], -1)
        whole = moved * out[..., -1].mean(1)[:, None, None].exp()
        residual: Tensor = ((whole - start) / unit).flatten(-2)
        return residual

    def facts(self, vectors: Tensor, filters: Tensor, scalars: Tensor) -> Tensor:
        """What the network over class tokens reads, [B, way, ...].

        Args:
            vectors: [B, way, vectors, D].
            filters: [B, way, filters, D].
            scalars: [B, way, scalars].
        """
        if not self.grams:
            return scalars
        weighed = filters / filters.sum(-1, keepdim=True)
        gram = (vectors.unsqueeze(2) * weighed.unsqueeze(3)) @ vectors.unsqueeze(2).mT
        return torch.cat([gram.flatten(3)[..., self.pairs].flatten(2), scalars], -1)

    def describe(self, rows: Tensor, code: Support, guide: Guide) -> tuple[Tensor, Tensor, Tensor]:
        """What is read of an estimate.

        Args:
            rows: [B, way, D + 1] heads.
            code: The tasks.
            guide: What else is known of them.

        Returns:
            Vectors [B, way, own, D] and scalars [B, way, scalars] of each class, and how much it
            is confused with each other one, [B, way, way].
        """
        return describe(rows, code)

    def tie(self, weight: Tensor, change: Tensor, guide: Guide) -> Tensor:
        """What the bias [B, way] owes to a change of the weights, both [B, way, D]."""
        return torch.zeros_like(weight[..., 0])


def describe(rows: Tensor, code: Support) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [B, way, 3, D], scalars [B, way, 6] and confusions [B, way, way] of an estimate."""
    theta = rows.flatten(-2)
    weight, bias, residual = support_gradient(theta, code)
    own = residual.diagonal(dim1=1, dim2=3).mT  # [B, way, shot], a sample's own class
    count = code.count
    logits = head_logits(theta, code.mean)
    scalars = [
        bias,
        own.sum(-1) / count,
        own.square().sum(-1) / count,
        0.1 * logits.diagonal(dim1=1, dim2=2),
        0.1 * rows[..., -1],
        count.log(),
    ]
    alone = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    confusion = logits.masked_fill(alone, float("-inf")).softmax(-1)
    vectors = torch.stack([code.mean, rows[..., :-1], weight], 2)
    return vectors, torch.stack(scalars, -1), confusion
