"""`ltdi.anchor.frame`: heads follow features from one set of coordinates into another."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ltdi.anchor.frame import Frame
from ltdi.weights import head_logits


def normal(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.double)


def frame(width: int, seed: int) -> Frame:
    """Anything invertible, with an origin of its own."""
    turn = torch.linalg.qr(normal(2, width, width, seed=seed)).Q
    stretch = normal(width, seed=seed + 1).clamp(-1.5, 1.5).exp()
    basis = turn[0] @ torch.diag(stretch) @ turn[1]
    return Frame(3 * normal(width, seed=seed + 2), basis, stretch)


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 1000))
def test_a_head_gives_the_same_logits_inside_and_outside(width: int, way: int, seed: int) -> None:
    f, theta = frame(width, seed), normal(3, way * (width + 1), seed=seed + 3)
    x = normal(3, 7, width, seed=seed + 4)
    outside, inside = head_logits(f.leave(theta), x), head_logits(theta, f.enter(x))
    torch.testing.assert_close(outside, inside, rtol=1e-9, atol=1e-9)
    origin = normal(3, width, seed=seed + 5)
    outside = head_logits(f.leave(theta, origin), x)
    inside = head_logits(theta, f.enter(x) - origin.unsqueeze(1))
    torch.testing.assert_close(outside, inside, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000))
def test_leaving_is_linear(seed: int) -> None:
    """So that residuals may be scaled and averaged on either side."""
    f, a, b = frame(4, seed), normal(15, seed=seed + 3), normal(15, seed=seed + 4)
    torch.testing.assert_close(f.leave(2 * a - 3 * b), 2 * f.leave(a) - 3 * f.leave(b))


def test_the_identity_changes_nothing() -> None:
    f, theta, x = Frame.identity(5), normal(2, 18, seed=0).float(), normal(4, 5, seed=1).float()
    assert torch.equal(f.enter(x), x)
    assert torch.equal(f.leave(theta), theta)
    assert torch.equal(f.between, torch.ones(5))


def test_leading_dimensions_are_kept() -> None:
    """A trajectory [E, k, n] leaves target by target, a support [B, way, shot, D] item by item."""
    f, theta, x = frame(3, 0), normal(2, 4, 8, seed=1), normal(2, 2, 3, 3, seed=2)
    torch.testing.assert_close(f.leave(theta)[1, 2], f.leave(theta[1, 2]))
    torch.testing.assert_close(f.enter(x)[1, 0, 2], f.enter(x[1, 0, 2]))
