"""The tiny trained generator, and tasks of test classes for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ltdi.data import ImageSet
from ltdi.generator import Generator
from tests.generator.made import Draw, Task


@pytest.fixture(scope="package")
def gen(demo_generator: Path) -> Generator:
    return Generator.from_pretrained(demo_generator)


@pytest.fixture(scope="package")
def draw(glyphs: dict[str, ImageSet]) -> Draw:
    """Support of a task on test scripts; `shots` per class, or one number for all."""
    test = glyphs["test"]

    def support(shots: list[int], *, first: int = 0, size: int = 28, seed: int = 0) -> Task:
        rng = torch.Generator().manual_seed(seed)
        rows, labels = [], []
        for label, shot in enumerate(shots):
            start = int(test.offsets[first + label])
            rows.append(start + torch.randperm(20, generator=rng)[:shot])
            labels += [label] * shot
        images = test.images[torch.cat(rows)]
        if size != 28:
            images = F.interpolate(images.float(), (size, size), mode="nearest").to(torch.uint8)
        return images, torch.tensor(labels)

    return support
