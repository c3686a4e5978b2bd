"""`RowDenoiser`: an untrained one is a step of gradient descent, and classes have no order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltdi.denoiser import Descent, RowDenoiser
from ltdi.weights import WeightSpace

SPACE = WeightSpace.from_shapes(
    {
        "conv.weight": (6, 1, 3, 3),
        "conv.bias": (6,),
        "head.weight": (3, 10),
        "head.bias": (3,),
    },
    per_class=("head.weight", "head.bias"),
)
B = 4


def network(trained: bool = False) -> RowDenoiser:
    torch.manual_seed(0)
    net = RowDenoiser(SPACE, steps=8, width=16, heads=2)
    if trained:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return net


def inputs(way: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Descent, WeightSpace]:
    rng = torch.Generator().manual_seed(seed)
    space = SPACE.with_way(way)
    x, estimate, gradient = (torch.randn(B, space.size, generator=rng) for _ in range(3))
    guide = Descent(estimate, gradient, torch.rand(B, generator=rng), torch.ones(B))
    return x, torch.randint(0, 8, (B,), generator=rng), guide, space


def test_an_untrained_network_takes_a_step_of_gradient_descent():
    net = network()
    rates = torch.tensor([0.1, 0.7])
    x, t, guide, space = inputs()
    # Of the size of the gradient itself, which is then left as it is.
    groups = [space.layer_of == i for i in range(2)]
    sizes = torch.stack([guide.gradient[0, g].square().mean().sqrt() for g in groups])
    net.standardise(sizes, rates)
    out = net(x[:1], t[:1], cut(guide), space)
    expected = guide.estimate[:1] - 0.01 * rates[space.layer_of] * guide.gradient[:1]
    torch.testing.assert_close(out, expected)


def cut(guide: Descent) -> Descent:
    return Descent(guide.estimate[:1], guide.gradient[:1], guide.signal[:1], guide.stage[:1])


def test_a_gradient_of_any_size_moves_no_further_than_a_large_one():
    net = network()
    net.standardise(torch.ones(2), 100 * torch.ones(2))
    x, t, guide, space = inputs()
    huge = Descent(guide.estimate, 1e6 * guide.gradient, guide.signal, guide.stage)
    moved = (net(x, t, huge, space) - guide.estimate).detach().square().mean().sqrt()
    assert 1 < float(moved) < 1.5  # the root of two, in units of the size
    none = Descent(guide.estimate, 0 * guide.gradient, guide.signal, guide.stage)
    torch.testing.assert_close(net(x, t, none, space), guide.estimate)


@pytest.mark.parametrize("way", [3, 5])
def test_permuting_classes_permutes_rows_and_changes_nothing_else(way: int):
    net = network(trained=True)
    x, t, guide, space = inputs(way)
    order = torch.randperm(way, generator=torch.Generator().manual_seed(3))

    def permuted(theta: Tensor) -> Tensor:
        named = space.unflatten(theta)
        named = {n: v[:, order] if n.startswith("head") else v for n, v in named.items()}
        return space.flatten(named)

    turned = Descent(permuted(guide.estimate), permuted(guide.gradient), guide.signal, guide.stage)
    there = net(permuted(x), t, turned, space)
    here = net(x, t, guide, space)
    torch.testing.assert_close(there, permuted(here), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(there, here, atol=1e-2)


def test_the_first_step_without_noise_has_a_short_way():
    net = network(trained=True)
    _, _, guide, space = inputs()
    zero, t = torch.zeros(B, space.size), torch.full((B,), 2)
    signal, stage = torch.full((B,), 0.3), torch.full((B,), 0.5)
    opening = net.opening(t[:1], signal[:1], stage[:1])
    short = net.begin(guide.gradient[:, -space.class_size :], opening, space)
    told = Descent(zero, guide.gradient * (space.layer_of == 1), signal, stage, first=True)
    torch.testing.assert_close(short, net(zero, t, told, space), rtol=1e-4, atol=1e-5)


def test_at_pure_noise_nothing_of_the_noise_is_seen():
    net = network(trained=True)
    x, t, guide, space = inputs()
    none = torch.zeros(B)
    told = Descent(guide.estimate, guide.gradient, none, guide.stage)
    torch.testing.assert_close(net(x, t, told, space), net(7 * x, t, told, space))
