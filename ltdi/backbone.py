"""Backbones: frozen feature extractors, with the input transform that they were trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.data import ImageSet
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.files import digest, read_json, read_tensors, write_json, write_tensors
from ltdi.tasks import FeatureBank, sample_episodes

CONFIG = "backbone.json"
WEIGHTS = "backbone.safetensors"


@dataclass(frozen=True)
class InputTransform:
    """From images of any size to a backbone's input.

    Attributes:
        size: Side of the square input in pixels.
        channels: 1 (grey) or 3 (RGB).
        polarity: "ink" makes strokes 1 and paper 0, whichever of the two is dark: the border of
            an image is taken for paper. "keep" leaves values as they are.
        mean: Subtracted per channel, after scaling to [0, 1].
        std: Divided by, per channel.
    """

    size: int = 28
    channels: int = 1
    polarity: str = "ink"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.polarity not in ("ink", "keep"):
            raise unknown("polarity", self.polarity, ("ink", "keep"), where="transform.polarity")

    def __call__(self, images: Tensor, *, first: int = 0) -> Tensor:
        """Transform.

        Args:
            images: [n, 1 or 3, height, width]; uint8 in 0..255 or floating point in 0..1.
            first: Number of the first image, for messages.

        Returns:
            float32 [n, channels, size, size].

        Raises:
            InputError: For another shape, size, dtype or range, and for NaN.
        """
        x = _as_float(images, first)
        if x.shape[1] != self.channels:
            x = _to_grey(x) if self.channels == 1 else x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if self.polarity == "ink":
            border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
            light = border.mean((1, 2)) > 0.5
            x = torch.where(light[:, None, None, None], 1 - x, x)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


class ConvNet(nn.Module):
    """Small convolutional encoder: a strided stem, then blocks of convolution and pooling.

    Args:
        channels: Input channels.
        width: Channels of the first block; later blocks have twice as many.
        size: Side of the input; the output is pooled to one position.
    """

    def __init__(self, channels: int = 1, width: int = 64, size: int = 28) -> None:
        super().__init__()
        self.width = 2 * width
        plan = [(channels, 32, 5, 2), (32, width, 3, 1), (width, 2 * width, 3, 1)]
        plan.append((2 * width, 2 * width, 3, 1))
        layers: list[nn.Module] = []
        for number, (inner, outer, kernel, stride) in enumerate(plan):
            layers += [
                nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]
            if 0 < number < len(plan) - 1:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, width]."""
        out: Tensor = self.layers(x)
        return out


class Backbone(nn.Module):
    """A frozen feature extractor.

    Args:
        net: Maps transformed images to features [n, D].
        transform: Its input transform.
        config: How to build the net again: `{"kind": "conv", ...}` or
            `{"kind": "transformers", "name": .., "revision": .., "model": {..}}`.
    """

    def __init__(self, net: nn.Module, transform: InputTransform, config: dict[str, Any]) -> None:
        super().__init__()
        # One layout, trained or loaded: another one would round differently.
        net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net, self.transform, self.config = net, transform, config

    @torch.no_grad()
    def features(self, images: Tensor, *, batch: int = 512, precision: str = "auto") -> Tensor:
        """Features of images.

        Args:
            images: [n, 1 or 3, height, width]; see `InputTransform`.
            batch: Images per forward pass.
            precision: "auto" takes bfloat16 where the processor has it; "float32" never does.

        Returns:
            float32 [n, D].
        """
        self.net.eval()
        parts = []
        for start in range(0, max(1, len(images)), batch):
            x = self.transform(images[start : start + batch], first=start)
            x = x.contiguous(memory_format=torch.channels_last)
            with autocast(precision):
                parts.append(self.net(x).float())
        return torch.cat(parts)

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

    @property
    def fingerprint(self) -> str:
        """Hash of weights and transform."""
        return digest({**self.net.state_dict(), "transform": _code(asdict(self.transform))})

    def save(self, path: Path) -> None:
        """Write `backbone.json` and `backbone.safetensors` into a directory."""
        write_tensors(path / WEIGHTS, self.net.state_dict())
        about = {"config": self.config, "transform": asdict(self.transform)}
        write_json(path / CONFIG, {**about, "fingerprint": self.fingerprint})

    @classmethod
    def from_config(cls, about: dict[str, Any], tensors: dict[str, Tensor]) -> Backbone:
        """Build from `{"config": .., "transform": ..}` and the net's state dict."""
        transform: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in about["transform"].items()
        }
        net = _build(about["config"])
        net.load_state_dict(tensors)
        return cls(net, InputTransform(**transform), about["config"])

    @classmethod
    def load(cls, path: Path) -> Backbone:
        """The inverse of `save`.

        Raises:
            InputError: If a file is missing.
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


@dataclass(frozen=True)
class ProtoTraining:
    """Training of a conv backbone with the ProtoNet loss.

    Attributes:
        iterations: Steps.
        classes: Classes per batch.
        images: Images per class; each is classified against the mean of the others.
        lr: Peak step size of AdamW.
        weight_decay: Of AdamW.
        augment: Strength of random affine distortion, 0 for none.
        width: Of the `ConvNet`.
        seed: Of initialisation and sampling.
    """

    iterations: int = 600
    classes: int = 64
    images: int = 4
    lr: float = 5e-3
    weight_decay: float = 5e-4
    augment: float = 1.0
    width: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(
                f"images must be at least 2, got {self.images}: each is classified against others",
                where="training.images",
                fix="choose training.images >= 2",
            )


def train_backbone(
    images: ImageSet,
    training: ProtoTraining,
    *,
    transform: InputTransform | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Backbone:
    """Train a conv net as a prototypical network of many ways (Snell et al., 2017).

    Every image of a batch is a query for the leave-one-out prototypes, so that no image is spent
    on support alone.
    """
    p = training
    transform = transform or InputTransform()
    config = {
        "kind": "conv",
        "channels": transform.channels,
        "width": p.width,
        "size": transform.size,
    }
    classes = min(p.classes, len(images.classes))
    rng = torch.Generator().manual_seed(p.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        net = _build(config)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scale = nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.AdamW([*net.parameters(), scale], lr=p.lr, weight_decay=p.weight_decay)
    net.train()
    for step in range(p.iterations):
        rate = min(1.0, (step + 1) / max(1, p.iterations // 20)) * (1 - step / p.iterations)
        optimiser.param_groups[0]["lr"] = p.lr * rate
        batch = sample_episodes(
            images.offsets,
            way=classes,
            shot=p.images,
            query=0,
            episodes=1,
            seed=int(torch.randint(2**62, (), generator=rng)),
        )
        x = transform(images.images[batch.support[0].flatten()])
        x = distort(x, p.augment, rng).contiguous(memory_format=torch.channels_last)
        with autocast("auto"):
            z = net(x)
        loss = leave_one_out_loss(z.float().unflatten(0, (classes, p.images)), scale.exp())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress:
            progress(step + 1, p.iterations, float(loss.detach()))
    return Backbone(net, transform, config)


def leave_one_out_loss(z: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy of every sample against the prototypes, its own made without it.

    Args:
        z: [classes, images, D].
        scale: [] inverse temperature of the mean squared distance.
    """
    classes, images, width = z.shape
    total = z.sum(1)
    query = z.flatten(0, 1)
    label = torch.arange(classes).repeat_interleave(images)
    distance = torch.cdist(query, total / images).square()
    own = (z - (total.unsqueeze(1) - z) / (images - 1)).square().sum(-1).flatten()
    distance = distance.scatter(1, label.unsqueeze(1), own.unsqueeze(1))
    return F.cross_entropy(-scale * distance / width, label)


def distort(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Random affine distortion of images [n, channels, size, size], each its own."""
    if strength <= 0:
        return x
    u = (torch.rand(len(x), 6, generator=rng) - 0.5) * strength
    angle, shear = 0.5 * u[:, 0], 0.4 * u[:, 1]
    stretch, shift = 1 + 0.3 * u[:, 2:4], 0.25 * u[:, 4:6]
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * stretch[:, 0], shear - sin, shift[:, 0]], -1),
        torch.stack([sin, cos * stretch[:, 1], shift[:, 1]], -1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


class TransformersNet(nn.Module):
    """A vision model of the transformers library, pooled to one vector per image.

    Args:
        model: The model.
        pooler: Whether the checkpoint had its pooler's weights; without them the class token is
            taken, not a random projection of it.
    """

    def __init__(self, model: nn.Module, pooler: bool = True) -> None:
        super().__init__()
        self.model = model
        if not pooler:
            model.pooler = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, size, size] -> [n, D]."""
        out = self.model(pixel_values=x)
        pooled: Tensor | None = out.pooler_output
        if pooled is None:
            pooled = out.last_hidden_state[:, 0]
        return pooled.flatten(1)


def transformers_backbone(name: str, *, revision: str | None = None) -> Backbone:
    """A pretrained vision model by hub name or local path, such as "microsoft/resnet-101".

    The paper embeds tasks with ResNet-101 (section 5.1). The weights are kept with a generator,
    so a later load needs no network.

    Raises:
        InputError: If transformers is not installed or the model cannot be loaded.
    """
    transformers = _transformers()
    try:
        model, loading = transformers.AutoModel.from_pretrained(
            name, revision=revision, output_loading_info=True
        )
        processor = transformers.AutoConfig.from_pretrained(name, revision=revision)
        about = transformers.image_processing_utils.BaseImageProcessor.get_image_processor_dict(
            name, revision=revision
        )[0]
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the vision model {name!r}: {str(error).splitlines()[0]}",
            where="--backbone",
            fix="give a hub name (with network access), or the path of a model saved together "
            "with its image processor",
        ) from None
    pooler = not any(key.startswith("pooler.") for key in loading["missing_keys"])
    lost = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if lost or not {"image_mean", "image_std"} <= set(about):
        what = f"no weights for {lost[0]}" if lost else "no image_mean and image_std"
        raise InputError(
            f"the vision model {name!r} has {what}",
            where="--backbone",
            fix="give a complete model: its weights and its preprocessor_config.json",
        )
    size = about.get("size") or {}
    # Older files have a number.
    size = size if isinstance(size, dict) else {"height": size}
    side = int(size.get("shortest_edge") or size.get("height") or 224)
    transform = InputTransform(
        side, 3, "keep", tuple(about["image_mean"]), tuple(about["image_std"])
    )
    config = {
        "kind": "transformers",
        "name": str(name),
        "revision": revision,
        "model": processor.to_dict(),
        "pooler": pooler,
    }
    return Backbone(TransformersNet(model, pooler), transform, config)


def autocast(precision: str) -> torch.autocast:
    """bfloat16 where the processor computes in it and the caller allows it."""
    if precision not in ("auto", "float32"):
        raise unknown("precision", precision, ("auto", "float32"))
    # Without the instructions bfloat16 is emulated, and slower than float32.
    able = precision == "auto" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=able)


def _build(config: dict[str, Any]) -> nn.Module:
    if config["kind"] == "conv":
        return ConvNet(config["channels"], config["width"], config["size"])
    if config["kind"] == "transformers":
        transformers = _transformers()
        model_config = transformers.AutoConfig.for_model(**config["model"])
        model = transformers.AutoModel.from_config(model_config)
        return TransformersNet(model, config.get("pooler", True))
    raise unknown("backbone kind", config["kind"], ("conv", "transformers"))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(
            "this backbone needs the transformers library, which is not installed",
            where="--backbone",
            fix="pip install 'ltdi[transformers]'",
        ) from None
    return transformers


def _as_float(images: Tensor, first: int) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(
            f"images must have shape [n, 1 or 3, height, width], got {list(images.shape)}",
            where="images",
            fix="add the missing dimensions, or convert to grey or RGB",
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise InputError(
            f"images must be uint8 (0..255) or floating point (0..1), got {images.dtype}",
            where="images",
            fix="convert with .to(torch.uint8) or .float() / 255",
        )
    if not bool(images.isfinite().all()):
        bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(
            f"image {first + bad} has NaN or infinite pixels",
            where="images",
            fix="repair or drop it",
        )
    low, high = float(images.min()), float(images.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(
            f"floating-point pixels must lie in 0..1, these lie in {low:.3g}..{high:.3g}",
            where="images",
            fix="divide by 255, or undo the normalisation: the backbone brings its own",
        )
    return images.float()


def _to_grey(x: Tensor) -> Tensor:
    """ITU-R 601 luma, as PIL's mode L."""
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _code(value: dict[str, Any]) -> Tensor:
    return torch.tensor(list(repr(sorted(value.items())).encode()), dtype=torch.uint8)
