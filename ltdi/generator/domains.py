"""Classifier heads for a domain that is seen through unlabelled images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ltdi.anchor.domain import DomainAnchor, DomainView
from ltdi.backbone import Backbone
from ltdi.denoiser import DomainDenoiser, DomainGuide, DomainWalk, Guide
from ltdi.denoiser import Network as Denoiser
from ltdi.errors import InputError
from ltdi.generator.base import View, Weights, repeat
from ltdi.generator.heads import HeadGenerator
from ltdi.generator.images import by_class
from ltdi.parts import Host, Parts, Saved, build_network
from ltdi.tasks import Support


class DomainHeadGenerator(HeadGenerator):
    """Generates heads for tasks of a domain; see `ltdi.anchor.domain`.

    A support has unlabelled images of the domain, or is its own domain where it has none, and names
    of its classes among those that the generator knows, or leaves the names to be inferred.
    """

    kind: ClassVar[str] = "domain-head"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        # A domain is seen once, and many of its tasks follow.
        self._seen: tuple[Tensor, DomainView] | None = None

    @classmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Any, Host]:
        """See `Generator.build`."""
        features = saved.space.layers[0].row - 1
        network = build_network(saved.space, features, saved.shape, saved.diffusion)
        anchor = DomainAnchor(features, saved.config["about"]["classes"])
        host = Backbone.from_config(saved.config["backbone"], saved.groups["backbone"])
        return network, anchor, host

    @property
    def anchor(self) -> DomainAnchor:
        """What other domains tell."""
        return cast(DomainAnchor, self.parts.anchor)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the generator knows."""
        return self.anchor.classes

    def read(self, support: Any) -> Support:
        """See `Generator.read`.

        Raises:
            InputError: Also for a class name that the generator does not know.
        """
        taken = Support.of(support)
        if taken.classes is not None:
            self.anchor.numbers(taken.classes)
        return taken

    @torch.no_grad()
    def draws(
        self,
        grid: Tensor,
        mask: Tensor | None = None,
        *,
        pool: Tensor | None = None,
        names: Tensor | None = None,
        seed: int = 0,
        callback: Any = None,
        **options: Any,
    ) -> Tensor:
        """Samples of the flat weights of B tasks of one domain; see `ImageGenerator.draws`.

        Args:
            grid: [B, way, shot, D] support features.
            mask: [B, way, shot].
            pool: [P, D] unlabelled features of the domain; the real support by default.
            names: [B, way] numbers of the classes in `classes`; to be inferred by default.
            seed: Of the noise.
            callback: See `ImageGenerator.draws`.
            **options: See `generate`.
        """
        chosen = self.sampling(**options)
        self.check_grid(grid)
        real = torch.ones(grid.shape[:3]) if mask is None else mask
        pool = grid[real > 0] if pool is None else pool
        self.look_at(pool)  # what is kept must not be made in inference mode
        return self.chain(
            lambda copies: self._view(grid, real, pool, names, copies),
            chosen,
            seed=seed,
            callback=callback,
        )

    def look_at(self, pool: Tensor) -> DomainView:
        """What `pool` tells of its domain; kept for the next call with the same tensor."""
        if self._seen is None or self._seen[0] is not pool:
            self.check_grid(pool[None, None])
            self._seen = (pool, self.anchor.at(pool))
        return self._seen[1]

    def _view(
        self, grid: Tensor, mask: Tensor, pool: Tensor, names: Tensor | None, copies: int
    ) -> View:
        space, network = self.space(grid.shape[1]), cast(Denoiser, self.parts.network)
        seen = self.look_at(pool).told(names)
        frame = seen.frame(grid.shape[-1])
        z = frame.enter(grid)
        heads, scene = seen.look(z, mask, space)
        start, scene = repeat(heads, copies), scene.repeat(copies)
        code = network.encode(repeat(z, copies), repeat(mask, copies))
        between = frame.between.expand(len(start), -1)

        none = start.new_zeros(len(start))
        guide = DomainGuide(start, between, none, none, scene)
        if isinstance(network, DomainDenoiser):
            walk = DomainWalk(network, code, guide)

        def denoise(x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
            if isinstance(network, DomainDenoiser):
                pace = self._pace(network, t, Guide(start, between, signal, stage))
                return walk.step(x, float(signal[0]), pace)
            return network.denoise(x, t, code, space, replace(guide, signal=signal, stage=stage))

        return View(space, start, denoise, frame.leave)

    def generate_many(self, supports: list[Any], *, seed: int, **options: Any) -> list[Weights]:
        """See `Generator.generate_many`; a pool that several supports share is embedded once."""
        for s in supports:
            self.space(s.way)
        out: list[Weights] = []
        pools: dict[int, Tensor] = {}
        for s, samples in zip(supports, self._samples(supports), strict=True):
            grid, mask = by_class([samples], [s.labels], s.way)
            if s.unlabelled is not None and id(s.unlabelled) not in pools:
                pools[id(s.unlabelled)] = self._pool(s.unlabelled)
            pool = None if s.unlabelled is None else pools[id(s.unlabelled)]
            names = None if s.classes is None else self.anchor.numbers(s.classes)[None]
            theta = self.weights(grid, mask, pool=pool, names=names, seed=seed, **options)
            named = self.space(s.way).unflatten(theta)
            out.append({name: value[0].clone() for name, value in named.items()})
        return out

    def _pool(self, images: Tensor) -> Tensor:
        try:
            return self.embed(images)
        except InputError as error:
            raise InputError(
                error.what, where=f"support.unlabelled, {error.where}", fix=error.fix
            ) from None
