"""Features and trained backbones that are computed once and kept on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ltdi.backbone.backbone import Backbone
from ltdi.backbone.precision import lowers
from ltdi.data import ImageSet
from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.files import digest, read_tensors, write_tensors
from ltdi.tasks import FeatureBank


def cached_bank(
    backbone: Backbone,
    images: ImageSet,
    directory: Path | str | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureBank:
    """`Backbone.bank`, kept in a directory where there is one.

    A file's name tells what its features depend on: backbone and transform (by fingerprint),
    arithmetic, pixels and class names. A damaged file is made anew, with a warning.

    Without a directory nothing is kept.
    """
    if directory is None:
        return backbone.bank(images, progress=progress)
    about = {
        "backbone": backbone.fingerprint,
        "arithmetic": "bfloat16" if lowers(backbone.precision) else "float32",
        "images": digest({"images": images.images, "offsets": images.offsets}),
        "classes": json.dumps(images.classes),
    }
    path = Path(directory) / f"features-{digest({}, about)}.safetensors"
    if path.is_file():
        try:
            features = read_tensors(path)["features"]
            return FeatureBank(features, images.offsets, images.classes)
        except DamagedFileError as error:
            warnings.warn(f"{error.what}; its features are computed again", stacklevel=1)
    bank = backbone.bank(images, progress=progress)
    write_tensors(path, {"features": bank.features}, about)
    return bank


def cached_banks(
    backbone: Backbone,
    sets: Sequence[ImageSet],
    directory: Path | str | None,
    *,
    progress: Callable[[int, int], None],
) -> list[FeatureBank]:
    """`cached_bank` of several sets, whose progress is counted together."""
    total, done, banks = sum(map(len, sets)), 0, []
    for images in sets:

        def step(i: int, n: int, before: int = done) -> None:
            progress(before + i, total)

        banks.append(cached_bank(backbone, images, directory, progress=step))
        done += len(images)
    return banks


def cached_backbone(
    images: ImageSet,
    training: Any,
    directory: Path | str | None,
    train: Callable[[], Backbone],
) -> Backbone:
    """The backbone that `train` makes of `images`, kept in a directory where there is one.

    Its name tells what it was trained on and how; `train` runs where there is none, or, with a
    warning, where the files are damaged.

    Without a directory nothing is kept.
    """
    if directory is None:
        return train()
    about = {
        "training": json.dumps([type(training).__name__, asdict(training)]),
        "arithmetic": "bfloat16" if lowers("auto") else "float32",
        "images": digest({"images": images.images, "offsets": images.offsets}),
    }
    path = Path(directory) / f"backbone-{digest({}, about)}"
    if path.is_dir():
        try:
            return Backbone.load(path)
        except (DamagedFileError, InputError, MismatchError) as error:
            warnings.warn(f"{error.what}; the backbone is trained again", stacklevel=1)
    backbone = train()
    backbone.save(path)
    return backbone
