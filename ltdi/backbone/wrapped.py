"""Networks of other libraries, loaded when first used and pooled to one vector per image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ltdi.optional import optional

EFFICIENTNET = "efficientnet-lite0"


def from_extra(name: str, extra: str) -> Any:
    """Import what a backbone needs from an extra of this package; see `optional`."""
    return optional(name, purpose="this backbone", extra=extra, where="--backbone")


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

    @classmethod
    def untrained(cls, config: dict[str, Any]) -> TransformersNet:
        """The architecture of a backbone's configuration."""
        transformers = from_extra("transformers", "transformers")
        model = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(**config["model"])
        )
        return cls(model, config.get("pooler", True))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, size, size] -> [n, D]."""
        out = self.model(pixel_values=x)
        pooled: Tensor | None = out.pooler_output
        if pooled is None:
            pooled = out.last_hidden_state[:, 0]
        return pooled.flatten(1)


class EfficientNetLite(nn.Module):
    """EfficientNet-lite0 without its classifier, untrained (Tan and Le, arXiv 1905.11946).

    The lite variant has neither squeeze-and-excitation nor swish; 3.4 million weights, D = 1280.
    """

    def __init__(self) -> None:
        super().__init__()
        package = from_extra("efficientnet_lite_pytorch", "efficientnet")
        self.model = package.EfficientNet.from_name(EFFICIENTNET)
        self.model._fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, size, size] -> [n, 1280], the mean over positions."""
        out: Tensor = self.model.extract_features(x)
        return out.float().mean((2, 3))


def timm_net(name: str, *, pretrained: bool) -> nn.Module:
    """A model of timm that maps [n, channels, size, size] to [n, D], its classifier left out."""
    timm = from_extra("timm", "timm")
    net: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return net
