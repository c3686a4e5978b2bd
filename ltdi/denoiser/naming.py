"""A denoiser of heads for classes that only have names, and maybe images without labels.

Like `EquivariantDenoiser` it reads inner products alone and writes combinations of a task's own
vectors, so it cannot learn the source classes by heart. The vectors of a class are: what its name
predicts, the head that the chain started from, the current estimate, and the mean of the images
that the current estimate gives to the class. Each evaluation therefore is one step of a learned
expectation maximisation. Which cluster of images belongs to which name is its own question: from
the inner products of every pair of classes a few attention maps are made, along which a class may
take over the vectors of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.denoiser.conditional import Guide
from ltdi.denoiser.transformer import Block, StepEmbedding, silent
from ltdi.weights import WeightSpace, head_logits

_OWN, _FILTERS, _SCALARS = 4, 3, 6
# Outputs of a fresh network of this size are a fraction of the start.
_STEP = 0.3
# b / (b + 1/20): how far class means differ along a coordinate, seen through 20 samples.
_NOISE = 0.05


@dataclass(frozen=True)
class NamedCode:
    """A task as the denoiser keeps it.

    Attributes:
        mean: [B, way, D] what the names predict, in the coordinates of a frame.
        certainty: [B, way].
        pool: [B, n, D] unlabelled images.
        mask: [B, n].
    """

    mean: Tensor
    certainty: Tensor
    pool: Tensor
    mask: Tensor


class NamingDenoiser(nn.Module):
    """x0-prediction of heads for any way and any number of unlabelled images.

    The output layer starts at zero, where the prediction is the start of the chain.
    """

    def __init__(self, *, steps: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        # Size of a normalised unit of a weight and of a bias; sharpness of responsibilities.
        self.unit = nn.Buffer(torch.ones(2))
        self.hardness = nn.Buffer(torch.ones(()))
        self.vectors = _OWN * (2 + heads)
        pairs = _OWN * _OWN * _FILTERS
        self.of_pair = nn.Sequential(
            nn.Linear(2 * pairs + 2, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.maps = nn.Linear(width, heads)
        self.around = nn.Linear(width, width)
        self.read = nn.Linear(pairs + _SCALARS, width)
        self.of_time = StepEmbedding(width, steps, 3)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.write = silent(width, self.vectors * _FILTERS + 1)

    def forward(
        self, x: Tensor, t: Tensor, code: NamedCode, space: WeightSpace, guide: Guide
    ) -> Tensor:
        """Normalised residual [B, n] to the start, from x [B, n] at t [B]."""
        way, width = code.mean.shape[1:]
        unit = torch.cat([self.unit[:1].expand(width), self.unit[1:]])
        start = guide.anchor.unflatten(-1, (way, width + 1))
        # The linear estimate of theta from x_t when theta has unit variance.
        estimate = start + unit * (guide.signal[:, None] * x).unflatten(-1, (way, width + 1))
        r = (self.hardness * head_logits(estimate.flatten(-2), code.pool)).softmax(-1)
        r = r * code.mask.unsqueeze(-1)
        size = r.sum(1)  # [B, way]
        found = (r.mT @ code.pool) / (1 + size.unsqueeze(-1))
        own = torch.stack([code.mean, start[..., :-1], estimate[..., :-1], found], 2)
        own = own / (own.square().mean((1, 3), keepdim=True).sqrt() + 1e-6)
        belief = guide.between / (guide.between + _NOISE)
        filters = torch.stack([torch.ones_like(belief), belief, belief.square()], 1)
        gram = _pairs(own, filters)  # [B, way, way, pairs]
        centred = own - own.mean(1, keepdim=True)
        centred = centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-6)
        total = size.sum(-1, keepdim=True)
        share = way * size / (total + 1e-6)
        same = torch.eye(way).expand(len(x), -1, -1)
        rows = share.unsqueeze(1).expand(-1, way, -1)
        pair = self.of_pair(
            torch.cat([gram, _pairs(centred, filters), torch.stack([same, rows], -1)], -1)
        )
        maps = self.maps(pair).softmax(2)  # [B, way, way, heads]
        taken = torch.einsum("bcjh,bjvd->bchvd", maps, own).flatten(2, 3)
        everything = torch.cat([own, own.mean(1, keepdim=True).expand_as(own), taken], 2)
        scalars = torch.stack(
            [
                share,
                r.square().sum(1) / (size + 1e-3),
                (1 + size).log(),
                estimate[..., -1] / (start[..., -1].square().mean(-1, keepdim=True).sqrt() + 1e-6),
                4 * code.certainty - 2,
                torch.full_like(share, way).log(),
            ],
            -1,
        )
        diagonal = gram.diagonal(dim1=1, dim2=2).mT
        h = self.read(torch.cat([diagonal, scalars], -1)) + self.around(pair).mean(2)
        context = self.of_time(
            t, guide.signal, guide.stage, torch.full_like(guide.stage, way).log()
        )
        for block in self.blocks:
            h = block(h, context)
        out = self.write(F.layer_norm(h, h.shape[-1:]))
        amount = _STEP * out[..., :-1].unflatten(-1, (_FILTERS, self.vectors))
        norm = start[..., :-1].square().mean((1, 2), keepdim=True).sqrt()
        change = ((amount @ everything) * filters.unsqueeze(1)).sum(2) * norm
        residual: Tensor = (torch.cat([change, _STEP * out[..., -1:]], -1) / unit).flatten(-2)
        return residual


def _pairs(vectors: Tensor, filters: Tensor) -> Tensor:
    """Inner products of vectors [B, way, V, D] under filters [B, F, D]: [B, way, way, V V F]."""
    way, own = vectors.shape[1:3]
    flat = vectors.flatten(1, 2).unsqueeze(1)  # [B, 1, way V, D]
    weighed = flat * (filters / filters.sum(-1, keepdim=True)).unsqueeze(2)
    gram = (weighed @ flat.mT).unflatten(3, (way, own)).unflatten(2, (way, own))
    out: Tensor = gram.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return out
