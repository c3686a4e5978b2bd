"""Many tasks from few sets: rows of a set, never copies of texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltdi.data.text.textset import TextSet
from ltdi.errors import InputError, unknown

KINDS = ("rows", "length", "topic")


def subtasks(
    texts: TextSet,
    rng: torch.Generator,
    n: int,
    size: int,
    *,
    kind: str = "rows",
    slices: int = 4,
    embeddings: Tensor | None = None,
) -> list[Tensor]:
    """Draw `n` tasks: int64 [size] distinct rows each, with every class among them.

    Args:
        texts: Labelled texts.
        rng: Source of the draws.
        n: Tasks.
        size: Rows per task.
        kind: "rows" draws from all rows; "length" from one of `slices` parts of equal size,
            ordered by the number of words; "topic" from one of `slices` clusters of
            `embeddings`.
        slices: Parts or clusters.
        embeddings: [rows, D], for "topic".

    Raises:
        InputError: For an unknown kind, or too few rows.
    """
    if kind not in KINDS:
        raise unknown("kind of sub-task", kind, KINDS, where="kind")
    if n < 1 or slices < 1 or size < texts.outputs:
        raise InputError(
            f"{n} tasks of {size} rows in {slices} slices are not possible",
            where="n, size and slices",
            fix=f"choose n and slices >= 1, and size >= {texts.outputs}, the number of classes",
        )
    parts = _usable(_slices(texts, kind, slices, embeddings, rng), texts, size)
    return [
        _draw(parts[int(torch.randint(len(parts), (), generator=rng))], texts, size, rng)
        for _ in range(n)
    ]


def kmeans(points: Tensor, clusters: int, rng: torch.Generator, *, iterations: int = 50) -> Tensor:
    """Lloyd's algorithm from k-means++ centres (Arthur and Vassilvitskii, 2007).

    Args:
        points: [n, D].
        clusters: k <= n.
        rng: Source of the first centres.
        iterations: At most; it ends when nothing moves.

    Returns:
        int64 [n] cluster of each point, 0..k-1; the sum of squared distances to the means of the
        clusters never rises from one iteration to the next.

    Raises:
        InputError: For fewer points than clusters.
    """
    if not 1 <= clusters <= len(points):
        raise InputError(
            f"{len(points)} points cannot make {clusters} clusters",
            where="slices",
            fix="choose fewer clusters, or give more rows",
        )
    centres = points[torch.randint(len(points), (1,), generator=rng)]
    while len(centres) < clusters:
        far = torch.cdist(points, centres).square().amin(1)
        # Where all points are centres already, any will do.
        weight = far if bool(far.any()) else torch.ones_like(far)
        centres = torch.cat([centres, points[torch.multinomial(weight, 1, generator=rng)]])
    nearest = torch.cdist(points, centres).argmin(1)
    for _ in range(iterations):
        count = nearest.bincount(minlength=clusters).unsqueeze(1)
        total = torch.zeros_like(centres).index_add(0, nearest, points)
        centres = torch.where(count > 0, total / count.clamp(min=1), centres)
        moved = torch.cdist(points, centres).argmin(1)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return nearest


def _slices(
    texts: TextSet, kind: str, slices: int, embeddings: Tensor | None, rng: torch.Generator
) -> list[Tensor]:
    everything = torch.arange(len(texts))
    if kind == "length":
        words = [sum(len(t.split()) for t in pair if t is not None) for pair in texts.texts]
        return list(torch.tensor(words).argsort(stable=True).tensor_split(slices))
    if kind == "topic":
        if embeddings is None or embeddings.shape[:1] != everything.shape:
            raise InputError(
                f"sub-tasks by topic need one embedding for each of {len(texts)} rows, got "
                f"{'none' if embeddings is None else len(embeddings)}",
                where="embeddings",
                fix="pass ltdi.lora.embed(base, texts)",
            )
        cluster = kmeans(embeddings, slices, rng)
        return [everything[cluster == c] for c in range(slices)]
    return [everything]


def _usable(parts: Sequence[Tensor], texts: TextSet, size: int) -> list[Tensor]:
    """Slices with enough rows, and with every class."""
    classes = len(texts.label_names)
    usable = [
        rows
        for rows in parts
        if len(rows) >= size and (not classes or len(texts.targets[rows].unique()) == classes)
    ]
    if not usable:
        raise InputError(
            f"no slice of {texts.name} has {size} rows and every class; the largest of "
            f"{len(parts)} has {max(map(len, parts))} rows",
            where="size and slices",
            fix="choose smaller tasks or fewer slices",
        )
    return usable


def _draw(rows: Tensor, texts: TextSet, size: int, rng: torch.Generator) -> Tensor:
    """Distinct rows in random order, one of each class for certain and the others at random."""
    order = rows[torch.randperm(len(rows), generator=rng)]
    targets = texts.targets[order]
    firsts = [int((targets == c).nonzero()[0]) for c in range(len(texts.label_names))]
    rest = torch.ones(len(order), dtype=torch.bool)
    rest[firsts] = False
    chosen = torch.cat([order[firsts], order[rest][: size - len(firsts)]])
    return chosen[torch.randperm(size, generator=rng)]
