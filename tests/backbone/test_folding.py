"""`ltdi.backbone.folding`: fewer operations, the same features, files and fingerprints."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from threading import Lock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ltdi.backbone import Backbone, InputTransform
from ltdi.backbone.backbone import build
from ltdi.backbone.folding import TOLERANCE, folded

from .conftest import pixels

CONV = {"kind": "conv", "channels": 3, "width": 8, "size": 28, "precision": "float32"}


def lived(net: nn.Module) -> nn.Module:
    """With statistics that training might have left."""
    rng = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            m.running_mean.normal_(0, 0.3, generator=rng)
            m.running_var.uniform_(0.3, 3, generator=rng)
            if m.affine:
                nn.init.normal_(m.weight, 1, 0.3, generator=rng)
                nn.init.normal_(m.bias, 0, 0.3, generator=rng)
    return net.eval()


def count(net: nn.Module) -> int:
    """Normalisations that are left."""
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


class Activated(nn.BatchNorm2d):
    """Normalisation with an activation of its own, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Wired(nn.Module):
    """Two layers, wired by a function."""

    def __init__(self, wiring: Callable[[Wired, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.act, self.wiring = nn.ReLU(), wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x).flatten(1)


PLAIN = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    ),
    "padded, without bias": lambda: nn.Sequential(
        nn.ZeroPad2d((1, 1, 2, 2)), nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
    ),
    "groups, no affine part": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, padding="same"), nn.BatchNorm2d(6, affine=False)
    ),
    "an activation of its own": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8)),
    "one activation for two": lambda: Wired(
        lambda m, x: m.act(m.second(m.two(m.act(m.first(m.one(x))))))
    ),
}
# Normalisations that stay, and why.
APART = {
    "read twice": lambda m, x: m.first(y := m.one(x)) + y,
    "changed between": lambda m, x: m.first(F.relu_(m.one(x))),
    "normalised twice": lambda m, x: m.first(m.two(m.first(m.one(x)))),
    "also read before the activation": lambda m, x: (y := m.first(m.one(x))) - m.act(y),
}


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_what_is_folded_gives_the_same(name: str) -> None:
    net = lived(PLAIN[name]())
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    wanted, quick = net(x), folded(net, x[:1])
    assert count(net) > 0 and count(quick) == 0
    torch.testing.assert_close(quick(x), wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(net(x), wanted)


@pytest.mark.parametrize("name", APART)
@torch.no_grad()
def test_what_cannot_be_folded_is_left(name: str) -> None:
    net = lived(Wired(APART[name]))
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    quick = folded(net, x[:1])
    torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-5)
    assert count(quick) > 0


class Locked(nn.Sequential):
    """What cannot be copied."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.lock = Lock()


def spectral() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))


def padded_for_two() -> nn.Module:
    net = Wired(lambda m, x: m.first(m.one(y := m.pad(x))) + F.conv2d(y, m.one.weight))
    net.pad, net.one = nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3)
    return net


# Networks that cannot be folded, or fail once they are.
WHOLE = {
    "zeros that are read twice": padded_for_two,
    "cut, not padded": lambda: nn.Sequential(
        nn.ZeroPad2d(-1), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    ),
    "weights that are computed": spectral,
    "normalisation that is read": lambda: Wired(
        lambda m, x: m.first(m.one(x)) * m.first.weight.sum()
    ),
    "a lock": Locked,
}


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_where_folding_fails_the_network_stays(name: str) -> None:
    net = lived(WHOLE[name]())
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    wanted = net(x)
    assert folded(net, x) is net
    assert torch.equal(net(x), wanted)


@torch.no_grad()
def test_statistics_of_the_batch_are_not_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)).eval()
    assert count(folded(net, torch.randn(2, 3, 9, 9))) == 1
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    assert folded(plain, torch.zeros(1, 3, 9, 9)) is plain


def test_a_backbone_folds_and_stays_the_same_backbone(tmp_path: Path) -> None:
    net = lived(build(CONV))
    backbone = Backbone(net, InputTransform(28, 3), CONV)
    x, name = pixels(5, 3, 28, 28), backbone.fingerprint
    found = backbone.features(x)
    with torch.no_grad():
        wanted = net(backbone.transform(x).contiguous(memory_format=torch.channels_last))
    assert (found - wanted).norm() < TOLERANCE * wanted.norm()
    assert backbone.fingerprint == name and len(backbone.state_dict()) == len(net.state_dict())
    backbone.save(tmp_path)
    assert torch.equal(Backbone.load(tmp_path).features(x), found)


def plain() -> Backbone:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return Backbone(lived(net), InputTransform(12, 3), {"kind": "own"})


def edited(net: nn.Module) -> None:
    with torch.no_grad():
        net[0].weight.mul_(1.5)


def shifted(net: nn.Module) -> None:
    net[1].eps = 1.0


def replaced(net: nn.Module) -> None:
    net[2] = nn.Tanh()


def moved(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach() * 1.5)


@pytest.mark.parametrize("change", [edited, shifted, replaced, moved])
def test_what_changes_is_folded_anew(change: Callable[[nn.Module], None]) -> None:
    backbone, x = plain(), pixels(5, 3, 12, 12)
    before = backbone.features(x, precision="float32")
    change(backbone.net)
    with torch.no_grad():
        wanted = backbone.net(backbone.transform(x))
    after = backbone.features(x, precision="float32")
    assert not torch.allclose(before, after, rtol=1e-2)
    assert (after - wanted).norm() < TOLERANCE * wanted.norm()


def test_weights_whose_changes_do_not_show_are_not_folded() -> None:
    with torch.inference_mode():
        backbone, x = plain(), pixels(5, 3, 12, 12)
        for _ in range(2):
            wanted = backbone.net(backbone.transform(x))
            assert torch.allclose(backbone.features(x, precision="float32"), wanted)
            edited(backbone.net)


def test_hooks_are_called() -> None:
    backbone, x, called = plain(), pixels(5, 3, 12, 12), []
    backbone.features(x, precision="float32")
    backbone.net[1].register_forward_hook(lambda *_: called.append("after"))
    backbone.features(x, precision="float32")
    backbone.net[1].register_forward_pre_hook(lambda *_: called.append("before"))
    backbone.features(x, precision="float32")
    assert called == ["after", "before", "after"]


def test_a_copy_of_a_backbone_is_not_two_networks() -> None:
    backbone, x = plain(), pixels(5, 3, 12, 12)
    found = backbone.features(x, precision="float32")
    assert backbone._folded
    other = deepcopy(backbone)
    assert not other._folded and backbone._folded
    assert torch.equal(other.features(x, precision="float32"), found)
