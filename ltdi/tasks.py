"""Few-shot tasks as index sets: which items of a bank are support and which are query.

An episode never copies data. The same episode list therefore serves methods on images and methods
on features, and a list is fixed by its seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import InputError


@dataclass(frozen=True)
class FeatureBank:
    """Backbone features of a set of classes, sorted by class.

    Attributes:
        features: [n, D].
        offsets: [classes + 1]; class c owns features[offsets[c]:offsets[c + 1]].
        classes: Names, one per class.
    """

    features: Tensor
    offsets: Tensor
    classes: tuple[str, ...]

    @property
    def width(self) -> int:
        """D, size of a feature."""
        return self.features.shape[1]

    @property
    def labels(self) -> Tensor:
        """[n] number of the class that each feature is of."""
        return torch.arange(len(self.classes)).repeat_interleave(self.offsets.diff())

    def means(self, features: Tensor | None = None) -> Tensor:
        """[classes, D] class means, of `features` [n, D] in the place of the bank's own."""
        x = self.features if features is None else features
        sums = x.new_zeros(len(self.classes), x.shape[1]).index_add(0, self.labels, x)
        return sums / self.offsets.diff()[:, None]

    def queries_left(self, shot: int, wanted: int, classes: Tensor | None = None) -> int:
        """Queries a class that the smallest class leaves beside the support, at most `wanted`.

        Raises:
            InputError: If it leaves none.
        """
        counts = self.offsets.diff()
        fewest = int((counts if classes is None else counts[classes]).min())
        if fewest <= shot:
            raise InputError(
                f"the smallest class has {fewest} labelled images: with {shot} shots none is left "
                "for a query",
                where="shots",
                fix="choose fewer shots, or give that class more images",
            )
        return min(wanted, fewest - shot)

    def groups(self) -> list[Tensor]:
        """The features of each class."""
        return list(self.features.split(self.offsets.diff().tolist()))

    @classmethod
    def by_class(cls, groups: Sequence[Tensor], classes: Sequence[str]) -> FeatureBank:
        """The inverse of `groups`."""
        offsets = torch.tensor([0, *map(len, groups)]).cumsum(0)
        return FeatureBank(torch.cat(list(groups)), offsets, tuple(classes))

    def select(self, classes: Sequence[int] | Tensor) -> FeatureBank:
        """Some classes, in the order given."""
        groups, chosen = self.groups(), [int(c) for c in classes]
        return FeatureBank.by_class([groups[c] for c in chosen], [self.classes[c] for c in chosen])

    def episodes(self, *, way: int, shot: int, query: int, episodes: int, seed: int) -> Episodes:
        """A fixed list of episodes; see `sample_episodes`."""
        return sample_episodes(
            self.offsets, way=way, shot=shot, query=query, episodes=episodes, seed=seed
        )


@dataclass(frozen=True)
class Episodes:
    """E episodes of one way and shot.

    Attributes:
        classes: [E, way] class number behind each label.
        support: [E, way, shot] item indices.
        query: [E, way, query] item indices, disjoint from the support.
    """

    classes: Tensor
    support: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def way(self) -> int:
        """Classes per episode."""
        return self.classes.shape[1]

    @property
    def shot(self) -> int:
        """Support items per class."""
        return self.support.shape[2]

    def __getitem__(self, which: slice) -> Episodes:
        return Episodes(self.classes[which], self.support[which], self.query[which])

    def chunks(self, size: int) -> Iterator[Episodes]:
        """The episodes in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclass(frozen=True)
class Support:
    """The examples of one task, as a user has them.

    Attributes:
        images: [n, channels, height, width].
        labels: [n] integers; every class 0..way-1 has at least one.
        unlabelled: [m, channels, height, width] further images of where the task comes from, of
            any class; generators that read a domain take them.
        classes: Names of the classes 0..way-1; generators that know class names take them.
    """

    images: Tensor
    labels: Tensor
    unlabelled: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check what a user may get wrong; pixels are checked by the backbone's transform.

        Raises:
            InputError: For another shape or dtype, labels out of range, or a missing class.
        """
        images, labels = self.images, self.labels
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            raise InputError(
                f"a support needs two tensors, got {type(images).__name__} and "
                f"{type(labels).__name__}",
                where="support",
                fix="pass (images [n, channels, height, width], labels [n])",
            )
        for name, tensor in (("images", images), ("labels", labels)):
            check_dense(tensor, f"support.{name}")
        if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
            raise InputError(
                f"support images have shape {list(images.shape)} and labels "
                f"{list(labels.shape)}; expected [n, channels, height, width] and [n], n >= 2",
                where="support",
                fix="give one label per image",
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(
                f"labels must be integers, got {labels.dtype}",
                where="support.labels",
                fix="convert with .long()",
            )
        labels = labels.long()
        object.__setattr__(self, "labels", labels)
        low, high = int(labels.min()), int(labels.max())
        # A task cannot have more classes than samples; bincount would reserve them all.
        if low < 0 or high >= max(len(labels), 2):
            raise InputError(
                f"labels lie in {low}..{high}; with {len(labels)} samples they must lie in "
                f"0..way-1, way <= {len(labels)}",
                where="support.labels",
                fix="number the classes of the task from 0",
            )
        counts = torch.bincount(labels, minlength=2)
        if not bool(counts.all()):
            absent = int((counts == 0).nonzero()[0])
            raise InputError(
                f"class {absent} of 0..{len(counts) - 1} has no support sample",
                where="support.labels",
                fix="add a sample of it, or number the classes without a gap",
            )
        _check_unlabelled(self.unlabelled, "support.unlabelled", "leave them out")
        if self.classes is not None:
            object.__setattr__(self, "classes", check_names(self.classes, len(counts)))

    @property
    def way(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    @classmethod
    def of(cls, value: Support | tuple[Any, ...]) -> Support:
        """Take a support or its fields, (images, labels) at least.

        Raises:
            InputError: For anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, tuple) and 2 <= len(value) <= 4:
            return cls(*value)
        raise InputError(
            f"a support must be Support or (images, labels), got {type(value).__name__}",
            where="support",
            fix="pass ltdi.Support(images, labels), or a list of them for a batch of tasks",
        )


@dataclass(frozen=True)
class Unseen:
    """A task of which no image has a label: names, and maybe images.

    Attributes:
        classes: Names of the classes, in the order of the labels; synonyms after commas.
        unlabelled: [n, channels, height, width] images of these classes, in any order.
    """

    classes: tuple[str, ...]
    unlabelled: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what a user may get wrong.

        Raises:
            InputError: For fewer than two names, a name that is empty or given twice, or no image
                in `unlabelled`.
        """
        given: Any = self.classes
        names = given if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "classes", check_names(names, len(names), where="classes"))
        if len(names) < 2:
            raise InputError(f"a task needs at least 2 classes, got {len(names)}", where="classes")
        instead = "leave them out to go by the names alone"
        _check_unlabelled(self.unlabelled, "unlabelled", instead)

    @property
    def way(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @classmethod
    def of(cls, value: Any) -> Unseen:
        """Take a task in any form that a user may have it: `Unseen`, or a sequence of names.

        Raises:
            InputError: For anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, tuple) and all(isinstance(name, str) for name in value):
            return cls(value)
        raise InputError(
            f"a task without labels must be Unseen or a tuple of names, got {type(value).__name__}",
            where="generate",
            fix="pass ltdi.Unseen(classes=(...), unlabelled=images)",
        )


def check_dense(tensor: Tensor, where: str) -> None:
    """Refuse a tensor that is sparse, or not in the memory of the CPU.

    Raises:
        InputError: With the remedy.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise InputError(
            f"a {tensor.layout} tensor on {tensor.device} is not read",
            where=where,
            fix="convert with .to_dense() and .cpu()",
        )


def check_names(
    names: Sequence[str], way: int, *, where: str = "support.classes"
) -> tuple[str, ...]:
    """The names of a task's classes, one for each and no two alike.

    Raises:
        InputError: For another number of names, a name that is no text, or one that comes twice.
    """
    if isinstance(names, str) or not all(isinstance(n, str) and n.strip() for n in names):
        raise InputError(
            f"class names must be non-empty text, got {names!r}", where=where, fix="give a tuple"
        )
    if len(names) != way:
        raise InputError(
            f"{len(names)} class names are given for {way} classes",
            where=where,
            fix="give one name per class, in the order of the labels",
        )
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise InputError(
            f"the class name {twice[0]!r} is given more than once",
            where=where,
            fix="give every class a name of its own",
        )
    return tuple(names)


def _check_unlabelled(images: Any, where: str, instead: str) -> None:
    """Refuse what is neither images nor None."""
    if images is None:
        return
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        shown = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"unlabelled images must be a tensor [m, channels, height, width], got {shown}",
            where=where,
            fix=f"give at least one image, or {instead}",
        )
    check_dense(images, where)


def sample_episodes(
    offsets: Tensor,
    *,
    way: int,
    shot: int,
    query: int,
    episodes: int,
    seed: int,
    among: Tensor | None = None,
) -> Episodes:
    """Draw a fixed list of episodes from items sorted by class.

    Labels are a random permutation of the drawn classes.

    Args:
        offsets: [classes + 1]; class c owns items offsets[c] .. offsets[c + 1] - 1.
        way: Classes per episode.
        shot: Support items per class.
        query: Query items per class.
        episodes: E.
        seed: Fixes the list.
        among: The classes to draw from; all by default.

    Raises:
        InputError: If there are too few classes, or a class has too few items.
    """
    rng = torch.Generator().manual_seed(seed)
    start, counts = offsets[:-1], offsets.diff()
    among = torch.arange(len(counts)) if among is None else among
    start, counts = start[among], counts[among]
    _check(counts, way, shot, query)
    if episodes < 1:
        raise InputError(f"episodes must be at least 1, got {episodes}", where="episodes")
    parts = []
    # Chunks bound the memory of the [episodes, classes] ranking.
    for size in _sizes(episodes, max(1, 4_000_000 // len(counts))):
        classes = torch.rand(size, len(counts), generator=rng).argsort(1)[:, :way]
        keys = torch.rand(size, way, int(counts.max()), generator=rng)
        absent = torch.arange(keys.shape[-1]) >= counts[classes][..., None]
        items = keys.masked_fill(absent, 2.0).argsort(-1)[..., : shot + query]
        items = items + start[classes][..., None]
        parts.append((among[classes], items[..., :shot], items[..., shot:]))
    classes, support, queries = (torch.cat(p) for p in zip(*parts, strict=True))
    return Episodes(classes, support, queries)


def _sizes(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _check(counts: Tensor, way: int, shot: int, query: int) -> None:
    for name, value, least in (("way", way, 2), ("shot", shot, 1), ("query", query, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}", where=name)
    if way > len(counts):
        raise InputError(
            f"a {way}-way episode needs {way} classes, the data have {len(counts)}",
            where="way",
            fix=f"choose way <= {len(counts)} or give more class folders",
        )
    fewest = int(counts.min())
    if fewest < shot + query:
        raise InputError(
            f"an episode with {shot} support and {query} query items needs {shot + query} items "
            f"per class; the smallest class has {fewest}",
            where="shot and query",
            fix=f"choose shot + query <= {fewest}, or drop the small classes",
        )
