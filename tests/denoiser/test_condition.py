"""`ltdi.denoiser.condition`: neither order of samples nor what stands under the mask matters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltdi.denoiser.condition import Condition, SetEncoder

B, WAY, SHOT, D, WIDTH = 2, 4, 5, 6, 7


def encoder() -> SetEncoder:
    torch.manual_seed(0)
    net = SetEncoder(D, WIDTH).double().eval()
    net.standardise(2.0 * torch.randn(50, D, dtype=torch.float64) + 1.0)
    return net


def tasks() -> tuple[Tensor, Tensor]:
    """Support with 1 to 5 real samples per class."""
    rng = torch.Generator().manual_seed(1)
    support = torch.randn(B, WAY, SHOT, D, generator=rng, dtype=torch.float64)
    counts = torch.randint(1, SHOT + 1, (B, WAY, 1), generator=rng)
    return support, (torch.arange(SHOT) < counts).double()


def close(a: Condition, b: Condition) -> bool:
    return torch.allclose(a.task, b.task) and torch.allclose(a.classes, b.classes)


def test_shapes_and_sensitivity() -> None:
    support, mask = tasks()
    net = encoder()
    out = net(support, mask)
    assert out.task.shape == (B, WIDTH) and out.classes.shape == (B, WAY, WIDTH)
    support[0, 1, 0] += 1.0  # the first sample is always real
    changed = net(support, mask)
    moved = (changed.classes - out.classes).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[0, 1]]  # a class sees its own samples only
    assert ((changed.task - out.task).abs().amax(-1) > 1e-6).tolist() == [True, False]


def test_the_order_of_samples_does_not_matter() -> None:
    support, mask = tasks()
    order = torch.rand(B, WAY, SHOT, generator=torch.Generator().manual_seed(2)).argsort(-1)
    shuffled = support.gather(2, order[..., None].expand_as(support))
    net = encoder()
    assert close(net(shuffled, mask.gather(2, order)), net(support, mask))


@pytest.mark.parametrize("padding", [0.0, 7.0, 1e200, math.inf, math.nan])
def test_padding_does_not_matter(padding: float) -> None:
    support, mask = tasks()
    net = encoder()
    padded = support.masked_fill(mask[..., None] == 0, padding)
    assert close(net(padded, mask), net(support, mask))


def test_padding_equals_leaving_samples_out() -> None:
    support, mask = tasks()
    mask[:] = torch.tensor([1.0, 1, 1, 0, 0])
    net = encoder()
    assert close(net(support, mask), net(support[:, :, :3], mask[:, :, :3]))


def test_classes_are_equivariant_and_the_task_invariant() -> None:
    support, mask = tasks()
    order = torch.tensor([2, 0, 3, 1])
    net = encoder()
    out, moved = net(support, mask), net(support[:, order], mask[:, order])
    assert torch.allclose(moved.classes, out.classes[:, order])
    assert torch.allclose(moved.task, out.task)
    assert not torch.allclose(moved.classes, out.classes)


def test_the_number_of_samples_is_seen() -> None:
    net = encoder()
    one = torch.randn(1, 2, 1, D, dtype=torch.float64)
    twice = one.expand(-1, -1, 2, -1)
    first = net(one, torch.ones(1, 2, 1, dtype=torch.float64))
    second = net(twice, torch.ones(1, 2, 2, dtype=torch.float64))
    assert not torch.allclose(first.classes, second.classes)


def test_tasks_of_a_batch_do_not_mix() -> None:
    support, mask = tasks()
    net = encoder()
    both = net(support, mask)
    for b in range(B):
        alone = net(support[b : b + 1], mask[b : b + 1])
        assert torch.allclose(alone.classes[0], both.classes[b])
        assert torch.allclose(alone.task[0], both.task[b])


def test_standardise_makes_the_encoder_blind_to_shift_and_scale() -> None:
    support, mask = tasks()
    rng = torch.Generator().manual_seed(3)
    train = torch.randn(50, D, generator=rng, dtype=torch.float64)
    net = encoder()
    net.standardise(train)
    out = net(support, mask)
    net.standardise(10.0 * train + 3.0)
    assert close(net(10.0 * support + 3.0, mask), out)
    assert {"centre", "scale"} <= set(net.state_dict())
