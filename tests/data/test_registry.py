"""`ltdi.data.load`: one call for every source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltdi import data
from ltdi.errors import InputError

from .conftest import fake_omniglot, png, write


def test_glyphs_in_colour() -> None:
    sets = data.load("glyphs", size=14, channels=3)
    assert list(sets) == ["train", "val", "test"]
    assert sets["val"].images.shape[1:] == (3, 14, 14)
    assert torch.equal(sets["val"].images[:, 0], sets["val"].images[:, 2])


def test_omniglot_by_name(tmp_path: Path) -> None:
    write(tmp_path, fake_omniglot())
    sets = data.load("omniglot", tmp_path, size=9, channels=1, split="official")
    assert [len(s.classes) for s in sets.values()] == [16, 40, 24]
    with pytest.raises(InputError, match="data_dir"):
        data.load("omniglot", size=9, channels=1)


def test_path_whole_and_split(tmp_path: Path) -> None:
    write(tmp_path, {f"c{i:02d}/{k}.png": png(i + k) for i in range(10) for k in range(2)})
    whole = data.load(tmp_path, size=4, channels=1)["all"]
    parts = data.load(tmp_path, size=4, channels=1, split="random", seed=3)
    assert [len(s.classes) for s in parts.values()] == [6, 2, 2]
    assert sorted(c for s in parts.values() for c in s.classes) == list(whole.classes)
    other = data.load(tmp_path, size=4, channels=1, split="random", seed=4)
    assert other["test"].classes != parts["test"].classes


def test_unknown_names_missing_paths_and_conflicts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'omniglot'"):
        data.load("omniglott", size=4, channels=1)
    with pytest.raises(InputError, match="no such directory"):
        data.load(tmp_path / "nowhere", size=4, channels=1)
    with pytest.raises(InputError, match="data_dir"):
        data.load(tmp_path, tmp_path, size=4, channels=1)
    with pytest.raises(InputError, match="unknown split"):
        data.load("glyphs", size=4, channels=1, split="vinyals")
    with pytest.raises(InputError, match="unknown split"):
        data.load(tmp_path, size=4, channels=1, split="official")
