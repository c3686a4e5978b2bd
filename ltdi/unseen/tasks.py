"""Tasks without labels as index sets into a bank whose classes have names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ltdi.data.concepts import concepts
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank


@dataclass(frozen=True)
class NamedBank:
    """Features of classes that have names.

    Attributes:
        bank: The features.
        names: One per class; synonyms after commas.
        text: [classes, W] the names' vectors.
        origin: [classes] which of several sets a class is of; all of one by default.
    """

    bank: FeatureBank
    names: tuple[str, ...]
    text: Tensor
    origin: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def __post_init__(self) -> None:
        """Check that names, vectors and classes go together.

        Raises:
            InputError: If they are not equally many.
        """
        if not len(self.origin):
            object.__setattr__(self, "origin", torch.zeros(len(self.names), dtype=torch.long))
        counts = (len(self.bank.classes), len(self.names), len(self.text))
        if len(set(counts)) > 1:
            raise InputError(
                f"{counts[0]} classes, {counts[1]} names, {counts[2]} vectors do not fit",
                where="NamedBank",
                fix="give one name and one vector per class",
            )

    @property
    def concepts(self) -> list[int]:
        """Classes of one number mean the same."""
        return concepts(self.names)

    def select(self, classes: Sequence[int]) -> NamedBank:
        """The given classes, in the given order."""
        rows = list(classes)
        names = tuple(self.names[c] for c in rows)
        return NamedBank(self.bank.select(rows), names, self.text[rows], self.origin[rows])

    @classmethod
    def joined(cls, parts: Sequence[NamedBank]) -> NamedBank:
        """One bank of all classes of several."""
        bank = FeatureBank.by_class(
            [group for p in parts for group in p.bank.groups()],
            [c for p in parts for c in p.bank.classes],
        )
        return cls(
            bank,
            tuple(n for p in parts for n in p.names),
            torch.cat([p.text for p in parts]),
            torch.cat([p.origin for p in parts]),
        )

    def centred(self) -> NamedBank:
        """The same with the means of all sets made equal.

        Whether a class is of one set or the other must not be what its name predicts.
        """
        rows = self.origin[self.bank.labels]
        x = self.bank.features
        present = self.origin.unique().tolist()
        means = torch.stack([x[rows == i].mean(0) for i in present])
        shift = torch.zeros(max(present) + 1, x.shape[1])
        shift[present] = means - means.mean(0)
        return replace(self, bank=replace(self.bank, features=x - shift[rows]))

    def split(self, share: float, seed: int) -> tuple[NamedBank, NamedBank]:
        """Two parts that share no concept; the second has `share` of the concepts."""
        numbers = self.concepts
        kinds = sorted(set(numbers))
        order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed)).tolist()
        second = {kinds[i] for i in order[: max(2, round(share * len(kinds)))]}
        parts = [[], []]  # type: list[list[int]]
        for index, number in enumerate(numbers):
            parts[number in second].append(index)
        return self.select(parts[0]), self.select(parts[1])


@dataclass(frozen=True)
class TaskBatch:
    """E tasks as methods see them; `query` is for scoring alone.

    Attributes:
        text: [E, way, W] the names' vectors.
        pool: [E, n, D] unlabelled images; n is 0 where names are all there is.
        mask: [E, n] 1 for real images.
        query: [E, way, Q, D] test images.
    """

    text: Tensor
    pool: Tensor
    mask: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.text)

    @property
    def way(self) -> int:
        """Classes per task."""
        return self.text.shape[1]

    def __getitem__(self, which: slice) -> TaskBatch:
        return TaskBatch(self.text[which], self.pool[which], self.mask[which], self.query[which])

    def named_only(self) -> TaskBatch:
        """The same tasks without their unlabelled images."""
        return TaskBatch(self.text, self.pool[:, :0], self.mask[:, :0], self.query)


@dataclass(frozen=True)
class UnseenTasks:
    """E tasks of one way.

    Attributes:
        classes: [E, way] class number behind each label.
        pool: [E, n] items, of the task's classes in any proportion.
        mask: [E, n] 1 for items that are in the pool.
        query: [E, way, Q] items, none of them in the pool.
    """

    classes: Tensor
    pool: Tensor
    mask: Tensor
    query: Tensor

    def view(self, source: NamedBank) -> TaskBatch:
        """The features and names behind the numbers."""
        x = source.bank.features
        return TaskBatch(source.text[self.classes], x[self.pool], self.mask, x[self.query])


def sample_tasks(
    source: NamedBank,
    *,
    way: int,
    pool: tuple[int, int],
    query: int,
    tasks: int,
    seed: int,
    among: Tensor | None = None,
) -> UnseenTasks:
    """Draw tasks; every class of a task has its own number of unlabelled images.

    The classes of a task are of one set, as those of a target are.

    Args:
        source: Bank and names.
        way: Classes per task.
        pool: Fewest and most unlabelled images per class.
        query: Test images per class.
        tasks: E.
        seed: Fixes the tasks.
        among: Class numbers to draw from; all by default.

    Raises:
        InputError: If there are too few classes or images.
    """
    rng = torch.Generator().manual_seed(seed)
    offsets = source.bank.offsets
    among = torch.arange(len(source.names)) if among is None else among
    start, counts = offsets[:-1][among], offsets.diff()[among]
    low, high = pool
    if not 2 <= way <= len(among):
        raise InputError(
            f"tasks of {way} classes cannot be drawn from {len(among)}",
            where="way",
            fix=f"choose a way in 2..{len(among)}",
        )
    if int(counts.min()) < max(low, 0) + query or low > high:
        raise InputError(
            f"{low}..{high} unlabelled and {query} test images per class are more than the "
            f"{int(counts.min())} of the smallest class",
            where="pool and query",
            fix="ask for fewer of both, or leave out classes of few images",
        )
    pick = _classes(source.origin[among], way, tasks, rng)
    keys = torch.rand(tasks, way, int(counts.max()), generator=rng)
    keys = keys.masked_fill(torch.arange(keys.shape[-1]) >= counts[pick][..., None], 2.0)
    items = keys.argsort(-1) + start[pick][..., None]
    # Every second task has classes of unequal size.
    uneven = torch.randint(low, high + 1, (tasks, way), generator=rng)
    sizes = torch.where(torch.arange(tasks)[:, None] % 2 == 0, uneven, (low + high) // 2)
    sizes = torch.minimum(sizes, counts[pick] - query)
    mask = (torch.arange(high) < sizes[..., None]).float()
    held = items[..., query : query + high]
    if held.shape[-1] < high:
        held = torch.cat([held, held[..., :1].expand(-1, -1, high - held.shape[-1])], -1)
    # Masked places may point past a class; they are never looked at.
    held = torch.where(mask > 0, held, start[pick][..., None])
    return UnseenTasks(among[pick], held.flatten(1), mask.flatten(1), items[..., :query])


def _classes(origin: Tensor, way: int, tasks: int, rng: torch.Generator) -> Tensor:
    """[tasks, way] places of classes of one set each, sets by how many classes they have.

    Where no set has enough classes, classes of all are mixed.
    """
    keys = torch.rand(tasks, len(origin), generator=rng)
    sizes = torch.bincount(origin).double()
    sizes = torch.where(sizes >= way, sizes, 0.0)
    if bool(sizes.any()):
        chosen = torch.multinomial(sizes, tasks, replacement=True, generator=rng)
        keys = keys + (origin != chosen[:, None]).float()
    return keys.argsort(1)[:, :way]
