"""Peers for unseen domains: what they learn from, and what they must not depend on."""

from __future__ import annotations

import pytest
import torch

from ltdi.baselines import Budget, SimpleShot
from ltdi.baselines.domains import DomainBank, DomainMethod, FewShot, Sources, aligned
from ltdi.baselines.erm import Erm, ErmFineTune
from ltdi.baselines.w_diff import RowBank, WDiff, leave_out
from ltdi.crossdomain import Domain
from ltdi.errors import InputError
from ltdi.evaluate import accuracy
from tests.domains import make_domains

DOMAINS = make_domains()
TARGET = DOMAINS[3]
BUDGET = Budget(3, 4, 1, 6, 12, 0)
TASKS = TARGET.episodes(4, 1, 8, 40, 0)
SUPPORT, QUERY = TARGET.bank.features[TASKS.support], TARGET.bank.features[TASKS.query]


@pytest.fixture(scope="module")
def fitted() -> dict[str, DomainMethod]:
    sources = Sources(tuple(DOMAINS[:3]), 1)
    methods: list[DomainMethod] = [
        Erm(),
        Erm(align=True),
        ErmFineTune(),
        WDiff(),
        FewShot(SimpleShot()),
        FewShot(SimpleShot(), align=True),
    ]
    for method in methods:
        method.fit(sources, BUDGET)
    return {method.name: method for method in methods}


def logits(method: DomainMethod, by: float = 0.0, order=None) -> torch.Tensor:
    names = TASKS.classes if order is None else TASKS.classes[:, order]
    support = SUPPORT if order is None else SUPPORT[:, order]
    return method.predict(support + by, QUERY + by, names, TARGET.pool + by)


def test_they_have_names_and_say_what_they_are(fitted: dict[str, DomainMethod]):
    assert list(fitted) == [
        "erm",
        "erm-aligned",
        "erm-finetune",
        "w-diff",
        "simpleshot",
        "simpleshot-aligned",
    ]
    assert all(m.kind == "peer" and m.note for m in fitted.values())


def test_they_beat_guessing_and_those_that_know_classes_use_them(fitted: dict[str, DomainMethod]):
    found = {name: float(accuracy(logits(m)).mean()) for name, m in fitted.items()}
    assert min(found.values()) > 0.3
    # The domain's shift is large here: the head of other domains needs to be aligned.
    assert found["erm-aligned"] > found["erm"] + 0.05
    assert found["erm-finetune"] > found["simpleshot-aligned"]


@pytest.mark.parametrize("name", ["erm-aligned", "simpleshot-aligned"])
def test_an_aligned_method_does_not_see_a_shift(name: str, fitted: dict[str, DomainMethod]):
    torch.testing.assert_close(
        logits(fitted[name], 2.0), logits(fitted[name]), atol=1e-3, rtol=1e-3
    )


def test_permuting_the_classes_permutes_the_logits(fitted: dict[str, DomainMethod]):
    order = torch.tensor([2, 0, 3, 1])
    for name, method in fitted.items():
        moved = logits(method, order=order)
        torch.testing.assert_close(
            moved, logits(method)[..., order], atol=1e-3, rtol=1e-3, msg=lambda m, n=name: n + m
        )


def test_an_episode_stays_in_one_domain():
    bank = DomainBank.of(DOMAINS[:3])
    for seed in range(4):
        drawn = bank.episodes(way=5, shot=2, query=3, episodes=7, seed=seed)
        domain = drawn.classes // 6
        assert len(drawn) == 7 and (domain == domain[:, :1]).all()
        assert {int(d) for d in domain[:, 0]} == {0, 1, 2}
    alone = {
        int(bank.episodes(way=5, shot=1, query=1, episodes=1, seed=s).classes[0, 0] // 6)
        for s in range(3)
    }
    assert alone == {0, 1, 2}


def test_the_reference_of_a_training_task_does_not_know_its_domain():
    sources = Sources(tuple(DOMAINS[:3]), 1)
    heads, _ = leave_out(sources, False, BUDGET)
    bank = RowBank.with_rows(list(sources.domains), heads)
    drawn = bank.episodes(way=4, shot=1, query=2, episodes=6, seed=0)
    rows = bank.features[drawn.support[..., -1]]
    for e, classes in enumerate(drawn.classes):
        torch.testing.assert_close(rows[e], heads[int(classes[0]) // 6].weight[classes % 6])


def test_aligning_moves_the_pool_to_the_origin():
    moved: Domain = aligned(TARGET)
    torch.testing.assert_close(moved.pool.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    gap = TARGET.bank.features - moved.bank.features
    torch.testing.assert_close(gap, TARGET.pool.mean(0).expand_as(gap), atol=1e-5, rtol=1e-5)


def test_none_predicts_before_it_is_fitted():
    for method in (Erm(), ErmFineTune(), WDiff()):
        with pytest.raises(InputError, match="before it is fitted"):
            logits(method)
