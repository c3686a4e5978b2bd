"""Whole small networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor import Anchor, SharedAnchor
from ltdi.backbone import InputTransform
from ltdi.data import ImageSet
from ltdi.denoiser import Descent, Opening, RowDenoiser
from ltdi.errors import MismatchError, unknown
from ltdi.generator.base import View, Weights, repeat
from ltdi.generator.images import ImageGenerator, check_numbers
from ltdi.nets import NetHost
from ltdi.parts import Host, Parts, Saved, check_shape
from ltdi.recipe import Diffusion, Network
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace


class NetGenerator(ImageGenerator):
    """Generates all weights of a `SmallNet` as a residual to a shared initialisation.

    Its host is a `NetHost`: an architecture without weights or buffers of its own.
    """

    kind: ClassVar[str] = "net"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        # What all tasks share is worked out once: the first step of a chain without noise, and the
        # anchor of each way.
        self._openings: dict[tuple[int, float], Opening] = {}
        self._starts: dict[int, tuple[Tensor, Weights]] = {}

    @classmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Anchor, Host]:
        """See `Generator.build`."""
        anchor = SharedAnchor(torch.zeros_like(saved.groups["anchor"]["theta_0"]))
        network = build_rows(saved.space, saved.shape, saved.diffusion)
        return network, anchor, NetHost.from_config(saved.config["net"])

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
        return self.net.bank(images)

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
        if grid.ndim != 6 or not grid.numel() or grid.shape[3:] != (t.channels, t.size, t.size):
            raise MismatchError(
                f"support images have shape {list(grid.shape)}, this generator expects "
                f"[tasks, way, shot, {t.channels}, {t.size}, {t.size}]",
                where="images",
                fix="pass them through this generator's own transform",
            )
        check_numbers(grid, "images")

    def view(self, grid: Tensor, mask: Tensor, copies: int) -> View:
        """See `ImageGenerator.view`; the chain's own estimates are what gradients are taken at."""
        space = self.space(grid.shape[1])
        if space.size not in self._starts:
            theta = self.parts.anchor.local(grid[:1], mask[:1], space)
            self._starts[space.size] = theta, space.unflatten(theta[0])
        start, named = self._starts[space.size]
        anchor, (scale, _) = start.expand(len(grid), -1), self.unit(space)
        network = cast(RowDenoiser, self.parts.network)
        doubt = float(network.doubt)
        task = NetTask(self.net, scale, space, anchor, grid, mask, copies, doubt, True, named)

        def denoise(x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
            if task.estimate is not None or bool(x.any()):
                return task.step(network, x, t, signal, stage)
            key = (int(t[0]), float(stage[0]))
            if key not in self._openings:
                self._openings[key] = network.opening(t[:1], signal[:1], stage[:1])
            return task.begin(network, self._openings[key])

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


class NetTask:
    """B tasks of one chain, and its last estimate of their weights.

    Args:
        host: Architecture.
        scale: [n] size of a normalised unit.
        space: Weight space.
        anchor: [B, n] shared initialisation.
        grid: [B, way, shot, ...] transformed support.
        mask: [B, way, shot] 1 for real samples.
        copies: How many chains each task has.
        doubt: How many samples of a class it takes to believe half of its mean's length.
        alone: See `NetHost.gradient`.
        named: The anchor's parameters by name, where they are known.
    """

    def __init__(
        self,
        host: NetHost,
        scale: Tensor,
        space: WeightSpace,
        anchor: Tensor,
        grid: Tensor,
        mask: Tensor,
        copies: int = 1,
        doubt: float = math.inf,
        alone: bool = False,
        named: Weights | None = None,
    ) -> None:
        self.named = named if named is not None else space.unflatten(anchor[0])
        self.host, self.space, self.scale = host, space, scale
        self.anchor, self.grid, self.mask = anchor, grid, mask
        self.copies, self.doubt, self.alone = copies, doubt, alone
        self.estimate: Tensor | None = None
        self.middle: Tensor | None = None

    def gradient(self) -> Tensor:
        """Of the support's loss, in normalised units [B, n], at the last estimate."""
        if self.estimate is None:
            rows = self.space.class_size
            head = self._head_gradient() * self.scale[-rows:]
            return repeat(F.pad(head, (self.space.size - rows, 0)), self.copies)
        theta = repeat(self.anchor, self.copies) + self.estimate * self.scale
        grid, mask = repeat(self.grid, self.copies), repeat(self.mask, self.copies)
        return self.host.gradient(theta, grid, mask, self.space, alone=self.alone) * self.scale

    def _head_gradient(self) -> Tensor:
        """Of the head's rows [B, class rows] at the anchor, in closed form.

        Its class rows are equal: no loss reaches the layers below, and every class has the same
        probability.
        """
        way, shot = self.mask.shape[1:]
        z = self.host.below_head(self.named, self.grid.flatten(0, 2))
        z = F.pad(z, (0, 1), value=1.0).unflatten(0, (-1, way, shot))
        share = way * self.mask / self.mask.sum((1, 2), keepdim=True)
        own = (z * share.unsqueeze(-1)).sum(2)
        mean = own.mean(1, keepdim=True)
        count = self.mask.sum(-1, keepdim=True)
        self.middle = count / (count + self.doubt) * (own + mean)[..., :-1] / 2
        head: Tensor = (mean - own).flatten(1)
        return head

    def _between_means(self, theta: Tensor) -> Tensor:
        """First estimate [B, n] whose class boundaries lie between the class means.

        One step of gradient descent gives w_c = a (mu_c - m), from class means mu_c and their mean
        m, and no bias, as if all means had one length. With b_c = -w_c (mu_c + m) / 2 logits are
        zero half-way between m and mu_c, and the net is nearest class mean: up to what classes
        share, it adds -a |mu_c|^2 / 2. Of few samples lengths say little: the share of b_c is
        shot / (shot + doubt). It is linear in whatever rows the network has written.
        """
        assert self.middle is not None
        rows = self.space.class_size
        shape = (-1, self.middle.shape[1], self.middle.shape[2] + 1)
        head, scale = theta[:, -rows:].view(shape), self.scale[-rows:].view(shape[1:])
        weight, bias = head[..., :-1] * scale[:, :-1], head[..., -1]
        bias = bias - (weight * repeat(self.middle, self.copies)).sum(-1) / scale[:, -1]
        head = torch.cat([head[..., :-1], bias.unsqueeze(-1)], -1)
        return torch.cat([theta[:, :-rows], head.flatten(1)], -1)

    def step(
        self, network: RowDenoiser, x: Tensor, t: Tensor, signal: Tensor, stage: Tensor
    ) -> Tensor:
        """One denoising step of x_t [B, n]; its x0 becomes the estimate."""
        first = self.estimate is None
        gradient = self.gradient()
        before = torch.zeros_like(x) if self.estimate is None else self.estimate
        guide = Descent(before, gradient, signal, stage, first)
        out: Tensor = network(x, t, guide, self.space)
        if first:
            out = self._between_means(out)
        self.estimate = out.detach()
        return out

    def begin(self, network: RowDenoiser, opening: Opening) -> Tensor:
        """The first step from x_t = 0."""
        rows = self.space.class_size
        gradient = self._head_gradient() * self.scale[-rows:]
        out = network.begin(repeat(gradient, self.copies), opening, self.space)
        out = self._between_means(out)
        self.estimate = out
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
