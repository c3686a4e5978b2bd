"""`ltdi.backbone.resnet`: twelve convolutions, any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ltdi.backbone import ResNet12
from ltdi.backbone.resnet import Stage


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def small(**kwargs: object) -> ResNet12:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet12(widths=(8, 8, 12, 16), **kwargs).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 8, 21, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_size_becomes_one_vector(size: int, channels: int, stride: int) -> None:
    out = small(channels=channels, stride=stride)(noise(2, channels, size, size))
    assert out.shape == (2, 16) and out.dtype == torch.float32 and bool(out.isfinite().all())


def test_it_has_the_convolutions_of_its_name() -> None:
    stages = small().stages
    kernels = [m.kernel_size for m in stages.modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((3, 3)) == 12 and kernels.count((1, 1)) == 4 and len(kernels) == 16


def test_the_stem_and_every_stage_halve_the_image() -> None:
    x, net = noise(1, 3, 64, 64), small()
    sides = [x.shape[-1]]
    for layer in (net.stem, *net.stages):
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides == [64, 32, 16, 8, 4, 2]


def test_a_stage_is_its_equation() -> None:
    """The shortcut goes around all three convolutions; without them only it is left."""
    stage = Stage(4, 6).eval()
    x = noise(2, 4, 6, 6)
    last = stage.main[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)
    wanted = nn.functional.max_pool2d(nn.functional.leaky_relu(stage.shortcut(x), 0.1), 2)
    torch.testing.assert_close(stage(x), wanted)


def test_every_weight_is_used() -> None:
    net = small().train()
    net(noise(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
