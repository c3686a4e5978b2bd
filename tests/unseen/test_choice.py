"""`ltdi.unseen.choice`: what is generated, and every further step, has to pay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltdi.unseen import TaskBatch, choose_steps
from ltdi.unseen.choice import mean_of, scores
from ltdi.unseen.training import UnseenRecipe, options_of
from ltdi.weights import head_space, prototype_head

WIDTH = 8


def tasks(way: int, many: int) -> tuple[TaskBatch, Tensor]:
    """Tasks, and the true class means [E, way, D]."""
    rng = torch.Generator().manual_seed(way)
    means = torch.randn(many, way, WIDTH, generator=rng)
    query = means.unsqueeze(2) + 0.5 * torch.randn(many, way, 10, WIDTH, generator=rng)
    none = torch.zeros(many, 0)
    return TaskBatch(
        torch.zeros(many, way, 4), none[..., None].expand(-1, -1, WIDTH), none, query
    ), means


VALID, MEANS = zip(*(tasks(way, many) for way, many in ((3, 30), (5, 20))), strict=True)


def heads(batch: TaskBatch, *, steps: float, strength: float) -> Tensor:
    """The start is off the true means by a noise that `strength` takes away; steps do nothing."""
    means = next(m for b, m in zip(VALID, MEANS, strict=True) if b.way == batch.way)
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(1))
    return head_space(WIDTH, batch.way).flatten(prototype_head(means + (1 - strength) * noise, 1.0))


def options(*strengths: float) -> list[dict[str, float]]:
    return [{"steps": s, "strength": x} for s in (1, 2) for x in strengths]


def test_what_pays_is_taken_and_what_is_level_is_not():
    chosen, found = choose_steps(heads, VALID, options(0.0, 1.0))
    assert chosen == {"steps": 1, "strength": 1.0}
    assert found["steps 1, strength 0"][0] < found["steps 1, strength 1"][0] - 0.05
    # A thousandth of the way helps some tasks, and none of them surely.
    chosen, _ = choose_steps(heads, VALID, options(0.0, 0.001))
    assert chosen == {"steps": 1, "strength": 0.0}


def test_the_start_alone_is_the_cheapest_choice():
    first, *rest = options_of(UnseenRecipe())
    assert first == {"steps": 1, "strength": 0.0}
    assert all(option["strength"] > 0 for option in rest)


def test_every_way_counts_the_same():
    accuracy, _ = scores(lambda batch: heads(batch, steps=1, strength=1.0), VALID)
    assert [len(each) for each in accuracy] == [30, 20]
    mean, interval = mean_of([torch.tensor([0.0, 1.0] * 50), torch.ones(10)])
    assert mean == 0.75
    assert interval == pytest.approx(1.96 * (0.25 / 99) ** 0.5 / 2, rel=1e-4)
