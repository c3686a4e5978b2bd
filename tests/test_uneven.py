"""`benchmarks/uneven.py`: what a support with uneven shots is to each method."""

from __future__ import annotations

import pytest
import torch

from benchmarks import uneven
from ltdi.evaluate import accuracy
from ltdi.tasks import FeatureBank

SHOTS = [1, 3, 2]


@pytest.fixture(scope="module")
def tasks():
    """Three directions, one for each class, with little noise."""
    rng = torch.Generator().manual_seed(0)
    groups = [5 * torch.eye(4)[c] + 0.3 * torch.randn(12, 4, generator=rng) for c in range(3)]
    return uneven.draw(FeatureBank.by_class(groups, ["a", "b", "c"]), SHOTS, 4, 20, 0)


def test_classes_have_the_shots_asked_for_and_padding_is_nothing(tasks):
    support, mask, query = tasks
    assert mask.sum(-1).tolist() == [SHOTS] * 20
    assert support.shape == (20, 3, 3, 4) and query.shape == (20, 3, 4, 4)
    assert not bool(support[mask == 0].any()) and bool(support[mask > 0].any(-1).all())


def test_every_peer_solves_what_is_easy_and_ignores_padding(tasks):
    support, mask, query = tasks
    filled = torch.where(mask[..., None] > 0, support, 100.0)
    zero = torch.zeros(4)
    for predict in (
        uneven.nearest,
        lambda *t: uneven.cosine(zero, *t),
        lambda *t: uneven.logistic(zero, "balanced", 10.0, *t),
    ):
        logits = predict(support, mask, query)
        assert logits.shape == (20, 3, 4, 3) and float(accuracy(logits).mean()) > 0.98
        torch.testing.assert_close(predict(filled, mask, query), logits)
