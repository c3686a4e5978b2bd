"""What many tests share: threads, data, and one tiny trained generator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from ltdi import data
from ltdi.backbone import ProtoTraining, train_backbone
from ltdi.data import ImageSet
from ltdi.meta import MetaConfig
from ltdi.pipeline import begin_zoo, make_anchor, train_generator
from ltdi.recipe import Network, Recipe, Tasks

ROOT = Path(__file__).resolve().parents[1]

# The same examples on every machine, and no verdict from a busy one's clock.
settings.register_profile("repository", derandomize=True, deadline=None)
settings.load_profile("repository")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Sums in one order on every machine, and no threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def every_warning() -> Iterator[None]:
    """Torch says some warnings once a process, to whichever test comes first."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """A shell ignores Ctrl-C in what it runs in the background, these tests maybe among it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of real data sets: $LTDI_DATA, or ../shared/data beside the repository."""
    path = Path(os.environ.get("LTDI_DATA", ROOT / ".." / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: nothing at {path}; set LTDI_DATA to have it read")
    return path


@pytest.fixture(scope="session")
def real(data_dir: Path) -> Callable[[str], Path]:
    """A place among the real data by name."""

    def at(name: str) -> Path:
        if not (data_dir / name).exists():
            pytest.skip(f"REAL {name.upper()} NOT TESTED: nothing at {data_dir / name}")
        return data_dir / name

    return at


@pytest.fixture(scope="session")
def glyphs() -> dict[str, ImageSet]:
    """The embedded data: "train", "val" and "test", 28 pixels, grey."""
    return data.load("glyphs", size=28, channels=1)


@pytest.fixture(scope="session")
def demo_generator(glyphs: dict[str, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a generator trained for a few seconds: every part is real, none is good."""
    path = tmp_path_factory.mktemp("demo")
    train, valid = glyphs["train"], glyphs["val"]
    half = len(train.classes) // 2
    backbone = train_backbone(
        train.select(range(half)), ProtoTraining(iterations=20, classes=24, width=16)
    )
    recipe = Recipe(
        tasks=Tasks(per_setting=60, shard=60, query=10, folds=4),
        network=Network(width=32, depth=1, heads=2),
        meta=MetaConfig(iterations=15, tasks=8, warmup=2),
    )
    recipe = replace(recipe, prepare=replace(recipe.prepare, steps=20))
    bank = backbone.bank(train.select(range(half, len(train.classes))))
    judge = backbone.bank(valid)
    anchor = make_anchor(recipe, bank, judge)
    data = begin_zoo(path / "zoo", bank, anchor, recipe, backbone).fill()
    generator = train_generator(data, backbone, recipe, valid=judge, about={"data": "glyphs"})
    return generator.save(path / "generator")


@pytest.fixture(scope="session")
def one_task(glyphs: dict[str, ImageSet]) -> dict[str, ImageSet]:
    """One task of four classes: 14 images of each to train on, 6 to test on."""
    whole = glyphs["train"].select(range(4))
    rows = torch.arange(80).view(4, 20)

    def part(which: torch.Tensor) -> ImageSet:
        offsets = torch.arange(5) * which.shape[1]
        return ImageSet("glyphs", whole.images[which.flatten()], offsets, whole.classes)

    return {"train": part(rows[:, :14]), "test": part(rows[:, 14:])}
