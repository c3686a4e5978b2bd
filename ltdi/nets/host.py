"""What a generated net lives in: an architecture and an input transform, no weights of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from ltdi.backbone import InputTransform
from ltdi.collect import Slope
from ltdi.data import ImageSet
from ltdi.files import tuples
from ltdi.nets.direct import grouped
from ltdi.nets.net import NetConfig, net_space
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace

# Bytes that the largest layer gives for nets that are solved together: fewer share the start of an
# operation, more leave the cache.
LAYER = 5 << 18


class NetHost:
    """An architecture that generated weights are put into (`ltdi.parts.Host`).

    Args:
        config: Architecture.
        transform: From a user's images to the net's input.
    """

    group = "net"

    def __init__(self, config: NetConfig, transform: InputTransform) -> None:
        self.config, self.transform = config, transform
        self._spaces: dict[int, WeightSpace] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of architecture and transform."""
        text = json.dumps([asdict(self.config), self.transform.fields], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """See `ltdi.parts.Host`; what `from_config` reads."""
        return {"config": asdict(self.config), "transform": asdict(self.transform)}

    @classmethod
    def from_config(cls, about: dict[str, Any]) -> NetHost:
        """The inverse of `describe`."""
        given: list[dict[str, Any]] = [tuples(about[name]) for name in ("config", "transform")]
        return cls(NetConfig(**given[0]), InputTransform(**given[1]))

    def tensors(self) -> dict[str, Tensor]:
        """See `ltdi.parts.Host`: none, since all weights are generated and there is no buffer."""
        return {}

    def bank(self, images: ImageSet) -> FeatureBank:
        """Images as a net sees them, [n, channels, size, size], in the place of features."""
        return FeatureBank(self.transform(images.images), images.offsets, images.classes)

    def space(self, way: int) -> WeightSpace:
        """The weight space of a net for tasks of `way` classes."""
        if way not in self._spaces:
            self._spaces[way] = net_space(self.config, way)
        return self._spaces[way]

    def predict(self, theta: Tensor, images: Tensor, space: WeightSpace) -> Tensor:
        """Logits [P, way] of one net theta [n] on transformed images [P, ...]."""
        weights = space.unflatten(theta)
        z = self.below_head(weights, images)
        return F.linear(z, weights["head.weight"], weights["head.bias"])

    def logits(self, theta: Tensor, images: Tensor, space: WeightSpace) -> Tensor:
        """Logits [B, P, way] of nets theta [B, n], each on images [B, P, ...] of its own."""
        out: Tensor = vmap(lambda t, x: self.predict(t, x, space))(theta, images)
        return out

    @torch.no_grad()
    def query_logits(self, theta: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way] of nets theta [E, n] on images [E, way, Q, ...]; in chunks."""
        way, count = query.shape[1:3]
        space = self.space(way)
        each = self.together(way * count)
        parts = zip(theta.split(each), query.flatten(1, 2).split(each), strict=True)
        out = torch.cat([self.many(t, x, space) for t, x in parts])
        whole: Tensor = out.unflatten(1, (way, count))
        return whole

    def features(self, theta: Tensor, images: Tensor, space: WeightSpace) -> Tensor:
        """What the head of one net theta [n] sees of images [P, ...]: [P, D]."""
        return self.below_head(space.unflatten(theta), images)

    def below_head(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """`features` of images x [P, ...], for weights by name."""
        c = self.config
        for i, stride in enumerate(c.strides):
            x = F.conv2d(x, weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"], stride, 1)
            x = F.relu(F.group_norm(x, c.groups))
        return x.flatten(1)

    def many(self, theta: Tensor, images: Tensor, space: WeightSpace) -> Tensor:
        """`logits` through one operation of B nets a layer, in place of `vmap`: [B, P, way].

        For inference: what it writes over cannot be differentiated.
        """
        nets = grouped(self.config, theta)
        return nets.logits(nets.parts(space.unflatten(theta)), nets.enter(images))

    def gradient(
        self,
        theta: Tensor,
        grid: Tensor,
        mask: Tensor,
        space: WeightSpace,
        *,
        alone: bool = False,
    ) -> Tensor:
        """Gradient [B, n] of the support's cross entropy, in units of one sample per class.

        Args:
            theta: [B, n] nets.
            grid: [B, way, shot, channels, size, size] transformed support.
            mask: [B, way, shot] 1 for real samples.
            space: Weight space of the tasks.
            alone: Whether it may go without `torch.func`, in closed form, which takes half the time
                but cannot be differentiated, nor be part of another transform.
        """
        way, shot = grid.shape[1:3]
        if alone:
            with torch.no_grad():
                return self._closed_gradient(theta, grid, mask, space)
        label = torch.arange(way, device=grid.device).repeat_interleave(shot)

        def loss(t: Tensor, x: Tensor, real: Tensor) -> Tensor:
            each = F.cross_entropy(self.predict(t, x, space), label, reduction="none")
            return way * (each * real).sum() / real.sum()

        out: Tensor = vmap(grad(loss))(theta, grid.flatten(1, 2), mask.flatten(1))
        return out

    def _closed_gradient(
        self, theta: Tensor, grid: Tensor, mask: Tensor, space: WeightSpace
    ) -> Tensor:
        nets, (way, shot) = grouped(self.config, theta), grid.shape[1:3]
        target = torch.eye(way, dtype=theta.dtype, device=theta.device).repeat_interleave(shot, 0)
        share = way * mask.flatten(1) / mask.sum((1, 2)).unsqueeze(1)
        each, found = self.together(way * shot), []
        for at in range(0, len(theta), each):
            some = slice(at, at + each)
            parts = nets.parts(space.unflatten(theta[some]))
            images = nets.enter(grid[some].flatten(1, 2))
            own = nets.gradient(parts, images, target, share[some].unsqueeze(2))
            found.append(space.flatten(nets.whole(own)))
        return torch.cat(found)

    def together(self, samples: int) -> int:
        """How many nets, each on so many images, are best taken at once."""
        return max(1, LAYER // (4 * samples * self.config.largest))


class NetPredictor:
    """Logits and gradients of one net, and of many (`ltdi.collect.Closed`).

    Args:
        host: Architecture.
        space: Weight space of the tasks.
        pool: [N, channels, size, size] images of which inputs are the numbers, where nets share
            them; otherwise inputs are images.
    """

    products = False

    def __init__(self, host: NetHost, space: WeightSpace, pool: Tensor | None = None) -> None:
        self.host, self.space, self.pool = host, space, pool

    def __call__(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(theta [n], inputs [P, ...]) -> [P, way]."""
        return self.host.predict(theta, self._images(inputs), self.space)

    def logits(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(theta [E, n], inputs [E, P, ...]) -> [E, P, way]."""
        return self.host.many(theta, self._images(inputs), self.space)

    def together(self, inputs: Tensor, batch: int) -> int:
        """See `Closed.together`."""
        return self.host.together(min(batch, inputs.shape[1]) if batch > 0 else inputs.shape[1])

    def parts(self, theta: Tensor) -> list[Tensor]:
        """See `Closed.parts`."""
        nets = grouped(self.host.config, theta)
        return [x.contiguous() for x in nets.parts(self.space.unflatten(theta))]

    def whole(self, parts: list[Tensor]) -> Tensor:
        """See `Closed.whole`."""
        return self.space.flatten(grouped(self.host.config, parts[0]).whole(parts))

    def slope(self, inputs: Tensor, labels: Tensor, smoothing: float) -> Slope:
        """See `Closed.slope`."""
        way = int(self.space.unflatten(torch.empty(self.space.size))["head.bias"].numel())
        images = inputs if self.pool is None else self.pool
        nets = grouped(self.host.config, images)
        targets = F.one_hot(labels, way).to(images.dtype) * (1 - smoothing) + smoothing / way
        rows = torch.arange(len(labels))[:, None]
        whole: list[Tensor] = []

        def gradient(parts: list[Tensor], pick: Tensor | None) -> list[Tensor]:
            if pick is not None:
                x = nets.enter(self._images(inputs[rows, pick]))
                return nets.gradient(parts, x, targets[rows, pick])
            if not whole:
                whole.append(nets.enter(self._images(inputs)))
            return nets.gradient(parts, whole[0], targets)

        return gradient

    def _images(self, inputs: Tensor) -> Tensor:
        return inputs if self.pool is None else self.pool[inputs]
