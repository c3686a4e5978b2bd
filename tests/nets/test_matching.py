"""`ltdi.nets.matching`: the assignment is the best there is, and a permuted net is found again."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ltdi.nets import NetConfig, SmallNet
from ltdi.nets.matching import assignment, match_units
from ltdi.weights import WeightSpace

CONFIG = NetConfig(3, 12, (8, 12), (3, 3), (2, 2))


def space() -> WeightSpace:
    named = dict(SmallNet(CONFIG, 4).named_parameters())
    return WeightSpace.from_shapes({n: p.shape for n, p in named.items()})


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_the_assignment_is_scipys(size: int):
    cost = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
    found = assignment(cost)
    rows, columns = linear_sum_assignment(cost.numpy())
    assert sorted(found.tolist()) == list(range(size))
    best = float(cost[torch.from_numpy(rows), torch.from_numpy(columns)].sum())
    assert float(cost[torch.arange(size), found].sum()) == pytest.approx(best, abs=1e-5)


def test_permuted_units_are_found_again():
    torch.manual_seed(0)
    net, where = SmallNet(CONFIG, 4), space()
    reference = where.flatten(dict(net.state_dict()))
    turned = {k: v.clone() for k, v in net.state_dict().items()}
    first, second = torch.randperm(8), torch.randperm(12)
    for name, order in (("layers.0", first), ("layers.1", second)):
        turned[f"{name}.weight"] = turned[f"{name}.weight"][order]
        turned[f"{name}.bias"] = turned[f"{name}.bias"][order]
    turned["layers.1.weight"] = turned["layers.1.weight"][:, first]
    head = turned["head.weight"].unflatten(1, (12, -1))[:, second]
    turned["head.weight"] = head.flatten(1)
    theta = where.flatten(turned)
    assert float((theta - reference).norm()) > 1
    torch.testing.assert_close(match_units(theta, reference, where), reference)


def test_matching_never_moves_a_net_away():
    where = space()
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, where.size, generator=rng)
        assert (match_units(a, b, where) - b).norm() <= (a - b).norm() + 1e-4
