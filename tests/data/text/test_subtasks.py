"""`ltdi.data.text.subtasks`: many tasks from few rows, each a possible one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from ltdi.data.text import KINDS, TextSet, kmeans, subtasks
from ltdi.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(n: int = 60, classes: int = 3) -> TextSet:
    """Row i has i + 1 words; the last class is rare."""
    labels = torch.arange(n) % (classes - 1)
    labels[:: n // 6] = classes - 1
    names = tuple(f"class {c}" for c in range(classes))
    words = tuple((" ".join(["w"] * (i + 1)), None) for i in range(n))
    return TextSet("words", words, labels, names, ("accuracy",))


SET = texts()
VALUES = TextSet("values", SET.texts, torch.rand(60), (), ("pearson",), (0.0, 1.0))
POINTS = torch.randn(60, 5, generator=generator())


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), size=st.integers(3, 12))
def test_a_task_has_distinct_rows_and_every_class(kind: str, seed: int, size: int) -> None:
    # Slices that are too small or lack a class are not drawn from.
    drawn = subtasks(SET, generator(seed), 3, size, kind=kind, slices=2, embeddings=POINTS)
    assert len(drawn) == 3
    for rows in drawn:
        assert len(set(rows.tolist())) == size
        assert SET.targets[rows].unique().tolist() == [0, 1, 2]


def test_rows_are_drawn_evenly() -> None:
    drawn = subtasks(VALUES, generator(), 300, 20, kind="rows")
    share = torch.cat(drawn).bincount(minlength=60) / 300
    assert share.mean() == pytest.approx(1 / 3)
    # Standard deviation of a share of 300 draws is 0.027.
    assert bool(((share - 1 / 3).abs() < 0.14).all())


def test_slices_by_length_are_ranges_of_lengths() -> None:
    drawn = subtasks(VALUES, generator(), 60, 15, kind="length", slices=4)
    # Row i has i + 1 words: slice s is all of the rows 15 s .. 15 s + 14.
    slices = {tuple(range(15 * s, 15 * s + 15)) for s in range(4)}
    assert {tuple(rows.sort().values.tolist()) for rows in drawn} == slices


def test_slices_by_topic_are_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = centres[torch.arange(60) % 3] + 0.5 * torch.randn(60, 2, generator=generator())
    drawn = subtasks(VALUES, generator(), 40, 12, kind="topic", slices=3, embeddings=points)
    assert {len((rows % 3).unique()) for rows in drawn} == {1}
    assert len({int(rows[0]) % 3 for rows in drawn}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_fixes_the_tasks(kind: str) -> None:
    def rows(seed: int) -> list[list[int]]:
        drawn = subtasks(SET, generator(seed), 5, 6, kind=kind, slices=2, embeddings=POINTS)
        return [task.tolist() for task in drawn]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "row"}, "did you mean 'rows'"),
        ({"size": 2}, "size >= 3, the number of classes"),
        ({"n": 0}, "0 tasks"),
        ({"size": 61}, "no slice of words has 61 rows"),
        ({"size": 40, "kind": "length"}, "no slice of words has 40 rows.* of 4 has 15 rows"),
        ({"kind": "topic"}, "one embedding for each of 60 rows, got none"),
        ({"kind": "topic", "embeddings": POINTS[:7]}, "got 7"),
        ({"kind": "topic", "embeddings": POINTS, "slices": 61}, "60 points cannot make 61"),
    ],
)
def test_impossible_tasks_are_refused(options: dict[str, object], message: str) -> None:
    given = {"n": 1, "size": 5, **options}
    with pytest.raises(InputError, match=message):
        subtasks(SET, generator(), **given)  # type: ignore[arg-type]


def inertia(points: torch.Tensor, cluster: torch.Tensor) -> float:
    return sum(
        float((points[cluster == c] - points[cluster == c].mean(0)).square().sum())
        for c in cluster.unique()
    )


@given(seed=st.integers(0, 2**31))
def test_kmeans_ends_where_no_point_is_nearer_to_another_mean(seed: int) -> None:
    points = torch.randn(40, 3, generator=generator(seed))
    cluster = kmeans(points, 4, generator(seed))
    means = torch.stack([points[cluster == c].mean(0) for c in range(4)])
    assert torch.equal(torch.cdist(points, means).argmin(1), cluster)


@given(seed=st.integers(0, 2**31))
def test_kmeans_never_gets_worse(seed: int) -> None:
    points = torch.randn(40, 3, generator=generator(seed))
    path = [inertia(points, kmeans(points, 4, generator(seed), iterations=i)) for i in range(6)]
    assert all(after <= before * 1.000001 for before, after in pairwise(path))


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    points = torch.randn(200, 4, generator=generator())
    theirs = KMeans(6, n_init=10, random_state=0).fit(points.numpy()).inertia_
    ours = min(inertia(points, kmeans(points, 6, generator(s))) for s in range(10))
    assert ours == pytest.approx(theirs, rel=0.02)


def test_equal_points_can_be_clustered() -> None:
    assert kmeans(torch.ones(5, 2), 3, generator()).shape == (5,)
