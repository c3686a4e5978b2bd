"""`ltdi.tasks`: episodes are fixed by their seed and never mix support with query."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltdi.errors import InputError
from ltdi.tasks import Episodes, FeatureBank, sample_episodes

few = settings(max_examples=40, deadline=None, derandomize=True)


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def same(a: Episodes, b: Episodes) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Episodes))


def draw(counts: list[int], seed: int = 0, among: Tensor | None = None, **changes: int) -> Episodes:
    sizes = {"way": 3, "shot": 2, "query": 3, "episodes": 7} | changes
    return sample_episodes(offsets_of(counts), seed=seed, among=among, **sizes)


@few
@given(
    counts=st.lists(st.integers(5, 12), min_size=3, max_size=8),
    way=st.integers(2, 3), shot=st.integers(1, 2), query=st.integers(0, 3),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_every_episode_is_well_formed(
    counts: list[int], way: int, shot: int, query: int, seed: int
) -> None:
    e = draw(counts, seed, way=way, shot=shot, query=query)
    assert len(e) == 7 and e.way == way and e.shot == shot
    assert e.query.shape == (7, way, query)
    items = torch.cat([e.support, e.query], -1)
    for row in items.flatten(1).tolist():
        assert len(set(row)) == len(row)  # support and query are disjoint, nothing twice
    for row in e.classes.tolist():
        assert len(set(row)) == way
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    assert torch.equal(owner[items], e.classes[..., None].expand_as(items))


def test_the_seed_fixes_the_list() -> None:
    counts = [9, 8, 7, 12, 9]
    assert same(draw(counts, 3), draw(counts, 3))
    assert not same(draw(counts, 3), draw(counts, 4))
    state = torch.get_rng_state()
    draw(counts, 5)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


def test_labels_are_a_random_permutation_of_the_classes() -> None:
    e = draw([6] * 4, way=4, episodes=4800)
    for label in range(4):
        share = torch.bincount(e.classes[:, label], minlength=4) / 4800
        assert (share - 0.25).abs().max() < 0.03  # 4.8 standard deviations


def test_every_item_is_drawn_equally_often_from_unequal_classes() -> None:
    e = draw([5, 20], way=2, shot=1, query=2, episodes=6000)
    for items in (e.support, e.query):
        counts = torch.bincount(items.flatten(), minlength=25)
        per_item = 6000 * items.shape[-1] / torch.tensor([5.0] * 5 + [20.0] * 20)
        assert ((counts - per_item).abs() < 5 * per_item.sqrt()).all()


def test_a_class_with_exactly_enough_items_is_used_up() -> None:
    e = draw([5, 30, 5], way=3, shot=2, query=3)
    for row, classes in zip(torch.cat([e.support, e.query], -1), e.classes, strict=True):
        for items, c in zip(row.tolist(), classes.tolist(), strict=True):
            if c == 0:
                assert sorted(items) == [0, 1, 2, 3, 4]
            if c == 2:
                assert sorted(items) == [35, 36, 37, 38, 39]


def test_long_lists_come_in_chunks_without_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdi.tasks._sizes", lambda total, most: [3, 3, 1])
    e = draw([8] * 5)
    assert len(e) == 7
    assert len({tuple(row) for row in e.support.flatten(1).tolist()}) == 7


def test_chunks_and_slices_keep_the_order() -> None:
    e = draw([9] * 4)
    parts = list(e.chunks(3))
    assert [len(p) for p in parts] == [3, 3, 1]
    joined = [torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Episodes)]
    assert same(Episodes(*joined), e)


def test_a_bank_draws_from_its_own_offsets() -> None:
    bank = FeatureBank(torch.randn(15, 4), offsets_of([7, 8]), ("a", "b"))
    assert bank.width == 4
    sizes = {"way": 2, "shot": 1, "query": 2, "episodes": 3, "seed": 1}
    assert same(bank.episodes(**sizes), sample_episodes(bank.offsets, **sizes))


def test_a_bank_by_class_keeps_items_names_and_order() -> None:
    bank = FeatureBank(torch.randn(9, 4), offsets_of([2, 4, 3]), ("a", "b", "c"))
    assert bank.labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    torch.testing.assert_close(bank.means()[1], bank.features[2:6].mean(0))
    torch.testing.assert_close(bank.means(-bank.features), -bank.means())
    some = bank.select(torch.tensor([2, 0]))
    assert some.classes == ("c", "a") and some.offsets.tolist() == [0, 3, 5]
    assert torch.equal(some.features, bank.features[[6, 7, 8, 0, 1]])
    again = FeatureBank.by_class(bank.groups(), bank.classes)
    assert torch.equal(again.features, bank.features) and again.classes == bank.classes
    assert torch.equal(again.offsets, bank.offsets)


def test_only_the_named_classes_are_drawn() -> None:
    counts, among = [9, 5, 7, 12, 9, 8], torch.tensor([5, 0, 3])
    e = draw(counts, among=among)
    assert set(e.classes.flatten().tolist()) == {0, 3, 5}
    owner = torch.repeat_interleave(torch.arange(6), torch.tensor(counts))
    items = torch.cat([e.support, e.query], -1)
    assert torch.equal(owner[items], e.classes[..., None].expand_as(items))
    # All of them are what is drawn without a name.
    assert same(draw(counts, among=torch.arange(6)), draw(counts))
    with pytest.raises(InputError, match="needs 4 classes, the data have 3"):
        draw(counts, way=4, among=among)
    # A class that is not among them may be too small.
    assert len(draw([9, 2, 9, 9], among=torch.tensor([0, 2, 3]))) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"way": 4}, r"needs 4 classes, the data have 3[\s\S]*way <= 3"),
        (
            {"shot": 3},
            r"needs 6 items per class; the smallest class has 5[\s\S]*shot \+ query <= 5",
        ),
        ({"way": 1}, "way must be at least 2, got 1"),
        ({"shot": 0}, "shot must be at least 1, got 0"),
        ({"query": -1}, "query must be at least 0, got -1"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
    ],
)
def test_impossible_episodes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw([6, 5, 9], **changes)
