"""Coordinates of adapters: the directions in which a zoo's weights differ, block by block.

A block's factors have thousands of numbers and a zoo a few hundred adapters, so that weights vary
in far fewer directions than they have numbers. Each block of the language model keeps the mean of
its factors and their principal directions; what is generated are coordinates along them, one token
per block. A class row of the head has a token of its own, and all rows share their directions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltdi.errors import InputError
from ltdi.weights import WeightSpace


class Basis(nn.Module):
    """Mean and orthonormal directions of every block of a weight space."""

    def __init__(self, space: WeightSpace, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise InputError(f"a basis of {rank} directions is none", where="rank")
        self.rank = rank
        self.blocks = blocks_of(space)
        self.per_class = [space.layers[block[0]].per_class for block in self.blocks]
        for i, block in enumerate(self.blocks):
            layers = [space.layers[j] for j in block]
            size = sum(x.row if x.per_class else x.units * x.row for x in layers)
            self.register_buffer(f"mean_{i}", torch.zeros(size))
            self.register_buffer(f"directions_{i}", torch.zeros(rank, size))

    def latent(self, way: int) -> WeightSpace:
        """The weight space of the coordinates, one token per block or class row."""
        shapes = {
            f"block_{i}": (way if per_class else 1, self.rank)
            for i, per_class in enumerate(self.per_class)
        }
        classes = [f"block_{i}" for i, per_class in enumerate(self.per_class) if per_class]
        return WeightSpace.from_shapes(shapes, per_class=classes, token_size=self.rank)

    @torch.no_grad()
    def fit(self, groups: Sequence[tuple[Tensor, WeightSpace]]) -> None:
        """Take mean and principal directions of weights.

        Args:
            groups: Weights [E, n] and their space; ways may differ. The mean of a class row is
                zero: classes can be renamed.
        """
        parts: list[list[Tensor]] = [[] for _ in self.blocks]
        for theta, space in groups:
            for i, tokens in enumerate(self._split(theta, space)):
                parts[i].append(tokens.flatten(0, 1))
        for i, per_class in enumerate(self.per_class):
            rows = torch.cat(parts[i]).double()
            mean = torch.zeros_like(rows[0]) if per_class else rows.mean(0)
            _, size, directions = torch.linalg.svd(rows - mean, full_matrices=False)
            real = int((size > 1e-6 * size[:1].clamp(min=1e-12)).sum())
            kept = directions[: min(self.rank, real)]
            self.get_buffer(f"mean_{i}").copy_(mean)
            self.get_buffer(f"directions_{i}").zero_()[: len(kept)] = kept.float()

    def enter(self, theta: Tensor, space: WeightSpace) -> Tensor:
        """Weights [..., n] -> coordinates [..., tokens * rank]."""
        out = [
            ((tokens - self.get_buffer(f"mean_{i}")) @ self.get_buffer(f"directions_{i}").T)
            for i, tokens in enumerate(self._split(theta.reshape(-1, theta.shape[-1]), space))
        ]
        coordinates: Tensor = torch.cat([z.flatten(1) for z in out], -1)
        return coordinates.reshape(*theta.shape[:-1], -1)

    def leave(self, z: Tensor, space: WeightSpace) -> Tensor:
        """Coordinates [..., tokens * rank] -> weights [..., n] of the given space."""
        parts: dict[int, Tensor] = {}
        start = 0
        for i, block in enumerate(self.blocks):
            tokens = space.layers[block[0]].units if self.per_class[i] else 1
            part = z[..., start : start + tokens * self.rank].unflatten(-1, (tokens, self.rank))
            weights = part @ self.get_buffer(f"directions_{i}") + self.get_buffer(f"mean_{i}")
            sizes = [space.layers[j].units * space.layers[j].row for j in block]
            if self.per_class[i]:
                sizes = [size // tokens for size in sizes]
            for j, value in zip(block, weights.split(sizes, -1), strict=True):
                parts[j] = value.flatten(-2)
            start += tokens * self.rank
        return torch.cat([parts[j] for j in range(len(space.layers))], -1)

    def _split(self, theta: Tensor, space: WeightSpace) -> list[Tensor]:
        """Weights [E, n] as [E, tokens, size] for every block."""
        sizes = [layer.units * layer.row for layer in space.layers]
        flat = theta.split(sizes, -1)
        out = []
        for block, per_class in zip(self.blocks, self.per_class, strict=True):
            tokens = space.layers[block[0]].units if per_class else 1
            out.append(torch.cat([flat[j].unflatten(1, (tokens, -1)) for j in block], -1))
        return out


def blocks_of(space: WeightSpace) -> list[list[int]]:
    """Layers that make a block, by the first number in their names; class rows come last."""
    found: dict[tuple[bool, str], list[int]] = {}
    for j, layer in enumerate(space.layers):
        number = re.search(r"\.(\d+)\.", layer.params[0].name)
        name = number[1] if number else layer.params[0].name
        found.setdefault((layer.per_class, name), []).append(j)
    return [block for _, block in sorted(found.items(), key=lambda item: item[0][0])]
