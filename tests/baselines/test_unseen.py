"""Peers without labels: they learn what names say, and adapt to images without labels."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ltdi.baselines.unseen import UNSEEN_PEERS, Adapted, Conse, Devise, UnseenMethod
from ltdi.baselines.unseen.method import Coordinates, NamedBanks, UnseenBudget, mean_accuracy
from ltdi.tasks import FeatureBank
from ltdi.unseen import NamedBank, TaskBatch, sample_tasks

BUDGET = UnseenBudget(60, (6, 12), ways=(5,))


def world(seed: int = 0) -> tuple[NamedBank, list[TaskBatch]]:
    """Source classes and validation tasks whose class means are a linear function of the names."""
    rng = torch.Generator().manual_seed(seed)
    names = F.normalize(torch.randn(60, 10, generator=rng), dim=-1)
    means = 5 * names @ torch.randn(10, 8, generator=rng)
    images = means.repeat_interleave(30, 0) + torch.randn(1800, 8, generator=rng)
    bank = FeatureBank(images, torch.arange(61) * 30, tuple(map(str, range(60))))
    whole = NamedBank(bank, tuple(f"thing {i}" for i in range(60)), names)
    train, valid = whole.select(range(45)), whole.select(range(45, 60))
    tasks = sample_tasks(valid, way=5, pool=(6, 12), query=8, tasks=20, seed=1)
    return train, [tasks.view(valid)]


@pytest.mark.parametrize("name", UNSEEN_PEERS)
def test_every_peer_learns_what_names_say(name: str) -> None:
    train, valid = world()
    peer = UNSEEN_PEERS[name]()
    peer.fit(NamedBanks(train, valid), BUDGET)
    assert mean_accuracy(peer.logits, valid) > 0.4  # chance is 0.2
    one = valid[0][:2]
    logits = peer.logits(one, one.query.flatten(1, 2))
    assert logits.shape == (2, 40, 5) and bool(logits.isfinite().all())


@pytest.mark.parametrize("name", UNSEEN_PEERS)
def test_a_method_learns_again_from_more_classes_and_stays_as_it_is(name: str) -> None:
    train, valid = world()
    peer = UNSEEN_PEERS[name]()
    peer.fit(NamedBanks(train, valid), BUDGET)
    one = valid[0][:2]
    x = one.query.flatten(1, 2)
    before = peer.logits(one, x)
    same = peer.again(train, BUDGET)
    # From the same classes the same is learned: what is chosen is kept, and nothing is left over.
    torch.testing.assert_close(same.logits(one, x), before, rtol=1e-3, atol=1e-4)
    assert peer.again(train, BUDGET) is same
    more = copy.copy(peer)
    more._final = None
    other = more.again(train.select(range(30)), BUDGET)
    assert not torch.allclose(other.logits(one, x), before, atol=1e-3)
    assert torch.equal(peer.logits(one, x), before)


@pytest.mark.parametrize("peer", [Devise, Conse])
def test_permuting_the_names_permutes_the_logits(peer: type[UnseenMethod]) -> None:
    train, valid = world()
    method = peer()
    method.fit(NamedBanks(train, valid), BUDGET)
    batch, turn = valid[0], torch.tensor([3, 0, 4, 1, 2])
    x = batch.query.flatten(1, 2)
    moved = TaskBatch(batch.text[:, turn], batch.pool, batch.mask, batch.query)
    torch.testing.assert_close(
        method.logits(moved, x), method.logits(batch, x)[..., turn], rtol=1e-4, atol=1e-5
    )


def test_adaptation_is_never_worse_on_validation_and_helps_a_weak_method() -> None:
    train, valid = world()
    weak = Devise()
    weak.fit(NamedBanks(train, valid), BUDGET)
    weak.map = weak.map + 5 * torch.randn(
        weak.map.shape, generator=torch.Generator().manual_seed(2)
    )
    before = mean_accuracy(weak.logits, valid)
    adapted = Adapted(weak)
    adapted.fit(NamedBanks(train, valid), BUDGET)
    assert mean_accuracy(adapted.logits, valid) > before + 0.02
    assert adapted.name == "devise+em" and adapted.kind == "peer"


def test_an_empty_pool_leaves_a_method_as_it_is() -> None:
    train, valid = world()
    base = Devise()
    base.fit(NamedBanks(train, valid), BUDGET)
    adapted = Adapted(base)
    adapted.fit(NamedBanks(train, valid), BUDGET)
    batch = valid[0].named_only()
    x = batch.query.flatten(1, 2)
    assert torch.equal(adapted.logits(batch, x), base.logits(batch, x))


def test_whitened_coordinates_have_unit_spread_within_classes() -> None:
    train, _ = world()
    c = Coordinates.fit(train, whiten=True)
    z = c.frame.enter(train.centred().bank.features)
    label = torch.arange(45).repeat_interleave(30)
    spread = (z - c.means[label]).square().mean()
    assert 0.8 < float(spread) < 1.05  # the ridge takes a little away
