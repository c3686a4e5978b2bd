"""`ltdi.zoo` as collection fills it: what is there is not made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ltdi.anchor import PrototypeAnchor
from ltdi.backbone import Backbone, InputTransform
from ltdi.collect import Preparation
from ltdi.errors import MismatchError
from ltdi.pipeline import begin_zoo
from ltdi.recipe import Recipe, Tasks
from ltdi.zoo import Zoo
from tests.zoo.made import (
    make_bank,
)

TINY = Recipe(
    tasks=Tasks(ways=(2, 3), shots=(1, 2), query=3, per_setting=6, shard=3, folds=0),
    prepare=Preparation(lr=0.1, steps=6, segments=2, batch=4),
    anchor="prototype",
)


def tiny_zoo(path: Path, recipe: Recipe = TINY, progress: Any = None) -> Zoo:
    """Eight shards; the backbone is a stand-in, only its fingerprint is read."""
    backbone = Backbone(nn.Identity(), InputTransform(), {"kind": "none"})
    anchor = PrototypeAnchor(0.5)
    return begin_zoo(path, make_bank(), anchor, recipe, backbone).fill(progress=progress).zoo


def files(zoo: Zoo) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in zoo.path.iterdir() if not p.name.endswith(".tmp")}


def test_collecting_again_changes_nothing(tmp_path: Path) -> None:
    before = files(tiny_zoo(tmp_path))
    assert len(before) == 8 + 7
    assert files(tiny_zoo(tmp_path)) == before


def test_only_a_lost_shard_is_collected_again(tmp_path: Path) -> None:
    zoo = tiny_zoo(tmp_path)
    before = files(zoo)
    lost = tmp_path / "shard-000003.safetensors"
    lost.unlink()
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    assert files(tiny_zoo(tmp_path)) == before
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_a_zoo_of_other_settings_is_not_mixed(tmp_path: Path) -> None:
    before = files(tiny_zoo(tmp_path))
    other = replace(TINY, prepare=replace(TINY.prepare, lr=0.2))
    with pytest.raises(MismatchError, match="prepare"):
        tiny_zoo(tmp_path, other)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
