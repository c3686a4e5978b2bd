"""What tracks of image tasks share: parts of a data set, shapes of episodes, one thread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ltdi.backbone import (
    Backbone,
    ClassifierTraining,
    InputTransform,
    ProtoTraining,
    cached_backbone,
    train_backbone,
    train_classifier_backbone,
)
from ltdi.data import SOURCES, ImageSet
from ltdi.data import load as load_data
from ltdi.errors import InputError
from ltdi.progress import Progress

MOST = 1_000_000


def check_counts(**counts: int) -> None:
    """Refuse counts below one, and such as no memory holds.

    Raises:
        InputError: With the name of the first.
    """
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}", where=f"--{name}")
        if value > MOST:
            raise InputError(f"{name} must be at most {MOST:,}, got {value:,}", where=f"--{name}")


def hold_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split classes into those for the backbone and those for the generator.

    The rotations of one character (`name@90`) stay together.

    Args:
        images: Training classes.
        share: Of the classes, for the generator.
        seed: Of the split.

    Raises:
        InputError: If a side would have fewer than two characters.
    """
    families: dict[str, list[int]] = {}
    for number, name in enumerate(images.classes):
        families.setdefault(name.partition("@")[0], []).append(number)
    members = list(families.values())
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = max(2, round(share * len(order))) if 0 < share < 1 else len(order)
    if len(order) - cut < 2:
        raise InputError(
            f"a share of {share} of {len(order)} classes cannot be held out",
            where="held_out",
            fix="choose a share between 0 and 1 that leaves two classes or more on each side",
        )
    held = sorted(i for f in order[:cut] for i in members[f])
    rest = sorted(i for f in order[cut:] for i in members[f])
    return images.select(rest), images.select(held)


def trained_backbone(
    images: ImageSet,
    plan: ProtoTraining | ClassifierTraining,
    cache: Path | None,
    progress: Progress,
) -> Backbone:
    """A backbone that is trained here on images as they are, or kept from such a training."""

    def step(i: int, n: int, loss: float) -> None:
        progress("backbone", i, n, f"loss {loss:.3f}")

    def train() -> Backbone:
        if isinstance(plan, ProtoTraining):
            channels, size = images.images.shape[1], images.images.shape[-1]
            transform = InputTransform(size, channels)
            return train_backbone(images, plan, transform=transform, progress=step)
        return train_classifier_backbone(images, plan, progress=step)

    return cached_backbone(images, plan, cache, train)


@contextmanager
def one_thread() -> Iterator[None]:
    """Heads are small: a second thread costs more than it computes (docs/lab-notes/speed.md)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_parts(
    dataset: str,
    data_dir: str | None,
    *,
    size: int,
    channels: int,
    rotations: bool,
    split: str | None,
    seed: int,
) -> dict[str, ImageSet]:
    """The three parts of a data set; a folder is split at random by class.

    Args:
        dataset: A named data set, or a path.
        data_dir: Where a named one lies.
        size: Side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        rotations: Whether rotated characters are classes of their own.
        split: The data set's split; its own by default.
        seed: Of a random split.

    Raises:
        InputError: If there are no such parts, or they cannot be read.
    """
    named = dataset in SOURCES
    parts = load_data(
        dataset,
        data_dir,
        size=size,
        channels=channels,
        split=split or (None if named else "random"),
        seed=0 if named else seed,
    )
    if set(parts) != {"train", "val", "test"}:
        raise InputError(
            f"{dataset!r} has the parts {', '.join(parts)}, not training, validation and test "
            "classes",
            where="--dataset",
            fix="choose a data set, or a split of it, that is made for few-shot learning",
        )
    turned = any("@" in c for c in parts["train"].classes)
    if rotations and not turned:
        parts = {name: images.with_rotations() for name, images in parts.items()}
    if turned and not rotations:
        parts = {name: _upright(images) for name, images in parts.items()}
    return parts


def _upright(images: ImageSet) -> ImageSet:
    """Only the classes that are not rotated copies."""
    return images.select([i for i, name in enumerate(images.classes) if "@" not in name])


def shapes_of(settings: str | None, way: int, shot: int) -> list[tuple[int, int]]:
    """Pairs of way and shot: those of `settings`, such as "5w1s,5w5s", or the one given.

    Raises:
        InputError: If `settings` cannot be read.
    """
    if settings is None:
        return [(way, shot)]
    out = []
    for text in settings.split(","):
        found = re.fullmatch(r"\s*(\d+)w(\d+)s\s*", text)
        if not found:
            raise InputError(
                f"{text.strip()!r} is not the shape of an episode",
                where="--settings",
                fix="write ways and shots like this: 5w1s,5w5s,20w1s",
            )
        out.append((int(found[1]), int(found[2])))
    return list(dict.fromkeys(out))
