"""Novelty: a copy has none."""

from __future__ import annotations

import torch

from ltdi.nets import NetConfig, NetHost
from ltdi.nets.novelty import nearest, within, wrong_iou

SPACE = NetHost(NetConfig(1, 12, (4, 8), (5, 3), (2, 2)), None).space(4)  # type: ignore[arg-type]


def test_the_distance_of_a_copy_is_none_also_with_its_units_in_another_order():
    theta = torch.randn(4, SPACE.size, generator=torch.Generator().manual_seed(0))
    run, own = torch.tensor([0, 0, 1, 1]), torch.arange(2)
    assert float(nearest(theta[:2], theta, run, SPACE).max()) < 1e-2
    assert float(nearest(theta[:2], theta, run, SPACE, skip=own).min()) > 1
    named = SPACE.unflatten(theta[2])
    order = torch.tensor([1, 0, 3, 2])
    for kind in ("weight", "bias"):
        named[f"layers.0.{kind}"] = named[f"layers.0.{kind}"][order]
    named["layers.1.weight"] = named["layers.1.weight"][:, order]
    turned = SPACE.flatten(named).unsqueeze(0)
    assert float(torch.cdist(turned, theta).min()) > 1
    assert float(nearest(turned, theta, run, SPACE)) < 1e-2


def test_overlap_of_wrong_answers():
    labels = torch.tensor([0, 1, 2, 3])
    guess = torch.tensor([[0, 0, 0, 3], [1, 1, 2, 0]])
    assert wrong_iou(guess, guess, labels).tolist() == [1, 1]
    assert wrong_iou(guess, guess, labels, skip=torch.arange(2)).tolist() == [0, 0]
    half = torch.tensor([[0, 0, 2, 3]])
    assert wrong_iou(half, guess[:1], labels).tolist() == [0.5]


def test_nets_are_apart_within_their_own_training():
    theta = torch.tensor([[0.0, 1.0], [0.0, 3.0], [9.0, 5.0], [9.0, 5.0]])
    assert within(theta, torch.tensor([0, 0, 1, 1])) == 0.5
    assert within(theta[2:], torch.tensor([3, 3])) == 0
