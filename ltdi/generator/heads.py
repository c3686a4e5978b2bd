"""Classifier heads on a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, cast

from torch import Tensor, nn

from ltdi.anchor import Anchor, make_empty_anchor
from ltdi.backbone import Backbone, InputTransform
from ltdi.data import ImageSet
from ltdi.denoiser import EquivariantDenoiser, Guide, Pace
from ltdi.denoiser import Network as Denoiser
from ltdi.errors import MismatchError
from ltdi.generator.base import View, repeat
from ltdi.generator.images import ImageGenerator, check_numbers
from ltdi.generator.linear import LinearHeads
from ltdi.parts import Host, Parts, Saved, build_network
from ltdi.tasks import FeatureBank
from ltdi.weights import query_logits


class HeadGenerator(LinearHeads, ImageGenerator):
    """Generates linear classifiers: "weight" [way, D] and "bias" [way]. Its host is a `Backbone`.

    Generation takes place in the coordinates of the anchor's frame.
    """

    kind: ClassVar[str] = "head"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._paces: dict[tuple[int, float, float, int], Pace] = {}

    @classmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Anchor, Host]:
        """See `Generator.build`."""
        features = saved.space.layers[0].row - 1
        network = build_network(saved.space, features, saved.shape, saved.diffusion)
        anchor = make_empty_anchor(saved.config["anchor"], features)
        anchor.own_mean = bool(saved.config.get("own_mean"))
        host = Backbone.from_config(saved.config["backbone"], saved.groups["backbone"])
        return network, anchor, host

    @property
    def backbone(self) -> Backbone:
        """The feature extractor that the heads sit on."""
        assert isinstance(self.host, Backbone)
        return self.host

    @property
    def transform(self) -> InputTransform:
        """See `ImageGenerator.transform`."""
        return self.backbone.transform

    def embed(self, images: Tensor) -> Tensor:
        """See `ImageGenerator.embed`: the backbone's features [n, D]."""
        return self.backbone.features(images)

    def bank(
        self, images: ImageSet, *, progress: Callable[[int, int], None] | None = None
    ) -> FeatureBank:
        """See `ImageGenerator.bank`."""
        return self.backbone.bank(images, progress=progress)

    def query_logits(self, theta: Tensor, query: Tensor) -> Tensor:
        """See `ImageGenerator.query_logits`."""
        return query_logits(theta, query)

    def features(self, grid: Tensor) -> Tensor:
        """See `ImageGenerator.features`."""
        return grid

    def view(self, grid: Tensor, mask: Tensor, copies: int) -> View:
        """See `ImageGenerator.view`."""
        space, anchor = self.space(grid.shape[1]), self.parts.anchor
        network = cast(Denoiser, self.parts.network)
        frame = anchor.frame(grid.shape[-1])
        z = frame.enter(grid)
        origin = anchor.task_mean(z, mask, frame)
        z = z - origin[:, None, None]
        start = repeat(anchor.local(z, mask, space), copies)
        code = network.encode(repeat(z, copies), repeat(mask, copies))
        between = frame.between.expand(len(start), -1)

        def denoise(x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
            guide = Guide(start, between, signal, stage)
            if isinstance(network, EquivariantDenoiser):
                return network.denoise(x, t, code, space, guide, self._pace(network, t, guide))
            return network.denoise(x, t, code, space, guide)

        return View(space, start, denoise, partial(frame.leave, origin=repeat(origin, copies)))

    def _pace(self, network: EquivariantDenoiser, t: Tensor, guide: Guide) -> Pace:
        """What a network makes of a step that all tasks are at: worked out once."""
        way = guide.anchor.shape[1] // (guide.between.shape[1] + 1)
        key = (int(t[0]), float(guide.signal[0]), float(guide.stage[0]), way)
        if key not in self._paces:
            found = network.pace(t[:1], guide.signal[:1], guide.stage[:1], way)
            self._paces[key] = [tuple(part[0, 0] for part in told) for told in found]
        return self._paces[key]

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse another backbone than the one the generator was trained on.

        Raises:
            MismatchError: If weights or transform differ.
        """
        if backbone.fingerprint != self.backbone.fingerprint:
            raise MismatchError(
                f"this generator was trained on backbone {self.backbone.fingerprint[:12]}, not "
                f"on {backbone.fingerprint[:12]}; its heads would be meaningless there",
                where="backbone",
                fix="use the backbone inside the generator, or train a generator on yours",
            )

    def check_grid(self, grid: Tensor) -> None:
        """See `ImageGenerator.check_grid`."""
        width = self.width
        if grid.ndim != 4 or grid.shape[-1] != width or not grid.numel():
            raise MismatchError(
                f"support features have shape {list(grid.shape)}, this generator expects "
                f"[tasks, way, shot, {width}]",
                where="features",
                fix="take them from this generator's own backbone",
            )
        check_numbers(grid, "features")
