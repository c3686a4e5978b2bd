"""`ltdi.denoiser.equivariant`: what it writes turns with the features, for any way, shot and D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from ltdi.denoiser import EquivariantDenoiser, Guide
from ltdi.denoiser.equivariant import Support, support_gradient
from ltdi.errors import InputError
from ltdi.parts import build_network
from ltdi.recipe import Diffusion, Network
from ltdi.weights import head_space

STEPS = 20


class Example(NamedTuple):
    """What the denoiser is given for B tasks."""

    x: Tensor
    t: Tensor
    support: Tensor
    mask: Tensor
    guide: Guide

    def rows(self, change: Callable[[Tensor], Tensor]) -> Example:
        """With the rows [B, way, D + 1] of x_t and of the anchor changed."""
        way = self.support.shape[1]

        def moved(theta: Tensor) -> Tensor:
            return change(theta.unflatten(-1, (way, -1))).flatten(1)

        guide = replace(self.guide, anchor=moved(self.guide.anchor))
        return self._replace(x=moved(self.x), guide=guide)


def network(seed: int = 0, randomise: bool = True) -> EquivariantDenoiser:
    """In double precision; the zero-initialised layers are made random on request."""
    torch.manual_seed(seed)
    net = EquivariantDenoiser(steps=STEPS, width=16, depth=2, heads=2)
    if randomise:
        for name, p in net.named_parameters():
            if "write" in name or "modulation" in name:
                nn.init.normal_(p, std=0.3)
        net.unit.copy_(torch.tensor([0.7, 1.8]))
    return net.double()


def example(way: int = 4, shot: int = 3, width: int = 6, tasks: int = 3, seed: int = 1) -> Example:
    """Random tasks with 1 to `shot` samples per class."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.double)

    count = torch.randint(1, shot + 1, (tasks, way, 1), generator=rng)
    n = way * (width + 1)
    guide = Guide(
        normal(tasks, n),
        normal(tasks, width).exp(),
        torch.rand(tasks, generator=rng, dtype=torch.double),
        torch.rand(tasks, generator=rng, dtype=torch.double),
    )
    mask = (torch.arange(shot) < count).double()
    t = torch.arange(tasks) * 5
    return Example(normal(tasks, n), t, normal(tasks, way, shot, width), mask, guide)


def predict(net: EquivariantDenoiser, e: Example) -> Tensor:
    """Rows [B, way, D + 1]."""
    space = head_space(e.support.shape[-1], e.support.shape[1])
    out: Tensor = net(e.x, e.t, e.support, e.mask, space, e.guide)
    return out.unflatten(-1, (e.support.shape[1], -1))


def test_permuting_classes_permutes_the_rows() -> None:
    net, e, order = network(), example(), torch.tensor([2, 0, 3, 1])
    moved = e.rows(lambda rows: rows[:, order])
    moved = moved._replace(support=e.support[:, order], mask=e.mask[:, order])
    out = predict(net, e)
    torch.testing.assert_close(predict(net, moved), out[:, order])
    assert not torch.allclose(out[:, order], out, atol=1e-2)


def test_the_order_of_a_classes_samples_does_not_matter() -> None:
    net, e = network(), example(shot=4)
    order = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2)).argsort(-1)
    moved = e._replace(
        support=e.support.gather(2, order.unsqueeze(-1).expand_as(e.support)),
        mask=e.mask.gather(2, order),
    )
    torch.testing.assert_close(predict(net, moved), predict(net, e))


@pytest.mark.parametrize("padding", [0.0, 1e100, float("inf"), float("nan")])
def test_padding_under_the_mask_is_no_sample(padding: float) -> None:
    net, e = network(), example()
    empty = torch.full_like(e.support[:, :, :2], padding)
    padded = e._replace(support=torch.cat([e.support, empty], 2), mask=F.pad(e.mask, (0, 2)))
    torch.testing.assert_close(predict(net, padded), predict(net, e))


def test_a_pace_that_all_tasks_share_may_be_worked_out_once() -> None:
    net, e = network(), example()
    space = head_space(e.support.shape[-1], 4)
    step = torch.full((3,), 7)
    guide = replace(e.guide, signal=torch.full((3,), 0.4).double(), stage=torch.ones(3).double())
    once = net.pace(step[:1], guide.signal[:1], guide.stage[:1], 4)
    code = net.encode(e.support, e.mask)
    wanted = net.denoise(e.x, step, code, space, guide)
    torch.testing.assert_close(net.denoise(e.x, step, code, space, guide, once), wanted)
    other = net.denoise(e.x, step + 1, code, space, guide)
    assert not torch.allclose(other, wanted, rtol=1e-3)


def block_rotation(sizes: tuple[int, ...], seed: int) -> Tensor:
    """Orthogonal, and mixing only coordinates of one block."""
    rng = torch.Generator().manual_seed(seed)
    parts = [torch.randn(s, s, generator=rng, dtype=torch.double) for s in sizes]
    return torch.block_diag(*[torch.linalg.qr(p).Q for p in parts])


def rotated(e: Example, turn: Tensor) -> Example:
    def rows(theta: Tensor) -> Tensor:
        return torch.cat([theta[..., :-1] @ turn, theta[..., -1:]], -1)

    return e.rows(rows)._replace(support=e.support @ turn)


@given(st.integers(0, 1000))
def test_rotating_the_features_rotates_the_rows(seed: int) -> None:
    """Among coordinates in which classes differ equally; the bias stays."""
    net, e, turn = network(), example(seed=seed), block_rotation((3, 1, 2), seed)
    between = torch.tensor([0.3, 0.3, 0.3, 5.0, 1.2, 1.2]).double().expand(3, -1)
    e = e._replace(guide=replace(e.guide, between=between))
    out = predict(net, e)
    wanted = torch.cat([out[..., :-1] @ turn, out[..., -1:]], -1)
    torch.testing.assert_close(predict(net, rotated(e, turn)), wanted, rtol=1e-6, atol=1e-8)


def test_coordinates_of_unequal_between_are_told_apart() -> None:
    """Otherwise the filters would do nothing."""
    net, e, turn = network(), example(), block_rotation((6,), 0)
    out = predict(net, e)
    wanted = torch.cat([out[..., :-1] @ turn, out[..., -1:]], -1)
    assert not torch.allclose(predict(net, rotated(e, turn)), wanted, atol=1e-2)


def test_a_fresh_network_returns_the_anchor() -> None:
    net, e = network(randomise=False), example()
    assert torch.equal(predict(net, e), torch.zeros(3, 4, 7).double())
    assert predict(network(), e).abs().min() > 0


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_the_support_gradient_is_that_of_autograd(way: int, shot: int, width: int, seed: int):
    """Minus way times the gradient of the mean cross entropy: one sample per class is the unit."""
    e = example(way, shot, width, tasks=2, seed=seed)
    code = network().encode(e.support, e.mask)

    def loss(theta: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        weight, bias = theta.unflatten(0, (way, -1)).tensor_split([width], 1)
        logits = support.flatten(0, 1) @ weight.T + bias.squeeze(1)
        label = torch.arange(way).repeat_interleave(shot)
        each = F.cross_entropy(logits, label, reduction="none")
        return (each * mask.flatten()).sum() / mask.sum()

    slope = vmap(grad(loss))(e.guide.anchor, e.support, e.mask).unflatten(1, (way, -1))
    weight, bias, residual = support_gradient(e.guide.anchor, code)
    torch.testing.assert_close(weight, -way * slope[..., :-1])
    torch.testing.assert_close(bias, -way * slope[..., -1])
    # A residual is a label minus a prediction: it sums to nothing, and is nothing under the mask.
    assert residual.sum(-1).abs().max() < 1e-12
    assert not residual[e.mask == 0].any() and bool((residual[e.mask > 0].abs().sum(-1) > 0).all())


def test_one_network_serves_any_way_shot_and_width() -> None:
    net = network()
    for way, shot, width in ((2, 1, 1), (3, 7, 40), (20, 2, 5), (50, 1, 3)):
        out = predict(net, example(way, shot, width, tasks=2))
        assert out.shape == (2, way, width + 1) and out.isfinite().all()


def test_every_input_matters() -> None:
    net, e = network(), example()
    out = predict(net, e)
    changes = [
        e._replace(x=e.x + 1.0),
        e._replace(t=e.t + 1),
        e._replace(support=e.support + 0.5 * e.support.square()),
        e._replace(mask=torch.ones_like(e.mask)),
    ]
    for name, value in vars(e.guide).items():
        changes.append(e._replace(guide=replace(e.guide, **{name: 0.5 * value + 0.1})))
    for number, changed in enumerate(changes):
        moved = (predict(net, changed) - out).abs().amax((1, 2))
        # A task that already had all its samples does not change with the mask.
        assert (moved.max() if number == 3 else moved.min()) > 1e-5, number


def test_tasks_of_a_batch_do_not_mix() -> None:
    net, e = network(), example()
    out = predict(net, e)
    for b in range(3):
        guide = Guide(**{f.name: getattr(e.guide, f.name)[b : b + 1] for f in fields(Guide)})
        one = Example(*(value[b : b + 1] for value in e[:4]), guide)
        torch.testing.assert_close(predict(net, one)[0], out[b])


def test_encoding_once_is_encoding_every_time() -> None:
    net, e = network(), example()
    space = head_space(6, 4)
    code = net.encode(e.support, e.mask)
    assert isinstance(code, Support)
    out = net.denoise(e.x, e.t, code, space, e.guide)
    assert torch.equal(out.unflatten(-1, (4, -1)), predict(net, e))


def test_vmap_over_stacked_parameters_equals_a_loop() -> None:
    """As base learners are trained: values and gradients."""
    space = head_space(6, 4)
    nets, parts = [network(seed) for seed in range(2)], [example(seed=seed) for seed in range(2)]
    params, buffers = stack_module_state(nets)
    tensors = [(*e[:4], *vars(e.guide).values()) for e in parts]

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], *given: Tensor) -> Tensor:
        arguments = (*given[:4], space, Guide(*given[4:]))
        return functional_call(nets[0], (params, buffers), arguments).square().mean()

    stacked = [torch.stack(pair) for pair in zip(*tensors, strict=True)]
    slopes = vmap(grad(loss))(params, buffers, *stacked)
    values = vmap(loss)(params, buffers, *stacked)
    for i, (net, e) in enumerate(zip(nets, parts, strict=True)):
        net.zero_grad()
        value = predict(net, e).square().mean()
        value.backward()
        torch.testing.assert_close(values[i], value.detach())
        for name, p in net.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(slopes[name][i], p.grad)
    assert not torch.allclose(values[0], values[1])


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_another_prediction_is_refused(prediction: str) -> None:
    chain = Diffusion(prediction=prediction, loss="weight")
    with pytest.raises(InputError, match=rf"equivariant network '{prediction}'"):
        build_network(head_space(3, 5), 3, Network(), chain)
