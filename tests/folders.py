"""Folders of images that tests read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from PIL import Image

from ltdi.data import ImageSet


def write_folders(path: Path, images: ImageSet, per_class: int | None = None) -> Path:
    """The first grey images of each class as `<class>/<number>.png`."""
    for number, (start, end) in enumerate(pairwise(images.offsets.tolist())):
        place = path / f"class{number:02d}"
        place.mkdir(parents=True)
        for i, image in enumerate(images.images[start:end][:per_class]):
            Image.fromarray(image[0].numpy()).save(place / f"{i:02d}.png")
    return path
