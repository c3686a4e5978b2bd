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
from ltdi.files import tuples
from ltdi.nets.net import NetConfig, net_space
from ltdi.weights import WeightSpace

# Nets at once: more only fill the memory.
_AT_ONCE = 32


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

    def query_logits(self, theta: Tensor, query: Tensor) -> Tensor:
        """Logits [E, way, Q, way] of nets theta [E, n] on images [E, way, Q, ...]; in chunks."""
        way, count = query.shape[1:3]
        space = self.space(way)
        parts = zip(theta.split(_AT_ONCE), query.flatten(1, 2).split(_AT_ONCE), strict=True)
        out = torch.cat([self.logits(t, x, space) for t, x in parts])
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
        """`logits` through one convolution of B groups a layer, in place of `vmap`.

        Forward and backward take half to four fifths of the time, but less is saved where another
        transform of `torch.func` is around it.
        """
        c, count, weights = self.config, len(theta), space.unflatten(theta)
        x = images.transpose(0, 1).flatten(1, 2)  # [P, B channels, side, side]
        for i, stride in enumerate(c.strides):
            kernel, bias = (weights[f"layers.{i}.{n}"].flatten(0, 1) for n in ("weight", "bias"))
            x = F.conv2d(x, kernel, bias, stride, 1, groups=count)
            x = F.relu(F.group_norm(x, c.groups * count))
        z = x.unflatten(1, (count, -1)).transpose(0, 1).flatten(2)
        return torch.baddbmm(weights["head.bias"].unsqueeze(1), z, weights["head.weight"].mT)

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
            alone: Whether one task may go without `torch.func`, which takes half the time but
                cannot be part of another of its transforms.
        """
        way, shot = grid.shape[1:3]
        label = torch.arange(way, device=grid.device).repeat_interleave(shot)

        def loss(t: Tensor, x: Tensor, real: Tensor) -> Tensor:
            each = F.cross_entropy(self.predict(t, x, space), label, reduction="none")
            return way * (each * real).sum() / real.sum()

        if alone and len(theta) == 1:
            with torch.enable_grad():
                leaf = theta[0].detach().requires_grad_()
                value = loss(leaf, grid[0].flatten(0, 1), mask[0].flatten())
                (own,) = torch.autograd.grad(value, leaf)
            return own.unsqueeze(0)
        out: Tensor = vmap(grad(loss))(theta, grid.flatten(1, 2), mask.flatten(1))
        return out


class NetPredictor:
    """Logits of one net, and of many (`ltdi.collect.Together`).

    Args:
        host: Architecture.
        space: Weight space of the tasks.
        pool: [N, channels, size, size] images of which inputs are the numbers, where nets share
            them; otherwise inputs are images.
    """

    def __init__(self, host: NetHost, space: WeightSpace, pool: Tensor | None = None) -> None:
        self.host, self.space, self.pool = host, space, pool

    def __call__(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(theta [n], inputs [P, ...]) -> [P, way]."""
        return self.host.predict(theta, self._images(inputs), self.space)

    def logits(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """(theta [E, n], inputs [E, P, ...]) -> [E, P, way]."""
        return self.host.many(theta, self._images(inputs), self.space)

    def _images(self, inputs: Tensor) -> Tensor:
        return inputs if self.pool is None else self.pool[inputs]
