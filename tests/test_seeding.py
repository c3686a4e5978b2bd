"""`ltdi.seeding`: what is drawn inside is the seed's, and nothing outside notices."""

from __future__ import annotations

import pytest
import torch

from ltdi.seeding import seeded


def test_inside_the_seed_decides_and_outside_nothing_has_moved():
    state = torch.get_rng_state()
    with seeded(3):
        first = torch.nn.Linear(4, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    with seeded(3):
        again = torch.nn.Linear(4, 4)
    with seeded(4):
        other = torch.nn.Linear(4, 4)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_an_error_inside_puts_the_state_back_too():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), seeded(0):
        torch.rand(3)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), state)
