from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi.adapters.host import LanguageHost
from ltdi.adapters.runs import Runs, branch_point, plan, solve
from ltdi.adapters.source import Source, prepare_source
from ltdi.adapters.support import support_rows
from ltdi.data.text import TextSet, rules
from ltdi.errors import InputError

from .conftest import RECIPE


def test_parts_share_no_row_and_the_unseen_topic_is_in_none(sources: list[Source]) -> None:
    for s in sources:
        parts = torch.cat([s.fit, s.valid, s.unseen])
        assert len(parts.unique()) == len(parts) == len(s.train)
        assert len(s.unseen) and len(s.topics[s.unseen].unique()) == 1
        assert not torch.isin(s.topics[s.fit], s.topics[s.unseen]).any()
        assert s.train.regression or len(s.train.targets[s.unseen].unique()) == 2


def test_the_size_of_the_dev_part_moves_no_training_row(host: LanguageHost) -> None:
    parts = rules.load("tone", rows=160)
    small, large = (prepare_source(host.base, "tone", parts, dev=d) for d in (20, 1000))
    assert len(small.dev) == 20 and len(large.dev) == 80
    assert torch.equal(small.fit, large.fit) and torch.equal(small.valid, large.valid)


def test_a_single_file_gives_its_own_dev_part(host: LanguageHost) -> None:
    only = rules.load("tone", rows=160)["train"]
    s = prepare_source(host.base, "tone", {"all": only})
    assert len(s.dev) == 20 and not set(s.dev.texts) - set(only.texts)


def test_a_part_without_labels_is_refused(host: LanguageHost) -> None:
    bare = replace(rules.load("tone")["train"], labels=None)
    with pytest.raises(InputError, match="'mine' has no labels"):
        prepare_source(host.base, "mine", {"train": bare})
    with pytest.raises(InputError, match="'mine' has no part train; its parts are dev"):
        prepare_source(host.base, "mine", {"dev": bare})


def test_a_plan_grows_without_changing(host: LanguageHost, sources: list[Source]) -> None:
    adapter, s = host.adapter(2), sources[0]
    few = plan(adapter, s, Runs(trunks=2, branches=3))
    many = plan(adapter, s, Runs(trunks=2, branches=7))
    for a, b in zip(few, many, strict=False):
        assert (a.name, a.trunk, a.kind, a.seed) == (b.name, b.trunk, b.kind, b.seed)
        assert torch.equal(a.rows, b.rows)
    assert {r.kind for r in many} == {"trunk", "rows", "length", "topic"}
    assert all(torch.isin(r.rows, s.fit).all() for r in many)


def test_a_task_whose_lengths_tell_its_classes_has_runs_too(host: LanguageHost) -> None:
    """No slice by length has every class: such branches draw from all rows."""
    texts = tuple((("one", "and two", "and then three")[i % 3], None) for i in range(48))
    only = TextSet("told", texts, torch.arange(48) % 3, ("a", "b", "c"), ("accuracy",))
    s = prepare_source(host.base, "told", {"all": only})
    runs = plan(host.adapter(3), s, Runs(trunks=1, branches=6))
    assert len(runs) == 7 and all(len(s.train.targets[r.rows].unique()) == 3 for r in runs)


def test_a_branch_shares_the_beginning_of_its_trunk(
    host: LanguageHost, sources: list[Source]
) -> None:
    adapter, s, p = host.adapter(2), sources[0], replace(RECIPE.prepare, segments=4)
    runs = Runs(trunks=1, branches=2, shared=0.5)
    trunk, one, two = plan(adapter, s, runs)
    theta = solve(adapter, s, trunk, p, runs).theta
    a, b = (solve(adapter, s, r, p, runs, theta).theta for r in (one, two))
    assert torch.equal(a[:2], theta[:2]) and torch.equal(b[:2], theta[:2])
    assert not torch.equal(a[2], theta[2]) and not torch.equal(a[3], b[3])


def test_a_branch_leaves_its_trunk_somewhere_in_the_middle() -> None:
    assert [branch_point(Runs(shared=x), 5) for x in (0.0, 0.5, 0.8, 1.0)] == [1, 2, 4, 4]


def test_a_support_has_every_class_alike(sources: list[Source]) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = support_rows(sources[0], sources[0].fit, 10, rng)
    assert sources[0].train.targets[rows].bincount().tolist() == [5, 5]
    assert len(support_rows(sources[1], sources[1].fit, 7, rng)) == 7
    ones = sources[0].fit[sources[0].train.targets[sources[0].fit] == 1]
    with pytest.raises(InputError, match="no row of tone has the class '0'"):
        support_rows(sources[0], ones, 10, rng)


@pytest.mark.parametrize("task", rules.TASKS)
def test_tasks_by_rule_are_balanced_and_the_same_every_time(task: str) -> None:
    parts = rules.load(task, rows=40)
    again = rules.load(task, rows=40)
    for name, size in (("train", 40), ("dev", 20)):
        texts: TextSet = parts[name]
        assert len(texts) == size and texts.texts == again[name].texts
        assert texts.regression or texts.targets.bincount().tolist() == [size // 2] * 2


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(InputError, match="tone"):
        rules.load("tones")
