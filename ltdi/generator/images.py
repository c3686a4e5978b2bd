"""Generators whose support is labelled images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ltdi.backbone import InputTransform
from ltdi.data import ImageSet
from ltdi.errors import InputError
from ltdi.generator.base import Callback, Generator, View, Weights
from ltdi.tasks import FeatureBank, Support

# Tasks that go through a chain together: twice as fast as a thousand (docs/scale.md).
TOGETHER = 256


class ImageGenerator(Generator):
    """A generator that sees a support as a grid of samples, one row of it for each class."""

    @property
    @abstractmethod
    def transform(self) -> InputTransform:
        """From a user's images to those that the host sees."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """What the network sees of images [n, 1 or 3, height, width]: samples [n, ...].

        Raises:
            InputError: If they cannot be used.
        """

    @abstractmethod
    def bank(
        self, images: ImageSet, *, progress: Callable[[int, int], None] | None = None
    ) -> FeatureBank:
        """All images of a set as `embed` gives them."""

    @abstractmethod
    def query_logits(self, theta: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way] of weights [E, n] on embedded queries [E, way, Q, ...]."""

    @abstractmethod
    def features(self, grid: Tensor) -> Tensor:
        """Features [E, way, Q, D] of embedded images [E, way, Q, ...], to compare by distance."""

    @abstractmethod
    def check_grid(self, grid: Tensor) -> None:
        """Refuse a grid [B, way, shot, ...] that `embed` did not make."""

    @abstractmethod
    def view(self, grid: Tensor, mask: Tensor, copies: int) -> View:
        """Tasks with samples `grid` and `mask` [B, way, shot], `copies` times over."""

    def weights(
        self,
        grid: Tensor,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor:
        """Flat weights [B, n] of B tasks: the mean over samples of `draws`; see there."""
        drawn = self.draws(grid, mask, seed=seed, callback=callback, **options)
        return drawn[0] if len(drawn) == 1 else drawn.mean(0)

    @torch.no_grad()
    def draws(
        self,
        grid: Tensor,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor:
        """Samples of the flat weights of B tasks, one by one.

        Args:
            grid: [B, way, shot, ...] support, as `embed` made it.
            mask: [B, way, shot] 1 for real samples, 0 for padding; all ones by default.
            seed: Of the noise.
            callback: Called as callback(t, theta, theta_0_estimate) after each step.
            **options: See `generate`.

        Returns:
            [samples, B, n]; without noise all samples are equal and one is returned.
        """
        chosen = self.sampling(**options)
        self.check_grid(grid)
        real = torch.ones(grid.shape[:3]) if mask is None else mask
        if mask is not None and (mask.shape != grid.shape[:3] or not bool(mask.any(-1).all())):
            raise InputError(
                f"a mask of shape {list(mask.shape)} does not give each class of a support "
                f"{list(grid.shape[:3])} a sample",
                where="mask",
                fix="give [tasks, way, shot] with a 1 for every real sample",
            )
        if len(grid) > TOGETHER and chosen.temperature == 0 and callback is None:
            # Without noise no task knows of another, and few of them stay in the cache.
            parts = zip(grid.split(TOGETHER), real.split(TOGETHER), strict=True)
            return torch.cat([self.draws(g, r, seed=seed, **options) for g, r in parts], 1)
        return self.chain(
            lambda copies: self.view(grid, real, copies), chosen, seed=seed, callback=callback
        )

    def read(self, support: Any) -> Support:
        """See `Generator.read`."""
        return Support.of(support)

    def generate_many(self, supports: list[Any], *, seed: int, **options: Any) -> list[Weights]:
        """See `Generator.generate_many`; tasks of one way go through the chain together."""
        for s in supports:
            self.space(s.way)
        samples = self._samples(supports)
        out: list[Weights] = [{} for _ in supports]
        ways: dict[int, list[int]] = {}
        for i, s in enumerate(supports):
            ways.setdefault(s.way, []).append(i)
        for way, members in ways.items():
            grid, mask = by_class(
                [samples[i] for i in members], [supports[i].labels for i in members], way
            )
            theta = self.weights(grid, mask, seed=seed, **options)
            named = self.space(way).unflatten(theta)
            for row, i in enumerate(members):
                out[i] = {name: value[row].clone() for name, value in named.items()}
        return out

    def _samples(self, supports: list[Support]) -> list[Tensor]:
        """`embed` of all supports; images of one shape go through it together."""
        out: list[Tensor] = [torch.empty(0)] * len(supports)
        shapes: dict[Any, list[int]] = {}
        for i, s in enumerate(supports):
            shapes.setdefault((s.images.shape[1:], s.images.dtype), []).append(i)
        for members in shapes.values():
            stacked = torch.cat([supports[i].images for i in members])
            sizes = [len(supports[i].labels) for i in members]
            try:
                embedded = self.embed(stacked)
            except InputError:
                self._blame(supports, members)
                raise
            for i, part in zip(members, embedded.split(sizes), strict=True):
                out[i] = part
        return out

    def _blame(self, supports: list[Support], members: list[int]) -> None:
        """Raise the error of the first support at fault, with numbers that are its own."""
        for i in members:
            try:
                self.embed(supports[i].images)
            except InputError as error:
                where = f"support {i}, {error.where}" if len(supports) > 1 else error.where
                raise InputError(error.what, where=where, fix=error.fix) from None


def check_numbers(grid: Tensor, what: str) -> None:
    """Refuse an embedded support of other numbers than finite ones in single precision.

    Raises:
        InputError: Naming `what` it has.
    """
    if grid.dtype != torch.float32:
        raise InputError(
            f"support {what} are {grid.dtype}, not torch.float32",
            where=what,
            fix="convert with .float()",
        )
    if not bool(grid.isfinite().all()):
        raise InputError(
            f"support {what} are not finite",
            where=what,
            fix="look for NaN and infinity in the images",
        )


def by_class(samples: list[Tensor], labels: list[Tensor], way: int) -> tuple[Tensor, Tensor]:
    """Arrange the samples of B tasks by class: [B, way, most shots, ...] and a mask."""
    counts = [torch.bincount(y.long(), minlength=way) for y in labels]
    shot = max(int(c.max()) for c in counts)
    grid = torch.zeros(len(samples), way, shot, *samples[0].shape[1:])
    mask = torch.zeros(len(samples), way, shot)
    for i, (x, y, count) in enumerate(zip(samples, labels, counts, strict=True)):
        order = y.long().argsort(stable=True)
        place = torch.arange(len(y)) - (count.cumsum(0) - count)[y[order].long()]
        grid[i, y[order].long(), place] = x[order]
        mask[i, y[order].long(), place] = 1
    return grid, mask
