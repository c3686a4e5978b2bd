"""`ltdi.nets`: the architecture, the gradients in it, and what its initialisation is for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ltdi.backbone import InputTransform
from ltdi.collect import Preparation, optimise
from ltdi.data import ImageSet
from ltdi.errors import InputError
from ltdi.nets import (
    InitialTraining,
    NetConfig,
    NetHost,
    NetPredictor,
    SmallNet,
    learn_initial,
)

SMALL = NetConfig(size=12, widths=(4, 8), kernels=(5, 3), strides=(2, 2))


@pytest.fixture(scope="module")
def host() -> NetHost:
    return NetHost(SMALL, InputTransform(12))


def module(host: NetHost, theta: Tensor, way: int) -> tuple[SmallNet, dict[str, Tensor]]:
    return SmallNet(host.config, way), host.space(way).unflatten(theta)


def test_the_default_net_is_that_of_the_lab_notes():
    assert NetHost(NetConfig(), InputTransform()).space(5).size == 15_749


@pytest.mark.parametrize("size", [12, 28, 33])
def test_the_head_gets_what_the_convolutions_leave(size: int):
    config = NetConfig(size=size)
    x = torch.zeros(2, 1, size, size)
    assert SmallNet(config, 3).features(x).shape == (2, config.features)


def test_a_net_has_no_buffers():
    """So nothing beside the generated weights has to be carried along or recomputed."""
    assert not list(SmallNet(SMALL, 3).buffers())


def test_flat_weights_are_the_modules(host: NetHost):
    torch.manual_seed(0)
    theta = 0.3 * torch.randn(host.space(3).size)
    x = torch.rand(5, 1, 12, 12)
    net, weights = module(host, theta, 3)
    expected = functional_call(net, weights, (x,))
    torch.testing.assert_close(host.predict(theta, x, host.space(3)), expected)
    net.load_state_dict(weights)
    torch.testing.assert_close(host.features(theta, x, host.space(3)), net.features(x).detach())


@pytest.mark.parametrize("alone", [False, True])
def test_the_gradient_is_autograds(host: NetHost, alone: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltdi.nets.host.LAYER", 1)  # one net after the other
    space = host.space(3)
    torch.manual_seed(0)
    theta = (0.3 * torch.randn(2, space.size)).requires_grad_()
    grid = torch.rand(2, 3, 2, 1, 12, 12)
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [[1.0, 1.0]] * 3])
    label = torch.arange(3).repeat_interleave(2)
    losses = []
    for net in range(2):
        logits = host.predict(theta[net], grid[net].flatten(0, 1), space)
        each = F.cross_entropy(logits, label, reduction="none")
        # One sample per class counts one.
        losses.append(3 * (each * mask[net].flatten()).sum() / mask[net].sum())
    (expected,) = torch.autograd.grad(sum(losses), theta)
    found = host.gradient(theta.detach(), grid, mask, space, alone=alone)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_many_nets_at_once_are_each_alone(host: NetHost):
    space = host.space(3)
    rng = torch.Generator().manual_seed(0)
    theta = 0.3 * torch.randn(4, space.size, generator=rng)
    pool = torch.rand(10, 1, 12, 12, generator=rng)
    which = torch.randint(10, (4, 5), generator=rng)
    alone = torch.stack([host.predict(theta[e], pool[which[e]], space) for e in range(4)])
    torch.testing.assert_close(host.many(theta, pool[which], space), alone, rtol=1e-4, atol=1e-5)
    shared = NetPredictor(host, space, pool)
    torch.testing.assert_close(shared.logits(theta, which), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared(theta[1], which[1]), alone[1])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("change", [{}, {"batch": 4}, {"sam_rho": 0.1, "label_smoothing": 0.2}])
@pytest.mark.parametrize("room", [1, 1 << 22])
def test_nets_solved_together_are_those_solved_by_vmap(
    host: NetHost,
    name: str,
    change: dict[str, float],
    room: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ltdi.nets.host.LAYER", room)  # one net at a time, or all
    space = host.space(3)
    rng = torch.Generator().manual_seed(0)
    theta = 0.1 * torch.randn(4, space.size, generator=rng, dtype=torch.float64)
    images = torch.rand(4, 6, 1, 12, 12, generator=rng, dtype=torch.float64)
    labels = torch.arange(6) % 3
    # Biases before a normalisation have a gradient of zero: Adam would see a pull, or the rounding
    # of single precision, and nothing else.
    decay = 0.0 if name == "adam" else 0.1
    plan = replace(Preparation(name, lr=0.01, steps=4, segments=2, weight_decay=decay), **change)
    found = [
        optimise(predict, theta, images, labels, plan, rng=torch.Generator().manual_seed(1))
        for predict in (NetPredictor(host, space), lambda t, x: host.predict(t, x, space))
    ]
    torch.testing.assert_close(found[0].theta, found[1].theta, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0].loss, found[1].loss)


def test_a_host_is_its_description(host: NetHost):
    again = NetHost.from_config(host.describe())
    assert again.config == host.config and again.fingerprint == host.fingerprint
    assert host.tensors() == {}
    other = NetHost(
        NetConfig(size=12, widths=(4, 8), kernels=(3, 3), strides=(2, 2)), host.transform
    )
    assert other.fingerprint != host.fingerprint
    assert NetHost(SMALL, InputTransform(12, polarity="keep")).fingerprint != host.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (16, 32)}, "2 widths, 3 kernels and 3 strides"),
        ({"widths": (16, 30, 32)}, r"4 groups do not divide the widths \[16, 30, 32\]"),
        ({"strides": (1, 0, 1)}, "at least 1"),
        ({"size": 2}, r"2 pixels are too small .* sides \[0, 0, 0\]"),
    ],
)
def test_architectures_that_cannot_be(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        NetConfig(**change)


def test_one_step_from_the_initialisation_solves_tasks_it_has_not_seen(
    glyphs: dict[str, ImageSet], host: NetHost
):
    """The initialisation itself is at chance: it cannot know which class has which label."""
    initial = learn_initial(glyphs["train"], host, InitialTraining(iterations=150, classes=20))
    test = glyphs["val"]
    space = host.space(5)
    rng = torch.Generator().manual_seed(0)
    right = []
    for _ in range(60):
        classes = torch.randperm(len(test.classes), generator=rng)[:5]
        items = test.offsets[classes][:, None] + torch.arange(8)
        x = host.transform(test.images[items.flatten()]).unflatten(0, (5, 8))
        theta = F.pad(initial.theta_0, (0, space.class_size)).unsqueeze(0)
        step = host.gradient(theta, x[:, :1].unsqueeze(0), torch.ones(1, 5, 1), space)
        # Nothing reaches the layers below a head of zeros.
        assert not bool(step[:, : len(initial.theta_0)].any())
        adapted = (theta - initial.rate * step)[0]
        guess = host.predict(adapted, x[:, 1:].flatten(0, 1), space).argmax(-1)
        right.append((guess == torch.arange(5).repeat_interleave(7)).float().mean())
    accuracy = torch.stack(right)
    assert float(accuracy.mean()) - 3 * float(accuracy.std()) / math.sqrt(60) > 0.35
