"""`ltdi.unseen.tasks`: pools and queries are disjoint, and of the task's classes."""

from __future__ import annotations

import pytest
import torch

from ltdi.errors import InputError
from ltdi.tasks import FeatureBank
from ltdi.unseen import NamedBank, sample_tasks


def source(classes: int = 12, each: int = 20) -> NamedBank:
    features = torch.arange(classes * each).float()[:, None].expand(-1, 3)
    offsets = torch.arange(classes + 1) * each
    names = tuple(f"thing {i}" for i in range(classes))
    bank = FeatureBank(features, offsets, names)
    return NamedBank(bank, names, torch.eye(classes))


def test_pool_and_query_are_disjoint_and_of_the_tasks_classes() -> None:
    drawn = sample_tasks(source(), way=4, pool=(3, 9), query=5, tasks=40, seed=0)
    for e in range(40):
        pool = drawn.pool[e][drawn.mask[e] > 0]
        query = drawn.query[e].flatten()
        assert not set(pool.tolist()) & set(query.tolist())
        assert len(set(pool.tolist())) == len(pool)
        assert set((pool // 20).tolist()) == set(drawn.classes[e].tolist())
        assert torch.equal(drawn.query[e] // 20, drawn.classes[e][:, None].expand(-1, 5))


def test_every_second_task_has_classes_of_unequal_size() -> None:
    drawn = sample_tasks(source(), way=4, pool=(3, 9), query=5, tasks=40, seed=0)
    sizes = drawn.mask.unflatten(1, (4, 9)).sum(-1)
    assert (sizes[1::2] == 6).all()
    assert (sizes[0::2].std(1) > 0).float().mean() > 0.8
    assert sizes.min() >= 3 and sizes.max() <= 9


def test_a_seed_fixes_the_tasks() -> None:
    a, b, c = (
        sample_tasks(source(), way=4, pool=(3, 9), query=5, tasks=5, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(a.pool, b.pool) and torch.equal(a.classes, b.classes)
    assert not torch.equal(a.classes, c.classes)


def test_names_alone_are_a_pool_of_no_image() -> None:
    batch = sample_tasks(source(), way=4, pool=(0, 0), query=5, tasks=3, seed=0).view(source())
    assert batch.pool.shape == (3, 0, 3)
    assert batch.text.shape == (3, 4, 12)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="tasks of 13 classes cannot be drawn from 12"):
        sample_tasks(source(), way=13, pool=(1, 2), query=1, tasks=1, seed=0)
    with pytest.raises(InputError, match="more than the 20 of the smallest class"):
        sample_tasks(source(), way=3, pool=(16, 18), query=5, tasks=1, seed=0)


def test_a_split_shares_no_concept() -> None:
    words = tuple(f"thing {i % 8}" for i in range(12))
    bank = source()
    train, valid = NamedBank(bank.bank, words, bank.text).split(0.25, seed=0)
    assert not set(train.names) & set(valid.names)
    assert len(train.names) + len(valid.names) == 12


def test_names_vectors_and_classes_must_be_equally_many() -> None:
    bank = source()
    with pytest.raises(InputError, match="12 classes, 11 names, 12 vectors do not fit"):
        NamedBank(bank.bank, bank.names[:11], bank.text)


def test_joined_banks_are_their_classes_in_order() -> None:
    a = source()
    whole = NamedBank.joined([a.select(range(5)), a.select(range(5, 12))])
    assert whole.names == a.names and whole.bank.classes == a.bank.classes
    assert torch.equal(whole.bank.features, a.bank.features)
    assert torch.equal(whole.bank.offsets, a.bank.offsets)
    assert torch.equal(whole.text, a.text) and torch.equal(whole.origin, a.origin)
