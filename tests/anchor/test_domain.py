"""`ltdi.anchor.domain`: what is known of classes elsewhere, moved by a support and by a pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltdi.anchor.domain import DomainAnchor, level_of, responsibilities
from ltdi.crossdomain import head_of, make_anchor, view_logits
from ltdi.errors import InputError
from ltdi.evaluate import accuracy
from ltdi.weights import head_logits, head_space
from tests.domains import CLASSES, make_domains

DOMAINS = make_domains()
TARGET = DOMAINS[-1]
TASKS = TARGET.episodes(4, 1, 8, 40, 0)
SUPPORT, QUERY = TARGET.bank.features[TASKS.support], TARGET.bank.features[TASKS.query]


@pytest.fixture(scope="module")
def anchor() -> DomainAnchor:
    return make_anchor(DOMAINS[:3], 0.1).changed(scale=0.5)


def logits(anchor: DomainAnchor, *, pool=TARGET.pool, support=SUPPORT, query=QUERY, names=None):
    names = TASKS.classes if names is None else names
    return view_logits(anchor.at(pool, names), support, query)


def test_responsibilities_are_those_of_the_nearest_mean():
    means = torch.tensor([[[0.0, 0.0], [10.0, 0.0]]])
    pool = torch.tensor([[[0.1, 0.3], [9.0, 1.0]]])
    share = responsibilities(pool, means, torch.tensor(1.0), torch.zeros(1, 2, 1))
    torch.testing.assert_close(share[0], torch.eye(2), atol=1e-6, rtol=0)
    never = responsibilities(pool, means, torch.tensor(1.0), torch.tensor([[[0.0], [-1e4]]]))
    torch.testing.assert_close(never[0, 0], torch.ones(2))


def test_within_a_domain_and_class_the_spread_is_the_identity(anchor: DomainAnchor):
    rest = []
    for d in DOMAINS[:3]:
        z = (d.full.features - d.full.features.mean(0)) @ anchor.basis
        for start, end in zip(d.full.offsets, d.full.offsets[1:], strict=False):
            rest.append(z[start:end] - z[start:end].mean(0))
    spread = torch.cat(rest).T @ torch.cat(rest) / (3 * 6 * 29)
    # The ridge of 0.1 makes it a little smaller.
    torch.testing.assert_close(spread, torch.eye(12) / 1.1, atol=0.08, rtol=0)


def test_other_domains_and_the_pool_each_help(anchor: DomainAnchor):
    """Support alone < with the classes of other domains < with the pool as well."""
    alone = accuracy(logits(anchor.changed(drift=1e3))).mean()
    prior = accuracy(logits(anchor)).mean()
    pooled = accuracy(logits(anchor.changed(trust=1.0))).mean()
    assert alone + 0.02 < prior < pooled


def test_the_source_heads_logits_are_added(anchor: DomainAnchor):
    head = head_of(DOMAINS[:3])
    blended = make_anchor(DOMAINS[:3], 0.1, head).changed(scale=0.5, blend=2.0)
    x = QUERY - TARGET.pool.mean(0)
    of_task = (head[:, :-1][TASKS.classes], head[:, -1][TASKS.classes])
    added = torch.einsum("ewqd,ecd->ewqc", x, of_task[0]) + of_task[1][:, None, None]
    expected = logits(anchor) + 0.5 * 2.0 * added
    torch.testing.assert_close(logits(blended), expected, atol=1e-2, rtol=1e-3)


def test_the_source_head_is_a_minimum():
    """Any step away from it raises the regularised loss."""
    head = head_of(DOMAINS[:3])

    def loss(rows: torch.Tensor) -> float:
        unit = torch.cat([d.full.features - d.pool.mean(0) for d in DOMAINS[:3]])
        size = float(unit.square().sum(-1).mean().sqrt())
        total = 0.0
        for d in DOMAINS[:3]:
            x = d.full.features - d.pool.mean(0)
            y = torch.arange(6).repeat_interleave(d.full.offsets.diff())
            total += float(F.cross_entropy(x @ rows[:, :-1].T + rows[:, -1], y)) / 3
        return total + 1e-5 * float((rows[:, :-1] * size).square().sum())

    rng = torch.Generator().manual_seed(0)
    best = loss(head)
    for _ in range(5):
        step = torch.randn(head.shape, generator=rng) * head.abs().mean() * 0.3
        assert loss(head + step) > best


def test_a_shift_of_the_whole_domain_changes_nothing(anchor: DomainAnchor):
    anchor, by = anchor.changed(trust=0.5), torch.linspace(-4, 4, 12)
    moved = logits(anchor, pool=TARGET.pool + by, support=SUPPORT + by, query=QUERY + by)
    torch.testing.assert_close(moved, logits(anchor), atol=1e-3, rtol=1e-3)


def test_permuting_classes_permutes_rows(anchor: DomainAnchor):
    order = torch.tensor([2, 0, 3, 1])
    anchor = anchor.changed(trust=0.5)
    for names in (TASKS.classes, None):
        seen = anchor.at(TARGET.pool, names)
        frame, space = seen.frame(12), head_space(12, 4)
        z, mask = frame.enter(SUPPORT), torch.ones(SUPPORT.shape[:3])
        rows = seen.local(z, mask, space).unflatten(1, (4, 13))
        other = anchor.at(TARGET.pool, None if names is None else names[:, order])
        moved = other.local(z[:, order], mask, space).unflatten(1, (4, 13))
        torch.testing.assert_close(moved, rows[:, order], atol=1e-4, rtol=1e-4)


def test_without_names_the_classes_are_found_out(anchor: DomainAnchor):
    """With five shots the identity is plain; each known class is at most one of the task's."""
    tasks = TARGET.episodes(4, 5, 3, 30, 1)
    support = TARGET.bank.features[tasks.support]
    seen = anchor.at(TARGET.pool)
    z = seen.frame(12).enter(support)
    _, scene = seen.look(z, torch.ones(z.shape[:3]), head_space(12, 4))
    distance = torch.cdist(scene.prior, anchor.prior.expand(30, -1, -1))
    assert (distance.argmin(-1) == tasks.classes).float().mean() > 0.9
    assert float(scene.absent.exp().sum(1).mean()) == pytest.approx(2, abs=0.1)


def test_masked_samples_are_not_seen(anchor: DomainAnchor):
    padded = torch.cat([SUPPORT, torch.full_like(SUPPORT, torch.nan)], 2)
    seen = anchor.at(TARGET.pool, TASKS.classes)
    frame, space = seen.frame(12), head_space(12, 4)
    mask = torch.cat([torch.ones(40, 4, 1), torch.zeros(40, 4, 1)], 2)
    given = seen.local(frame.enter(padded), mask, space)
    plain = seen.local(frame.enter(SUPPORT), mask[..., :1], space)
    torch.testing.assert_close(given, plain)
    assert head_logits(given, frame.enter(QUERY).flatten(1, 2)).isfinite().all()


def test_levels_of_shots_have_their_own_trust(anchor: DomainAnchor):
    assert [level_of(s) for s in (1, 2, 5, 20)] == [0, 0, 1, 1]
    changed = anchor.changed(1, trust=1.0)
    torch.testing.assert_close(logits(changed), logits(anchor))
    torch.testing.assert_close(
        logits(anchor.changed(trust=1.0)), logits(changed.changed(0, trust=1))
    )


def test_a_name_that_is_not_known_is_told_the_nearest(anchor: DomainAnchor):
    assert anchor.numbers(["fox", "ant"]).tolist() == [5, 0]
    with pytest.raises(InputError, match="did you mean 'cat'") as caught:
        anchor.numbers(["cta"])
    assert caught.value.where == "support.classes"
    with pytest.raises(InputError, match="without a single unlabelled image"):
        anchor.at(torch.zeros(0, 12))
    assert anchor.classes == CLASSES
