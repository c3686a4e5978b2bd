"""A frozen feature extractor and its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltdi.backbone.augment import wiggle
from ltdi.backbone.conv import ConvNet
from ltdi.backbone.features import FeatureMap, FeatureMapping, MappedNet, mapped_config
from ltdi.backbone.folding import folded
from ltdi.backbone.precision import autocast, lowers
from ltdi.backbone.resnet import ResNet12
from ltdi.backbone.transform import InputTransform
from ltdi.backbone.wrapped import EFFICIENTNET, EfficientNetLite, TransformersNet, timm_net
from ltdi.data import ImageSet
from ltdi.errors import MismatchError, unknown
from ltdi.files import digest, read_json, read_tensors, tuples, write_json, write_tensors
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank

CONFIG = "backbone.json"
WEIGHTS = "backbone.safetensors"
# A new kind of network is one line here.
KINDS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "conv": lambda c: ConvNet(c["channels"], c["width"], c["size"]),
    "resnet12": lambda c: ResNet12(c["channels"], c["widths"], c["stride"]),
    EFFICIENTNET: lambda c: EfficientNetLite(),
    "timm": lambda c: timm_net(c["name"], pretrained=False),
    "transformers": TransformersNet.untrained,
    "mapped": lambda c: MappedNet(
        build(c["net"]), FeatureMap(c["features"], FeatureMapping(c["power"], c["width"]))
    ),
}
# Pixels of one forward pass: more of them leave the cache, and are slower.
_PIXELS = 16 * 112**2


class Backbone(nn.Module):
    """A frozen feature extractor.

    Args:
        net: Maps transformed images to features [n, D].
        transform: Its input transform.
        config: How to build the net again: `{"kind": .., ..}`, a key of `KINDS` and what its
            builder reads. An entry `"precision": "float32"` is for nets that bfloat16 harms.
    """

    def __init__(self, net: nn.Module, transform: InputTransform, config: dict[str, Any]) -> None:
        super().__init__()
        # One layout, trained or loaded: another one would round differently.
        net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net, self.transform, self.config = net, transform, config
        # Of `_quick`; in a list, so that it is no part of this module.
        self._folded: list[Any] = []

    @property
    def precision(self) -> str:
        """What "auto" means for this net; see `ltdi.backbone.precision.lowers`."""
        return str(self.config.get("precision", "auto"))

    @torch.no_grad()
    def features(
        self, images: Tensor, *, batch: int | None = None, precision: str = "auto"
    ) -> Tensor:
        """Features of images.

        In float32 they are a folded copy's (`ltdi.backbone.folding`). It follows what changes in
        the net, but torch does not tell of writing through `.data`: write under `torch.no_grad()`.

        Args:
            images: [n, 1 or 3, height, width]; see `InputTransform`.
            batch: Images per forward pass; fewer of large ones by default.
            precision: "auto" takes bfloat16 where the processor has it and the net bears it;
                "float32" never does.

        Returns:
            float32 [n, D].
        """
        self.net.eval()
        size = batch or max(1, min(512, _PIXELS // self.transform.size**2))
        parts = []
        for start in range(0, max(1, len(images)), size):
            x = self.transform(images[start : start + size], first=start)
            chosen = self.precision if precision == "auto" else precision
            with autocast(chosen):
                parts.append(self._views(x, lowers(chosen)))
        return torch.cat(parts)

    def _quick(self, net: nn.Module, x: Tensor) -> nn.Module:
        """`net` folded; again where a module, a setting or a tensor of it has changed.

        As it is where changes would not show (inference tensors), or where hooks ask for its calls.
        """
        modules = list(net.modules())
        parts = [part for m in modules for part in (m._parameters, m._buffers) if part]
        tensors = [t for part in parts for t in part.values() if t is not None]
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        if hooked or any(t.is_inference() for t in tensors):
            return net
        settings = [(m, m.extra_repr()) for m in modules]
        stamp = settings, [(id(t), t.data_ptr(), t._version) for t in tensors]
        if not self._folded or self._folded[0] != stamp:
            # Tensors are kept, or others might be at their addresses.
            self._folded = [stamp, folded(net, x[:2]), tensors]
        quick: nn.Module = self._folded[1]
        return quick

    def __getstate__(self) -> dict[str, Any]:
        """Without the folded copy, which is made again when needed."""
        return {**self.__dict__, "_folded": []}

    def _views(self, x: Tensor, low: bool) -> Tensor:
        # A map is of the mean of all views, as when it was fitted.
        net = self.net.net if isinstance(self.net, MappedNet) else self.net
        # bfloat16 would round folded weights in other places.
        net = net if low else self._quick(net, x)
        views = wiggle(x) if self.transform.wiggle else [x]
        views += [view.flip(-1) for view in views] if self.transform.flip else []
        total = sum(net(v.contiguous(memory_format=torch.channels_last)).float() for v in views)
        z: Tensor = total / len(views)
        return self.net.map(z) if isinstance(self.net, MappedNet) else z

    def bank(
        self, images: ImageSet, *, progress: Callable[[int, int], None] | None = None
    ) -> FeatureBank:
        """Features of a whole image set."""
        parts, total = [], len(images.images)
        for start in range(0, total, 2048):
            parts.append(self.features(images.images[start : start + 2048]))
            if progress:
                progress(min(start + 2048, total), total)
        return FeatureBank(torch.cat(parts), images.offsets, images.classes)

    def mapped(self, map: FeatureMap) -> Backbone:
        """This backbone followed by a fitted feature map."""
        return Backbone(MappedNet(self.net, map), self.transform, mapped_config(self.config, map))

    @property
    def fingerprint(self) -> str:
        """Hash of weights and transform."""
        return digest({**self.net.state_dict(), "transform": _code(self.transform.fields)})

    @property
    def group(self) -> str:
        """See `ltdi.parts.Host`."""
        return "backbone"

    def describe(self) -> dict[str, Any]:
        """See `ltdi.parts.Host`; what `from_config` reads."""
        return {"config": self.config, "transform": asdict(self.transform)}

    def tensors(self) -> dict[str, Tensor]:
        """See `ltdi.parts.Host`."""
        return self.net.state_dict()

    def save(self, path: Path) -> None:
        """Write `backbone.json` and `backbone.safetensors` into a directory."""
        write_tensors(path / WEIGHTS, self.tensors())
        write_json(path / CONFIG, {**self.describe(), "fingerprint": self.fingerprint})

    @classmethod
    def from_config(cls, about: dict[str, Any], tensors: dict[str, Tensor]) -> Backbone:
        """Build from `{"config": .., "transform": ..}` and the net's state dict."""
        transform: dict[str, Any] = tuples(about["transform"])
        net = build(about["config"])
        net.load_state_dict(tensors)
        return cls(net, InputTransform(**transform), about["config"])

    @classmethod
    def load(cls, path: Path) -> Backbone:
        """The inverse of `save`.

        Raises:
            InputError: If a file is missing, or a library that the net needs.
            DamagedFileError: If one is truncated or altered.
            MismatchError: If weights and configuration do not belong together.
        """
        about = read_json(path / CONFIG)
        try:
            out = cls.from_config(about, read_tensors(path / WEIGHTS))
        except (KeyError, RuntimeError, TypeError) as error:
            raise MismatchError(
                f"{WEIGHTS} does not fit {CONFIG}: {str(error).splitlines()[-1].strip()}",
                where=str(path),
                fix="restore both files from the same run",
            ) from None
        if out.fingerprint != about.get("fingerprint"):
            raise MismatchError(
                f"{WEIGHTS} is not the file that {CONFIG} was written with",
                where=str(path),
                fix="restore both files from the same run",
            )
        return out


def build(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """An untrained net, its initial weights fixed by the seed.

    Raises:
        InputError: If the kind is unknown, or its library is not installed.
    """
    if config["kind"] not in KINDS:
        raise unknown("backbone kind", config["kind"], KINDS)
    # Initialisation reads the global state of randomness, which is not ours to move.
    with seeded(seed):
        return KINDS[config["kind"]](config)


def _code(value: dict[str, Any]) -> Tensor:
    return torch.tensor(list(repr(sorted(value.items())).encode()), dtype=torch.uint8)
