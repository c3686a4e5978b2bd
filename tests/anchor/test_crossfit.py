"""`ltdi.anchor.crossfit`: held-out classes stay out of the anchor of their own tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.anchor import Anchor, GaussianAnchor, fit_anchor
from ltdi.anchor.crossfit import Fold, crossfit, likeness
from ltdi.anchor.crossfit import hold_out as crossfit_hold_out
from ltdi.tasks import FeatureBank
from ltdi.weights import head_logits, head_space

D, ITEMS = 5, 12


def bank_of(means: Tensor, seed: int = 0) -> FeatureBank:
    """Items ~ N(mean, diagonal) of classes with means [C, D]."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(means), ITEMS, D, generator=rng) * torch.linspace(0.5, 1.5, D)
    offsets = torch.arange(len(means) + 1) * ITEMS
    names = tuple(f"c{i}" for i in range(len(means)))
    return FeatureBank((means[:, None] + noise).flatten(0, 1), offsets, names)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def train() -> FeatureBank:
    return bank_of(1 + 2 * normal(20, D, seed=0))


@pytest.fixture(scope="module")
def anchor(train: FeatureBank) -> GaussianAnchor:
    return GaussianAnchor(D).fit(train, ridge=0.125, spread=0.5)


def hold_out(anchor: Anchor, bank: FeatureBank, **changes: float) -> list[Fold]:
    options = {"folds": 6, "share": 0.25, "alike": 0.0, "least": 3, "seed": 4} | changes
    return crossfit(anchor, bank, **options)  # type: ignore[arg-type]


def state(anchor: Anchor) -> Tensor:
    return torch.cat([value.flatten() for value in anchor.state_dict().values()])


class Witness(Anchor):
    """Notes which classes it is fitted on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[set[str]] = []

    def refit(self, bank: FeatureBank) -> Anchor:
        self.seen.append(set(bank.classes))
        return self


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_a_folds_anchor_is_shown_all_other_classes_and_no_other(
    train: FeatureBank, alike: float
) -> None:
    witness = Witness()
    folds = hold_out(witness, train, alike=alike)
    assert len(witness.seen) == len(folds) == 6
    for seen, fold in zip(witness.seen, folds, strict=True):
        held = {train.classes[c] for c in fold.classes.tolist()}
        assert len(held) == 5 and not seen & held
        assert seen | held == set(train.classes)


def test_what_is_held_out_leaves_no_trace_in_the_anchor(
    train: FeatureBank, anchor: GaussianAnchor
) -> None:
    """Other features of the held-out classes: the same anchor; of any other class: another."""
    owner = torch.arange(20).repeat_interleave(ITEMS)
    folds = hold_out(anchor, train)
    for number, fold in enumerate(folds):
        held = torch.isin(owner, fold.classes)
        outside = int(owner[~held][0])
        for which, same in ((held, True), (owner == outside, False)):
            moved = torch.where(which[:, None], 50.0, train.features)
            again = hold_out(anchor, replace(train, features=moved))[number]
            assert torch.equal(again.classes, fold.classes)
            assert torch.equal(state(again.anchor), state(fold.anchor)) == same
            assert torch.equal(again.frame.basis, fold.frame.basis) == same


def test_a_fold_is_the_refitted_anchor_and_its_frame(
    train: FeatureBank, anchor: GaussianAnchor
) -> None:
    for fold in hold_out(anchor, train):
        rest = torch.tensor([c for c in range(20) if c not in fold.classes.tolist()])
        wanted = GaussianAnchor(D).fit(train.select(rest), 0.125, 0.5)
        assert torch.equal(state(fold.anchor), state(wanted))
        assert torch.equal(fold.frame.mean, wanted.mean)
        assert torch.equal(fold.frame.between, wanted.between)


def test_the_seed_fixes_the_folds(train: FeatureBank, anchor: GaussianAnchor) -> None:
    before = torch.get_rng_state()
    drawn = [
        [fold.classes.tolist() for fold in hold_out(anchor, train, alike=0.5, seed=seed)]
        for seed in (4, 4, 5)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({tuple(classes) for classes in drawn[0]}) > 3


@pytest.mark.parametrize(("alike", "clusters"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_alike_folds_hold_out_the_nearest_classes(alike: float, clusters: int) -> None:
    """Four far groups of five: a class and its four nearest are a group."""
    group = torch.arange(20) % 4
    far = 40 * torch.linalg.qr(normal(D, D, seed=1)).Q[:4]
    bank = bank_of(far[group] + normal(20, D, seed=2))
    folds = hold_out(Anchor(), bank, alike=alike)
    whole = [len(group[fold.classes].unique()) == 1 for fold in folds]
    assert sum(whole) == clusters == sum(whole[:clusters])


@pytest.mark.parametrize(
    ("share", "least", "size"), [(0.25, 3, 5), (0.1, 3, 3), (0.5, 2, 10), (0.99, 2, 18)]
)
def test_a_fold_has_its_share_and_leaves_two_classes(share: float, least: int, size: int) -> None:
    bank = bank_of(normal(20, D, seed=0))
    for fold in hold_out(Anchor(), bank, share=share, least=least):
        assert fold.classes.tolist() == sorted(set(fold.classes.tolist()))
        assert len(fold.classes) == size


def test_without_folds_or_classes_to_spare_the_anchor_is_kept(anchor: GaussianAnchor) -> None:
    for classes, folds in ((20, 0), (4, 6)):
        bank = bank_of(normal(classes, D, seed=0))
        (fold,) = hold_out(anchor, bank, folds=folds)
        assert fold.anchor is anchor and len(fold.classes) == classes
        assert torch.equal(fold.frame.basis, anchor.basis)


def test_likeness_is_zero_where_tasks_look_as_they_did_at_calibration() -> None:
    """Easier and harder tasks are both further away, the more so the more they differ."""
    means = 1 + 0.8 * normal(80, D, seed=0)
    train, valid = bank_of(means[:40]), bank_of(means[40:], seed=1)
    anchor = fit_anchor("gaussian", train, valid, way=5, shots=(1, 5), seed=0)
    owner = torch.arange(40).repeat_interleave(ITEMS)
    folds = [Fold(anchor.frame(D), anchor, torch.arange(40)) for _ in range(4)]

    def distance(stretch: float) -> float:
        """Of tasks whose classes are `stretch` times as wide."""
        centre = means[40:][owner]
        spread = replace(valid, features=centre + stretch * (valid.features - centre))
        return likeness(folds, spread, way=5, shots=(1, 5), seed=0)

    assert distance(1.0) < 0.15
    assert distance(1.0) < distance(1.4) < distance(2.0)
    assert distance(1.0) < distance(0.75) < distance(0.5)
    assert min(distance(2.0), distance(0.5)) > 0.4


def test_likeness_does_not_depend_on_where_far_tasks_lie() -> None:
    """Support and query are seen from the task's own mean."""
    means = 1 + 0.8 * normal(80, D, seed=0)
    train, valid = bank_of(means[:40]), bank_of(means[40:], seed=1)
    anchor = fit_anchor("gaussian", train, valid, way=5, shots=(1, 5), seed=0)
    folds = [Fold(anchor.frame(D), anchor, torch.arange(40)) for _ in range(4)]

    def distance(away: float) -> float:
        moved = replace(valid, features=valid.features + away)
        return likeness(folds, moved, way=5, shots=(1, 5), seed=0)

    assert distance(200.0) == pytest.approx(distance(100.0), abs=0.03)
    assert distance(100.0) < distance(0.0) + 0.2


def test_likeness_is_fixed_by_its_seed(train: FeatureBank, anchor: GaussianAnchor) -> None:
    folds = hold_out(anchor, train)
    values = [likeness(folds, train, way=5, shots=(1,), seed=3) for _ in "ab"]
    assert values[0] == values[1] >= 0


def test_the_fold_of_all_classes_keeps_the_anchor(anchor: GaussianAnchor, train: FeatureBank):
    everything = crossfit_hold_out(anchor, train, torch.arange(len(train.classes)))
    some = crossfit_hold_out(anchor, train, torch.arange(5))
    assert everything.anchor is anchor
    assert not torch.equal(state(some.anchor), state(anchor))


def test_refinement_lowers_the_loss_of_its_episodes_and_is_repeated_in_every_fold(
    anchor: GaussianAnchor, train: FeatureBank
):
    refined = GaussianAnchor(D).fit(train, ridge=0.125, spread=0.5).refine(train, 30)
    twice = GaussianAnchor(D).fit(train, ridge=0.125, spread=0.5).refine(train, 30)
    assert torch.equal(state(refined), state(twice)) and int(refined.refined) == 30
    assert not torch.equal(refined.basis, anchor.basis)
    drawn = train.episodes(way=5, shot=1, query=8, episodes=200, seed=9)
    support, query = train.features[drawn.support], train.features[drawn.query].flatten(1, 2)
    label = torch.arange(5).repeat_interleave(8).expand(200, -1)

    def loss(rule: Anchor) -> float:
        theta = rule(support, torch.ones(support.shape[:3]), head_space(D, 5))
        return float(F.cross_entropy(head_logits(theta, query).mT, label))

    assert loss(refined) < loss(anchor)
    assert int(refined.refit(train).refined) == 30  # type: ignore[arg-type]
