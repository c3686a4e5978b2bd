"""Features of photographs by a pretrained network, as it is and folded."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.speed.common import Figure, in_turns
from ltdi.backbone import efficientnet_lite_backbone
from ltdi.backbone.folding import folded


def features(repeats: int) -> list[Figure]:
    """EfficientNet-lite0 in float32, as many images at a time as `Backbone.features` takes."""
    net, figures = efficientnet_lite_backbone().net, []
    for side, images in ((224, 4), (112, 16)):
        x = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=torch.channels_last)

        def run(m: nn.Module, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                m(x)

        nets = {"as it is": net, "folded": folded(net, x[:1])}
        seconds = in_turns({k: lambda m=m, go=run: go(m) for k, m in nets.items()}, 3 * repeats)
        rate = {k: images / s for k, s in seconds.items()}
        figures += [
            *(Figure("features", f"{side} pixels, {k}: images/s", r) for k, r in rate.items()),
            Figure("features", "  folded / as it is", rate["folded"] / rate["as it is"], ">= 1.2"),
        ]
    return figures
