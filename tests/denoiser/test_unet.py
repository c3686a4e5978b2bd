"""`ltdi.denoiser.unet` and `conditional`: any length, one way, and a clear word for another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ltdi.denoiser import TokenTransformer, UNet1d
from ltdi.denoiser.condition import Condition, SetEncoder
from ltdi.denoiser.conditional import ConditionalDenoiser
from ltdi.errors import MismatchError
from ltdi.weights import WeightSpace, head_space

CONDITION, STEPS = 6, 20


def network(space: WeightSpace, levels: int = 2) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(space, condition_width=CONDITION, steps=STEPS, channels=4, levels=levels)


def example(space: WeightSpace, batch: int = 2) -> tuple[Tensor, Tensor, Condition]:
    rng = torch.Generator().manual_seed(1)
    task = torch.randn(batch, CONDITION, generator=rng)
    classes = torch.randn(batch, space.way or 1, CONDITION, generator=rng)
    x = torch.randn(batch, space.size, generator=rng)
    return x, torch.arange(batch) * 7, Condition(task, classes)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 8, 9, 13, 16, 31])
@pytest.mark.parametrize("levels", [1, 3])
def test_any_length_keeps_its_shape(length: int, levels: int) -> None:
    space = WeightSpace.from_shapes({"w": (1, length)})
    x, t, c = example(space)
    out = network(space, levels)(x, t, c, space)
    assert out.shape == (2, length) and out.isfinite().all()


@pytest.mark.parametrize("way", [2, 4, 6])
def test_another_way_is_refused_by_name(way: int) -> None:
    space = head_space(3, 5)
    other = space.with_way(way)
    with pytest.raises(MismatchError, match=f"5-way weights, the task has {way} classes"):
        network(space)(*example(other), other)


def test_every_input_matters() -> None:
    space = head_space(3, 5)
    net = network(space)
    x, t, c = example(space)
    out = net(x, t, c, space)
    first = c.classes.clone()
    first[:, 0] += 1.0
    for other in (
        net(x + torch.randn_like(x), t, c, space),
        net(x, t + 1, c, space),
        net(x, t, Condition(c.task + 1.0, c.classes), space),
        net(x, t, Condition(c.task, first), space),
    ):
        assert (other - out).abs().amax(-1).min() > 1e-4


def test_tasks_of_a_batch_do_not_mix() -> None:
    space = head_space(3, 5)
    net = network(space)
    x, t, c = example(space)
    out = net(x, t, c, space)
    alone = net(x[:1], t[:1], Condition(c.task[:1], c.classes[:1]), space)
    torch.testing.assert_close(alone, out[:1])


@pytest.mark.parametrize("kind", [TokenTransformer, UNet1d])
def test_the_whole_network_embeds_then_denoises(kind: type[TokenTransformer | UNet1d]) -> None:
    torch.manual_seed(0)
    space = head_space(3, 4)
    denoiser = kind(space, condition_width=CONDITION, steps=STEPS)
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.1)
    net = ConditionalDenoiser(SetEncoder(3, CONDITION), denoiser)
    x, t, _ = example(space)
    support, mask = torch.randn(2, 4, 2, 3), torch.ones(2, 4, 2)
    out = net(x, t, support, mask, space, None)
    torch.testing.assert_close(out, denoiser(x, t, net.encoder(support, mask), space))
    out.square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_transformer_in_it_is_equivariant_from_support_to_weights() -> None:
    """Relabelling the support's classes permutes the generated rows and changes nothing else."""
    torch.manual_seed(0)
    space, order = head_space(3, 4), torch.tensor([3, 1, 0, 2])
    denoiser = TokenTransformer(space, condition_width=CONDITION, steps=STEPS)
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.1)
    net = ConditionalDenoiser(SetEncoder(3, CONDITION), denoiser).double()
    x, t, _ = example(space)
    support, mask = torch.randn(2, 4, 2, 3).double(), torch.ones(2, 4, 2).double()

    def rows(theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (4, -1))

    out = rows(net(x.double(), t, support, mask, space, None))
    moved = rows(x.double())[:, order].flatten(1)
    again = rows(net(moved, t, support[:, order], mask[:, order], space, None))
    torch.testing.assert_close(again, out[:, order])
    assert not torch.allclose(again, out)
