"""Whole small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor import Anchor, SharedAnchor
from ltdi.backbone import InputTransform
from ltdi.data import ImageSet
from ltdi.denoiser import Descent, RowDenoiser
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.generator.base import View, Weights, repeat
from ltdi.generator.images import ImageGenerator
from ltdi.nets import NetHost
from ltdi.parts import Groups, Host, check_shape
from ltdi.recipe import Diffusion, Network
from ltdi.tasks import FeatureBank
from ltdi.weights import Normaliser, WeightSpace


class NetGenerator(ImageGenerator):
    """Generates all weights of a `SmallNet` as a residual to a shared initialisation.

    Its host is a `NetHost`: an architecture without weights or buffers of its own.
    """

    kind: ClassVar[str] = "net"

    @classmethod
    def build(
        cls,
        config: dict[str, Any],
        groups: Groups,
        space: WeightSpace,
        shape: Network,
        diffusion: Diffusion,
    ) -> tuple[nn.Module, Anchor, Host]:
        """See `Generator.build`."""
        anchor = SharedAnchor(torch.zeros_like(groups["anchor"]["theta_0"]))
        return build_rows(space, shape, diffusion), anchor, NetHost.from_config(config["net"])

    @property
    def net(self) -> NetHost:
        """The architecture that the weights are for."""
        assert isinstance(self.host, NetHost)
        return self.host

    @property
    def transform(self) -> InputTransform:
        """See `ImageGenerator.transform`."""
        return self.net.transform

    def embed(self, images: Tensor) -> Tensor:
        """See `ImageGenerator.embed`: the net's input [n, channels, size, size]."""
        return self.transform(images)

    def bank(
        self, images: ImageSet, *, progress: Callable[[int, int], None] | None = None
    ) -> FeatureBank:
        """See `ImageGenerator.bank`."""
        return FeatureBank(self.transform(images.images), images.offsets, images.classes)

    def query_logits(self, theta: Tensor, query: Tensor) -> Tensor:
        """See `ImageGenerator.query_logits`."""
        return self.net.query_logits(theta, query)

    @torch.no_grad()
    def features(self, grid: Tensor) -> Tensor:
        """See `ImageGenerator.features`: what the head of the initialisation sees."""
        space = self.space(2)
        theta = self.parts.anchor.local(grid[:1], grid[:1], space)[0]
        parts = [self.net.features(theta, part.flatten(0, 2), space) for part in grid.split(32)]
        whole: Tensor = torch.cat(parts).unflatten(0, grid.shape[:3])
        return whole

    def check_grid(self, grid: Tensor) -> None:
        """See `ImageGenerator.check_grid`."""
        t = self.transform
        if grid.ndim != 6 or grid.shape[3:] != (t.channels, t.size, t.size):
            raise MismatchError(
                f"support images have shape {list(grid.shape)}, this generator expects "
                f"[tasks, way, shot, {t.channels}, {t.size}, {t.size}]",
                where="images",
                fix="pass them through this generator's own transform",
            )
        if not bool(grid.isfinite().all()):
            raise InputError("support images are not finite", where="images")

    def view(self, grid: Tensor, mask: Tensor, copies: int) -> View:
        """See `ImageGenerator.view`; the chain's own estimates are what gradients are taken at."""
        space = self.space(grid.shape[1])
        anchor = self.parts.anchor.local(grid, mask, space)
        task = NetTask(self.net, self.parts.normaliser, space, anchor, grid, mask, copies, True)
        network = cast(RowDenoiser, self.parts.network)

        def denoise(x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
            return task.step(network, x, t, signal, stage, blank=not bool(x.any()))

        return View(space, repeat(anchor, copies), denoise)

    def classify(self, weights: Weights, images: Tensor) -> Tensor:
        """Class probabilities [n, way] of images under a generated net."""
        self.check(weights)
        space = self.space(len(weights["head.weight"]))
        with torch.no_grad():
            logits = self.net.predict(space.flatten(weights), self.transform(images), space)
        return logits.softmax(-1)

    def architecture(self, weights: Weights) -> str:
        """See `Generator.architecture`."""
        numbers = sum(v.numel() for v in weights.values())
        return f"conv net, {numbers} weights, {len(weights['head.weight'])} classes"

    def check_net(self, net: NetHost) -> None:
        """Refuse another architecture than the one that weights are generated for.

        Raises:
            MismatchError: If architecture or transform differ.
        """
        if net.fingerprint != self.net.fingerprint:
            raise MismatchError(
                f"this generator makes weights for {self.net.config}, not for {net.config}",
                where="net",
                fix="use the generator's own `net`, or train a generator for yours",
            )


class NetTask:
    """B tasks of one chain, and its last estimate of their weights.

    Args:
        host: Architecture.
        normaliser: Of residuals to the anchor.
        space: Weight space.
        anchor: [B, n] shared initialisation.
        grid: [B, way, shot, ...] transformed support.
        mask: [B, way, shot] 1 for real samples.
        copies: How many chains each task has.
        alone: See `NetHost.gradient`.
    """

    def __init__(
        self,
        host: NetHost,
        normaliser: Normaliser,
        space: WeightSpace,
        anchor: Tensor,
        grid: Tensor,
        mask: Tensor,
        copies: int = 1,
        alone: bool = False,
    ) -> None:
        self.host, self.space, self.scale = host, space, normaliser.scale(space)
        self.anchor, self.grid, self.mask = anchor, grid, mask
        self.copies, self.alone = copies, alone
        self.estimate: Tensor | None = None

    def gradient(self) -> Tensor:
        """Of the support's loss, in normalised units [B, n], at the last estimate."""
        if self.estimate is None:
            return repeat(self._at_anchor() * self.scale, self.copies)
        theta = repeat(self.anchor, self.copies) + self.estimate * self.scale
        grid, mask = repeat(self.grid, self.copies), repeat(self.mask, self.copies)
        alone = self.alone and len(theta) == 1
        return self.host.gradient(theta, grid, mask, self.space, alone=alone) * self.scale

    def _at_anchor(self) -> Tensor:
        """The same at the anchor in closed form, without differentiation.

        Its class rows are equal: no loss reaches the layers below, and every class has the same
        probability.
        """
        way, shot = self.mask.shape[1:]
        body = self.space.size - self.space.class_size
        z = self.host.features(self.anchor[0], self.grid.flatten(0, 2), self.space)
        z = F.pad(z, (0, 1), value=1.0).unflatten(0, (-1, way, shot))
        share = way * self.mask / self.mask.sum((1, 2), keepdim=True)
        mean = (z * share.unsqueeze(-1)).sum(2)
        rows = mean.mean(1, keepdim=True) - mean
        return F.pad(rows.flatten(1), (body, 0))

    def step(
        self,
        network: RowDenoiser,
        x: Tensor,
        t: Tensor,
        signal: Tensor,
        stage: Tensor,
        *,
        blank: bool = False,
    ) -> Tensor:
        """One denoising step of x_t [B, n]; its x0 becomes the estimate.

        Args:
            network: The denoiser.
            x: [B, n] x_t.
            t: [B].
            signal: See `Descent`.
            stage: See `Descent`.
            blank: Whether x is known to be zero.
        """
        first = self.estimate is None
        gradient = self.gradient()
        before = torch.zeros_like(x) if self.estimate is None else self.estimate
        guide = Descent(before, gradient, signal, stage, first, first and blank)
        out: Tensor = network(x, t, guide, self.space)
        self.estimate = out.detach()
        return out


def build_rows(space: WeightSpace, shape: Network, diffusion: Diffusion) -> RowDenoiser:
    """An untrained denoiser of whole networks.

    Raises:
        InputError: If kind, sizes or prediction cannot be.
    """
    if shape.kind != "rows":
        raise unknown("network of whole nets", shape.kind, ("rows",), where="network.kind")
    if diffusion.prediction != "x0":
        raise unknown("prediction of the row network", diffusion.prediction, ("x0",))
    check_shape(shape)
    return RowDenoiser(
        space, steps=diffusion.steps, width=shape.width, depth=shape.depth, heads=shape.heads
    )
