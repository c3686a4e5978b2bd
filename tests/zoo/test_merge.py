"""`ltdi.zoo.merge`: zoos of several machines or seeds become one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltdi.errors import InputError, MismatchError
from ltdi.zoo import Zoo, merge
from tests.zoo.made import (
    ABOUT,
    append,
    assert_same,
    assert_same_frames,
    create,
    load,
    make_bank,
    make_frames,
    make_tasks,
)


def test_merging_two_parts_of_a_collection_is_the_whole(zoo: Zoo, tmp_path: Path) -> None:
    parts = [create(tmp_path / n) for n in ("p", "q")]
    append(parts[0], "a", make_tasks(0))
    for name, number, way, shot in (("a", 0, 3, 2), ("b", 1, 2, 1), ("c", 2, 3, 2)):
        append(parts[1], name, make_tasks(number, way=way, shot=shot))
    merged = merge([p.path for p in parts], tmp_path / "m")
    assert [e["digest"] for e in merged.shards] == [e["digest"] for e in zoo.shards]
    for a, b in zip(load(merged), load(zoo), strict=True):
        assert_same(a, b)
    again = merge([p.path for p in parts], tmp_path / "m")
    assert again.shards == merged.shards
    with pytest.raises(InputError, match="at least two"):
        merge([zoo.path], tmp_path / "n")


def test_merging_two_seeds_keeps_each_ones_frames(tmp_path: Path) -> None:
    zoos = []
    for seed in (1, 2):
        zoo = create(tmp_path / str(seed), about={**ABOUT, "seed": seed})
        zoo.keep_frames(make_frames(seed, 2), [[seed], [0]])
        for frame in (0, 1):
            append(zoo, f"s{frame}", make_tasks(10 * seed + frame, frame=frame))
        zoos.append(zoo)
    (zoos[0].path / "extra.txt").write_text("kept")
    merged = merge([z.path for z in zoos], tmp_path / "m")
    assert_same_frames(merged.frames(), make_frames(1, 2) + make_frames(2, 2))
    assert merged.held == [[1], [0], [2], [0]]
    for frame, tasks in enumerate(load(merged)):
        original = make_tasks(10 * (1 + frame // 2) + frame % 2, frame=frame)
        assert_same(tasks, original)
    assert (merged.path / "extra.txt").read_text() == "kept"
    other = create(tmp_path / "o", about={**ABOUT, "prepare": {"lr": 0.5}})
    with pytest.raises(MismatchError, match="prepare is"):
        merge([zoos[0].path, other.path], tmp_path / "n")
    with pytest.raises(MismatchError, match="bank differs"):
        merge([zoos[0].path, create(tmp_path / "b", bank=make_bank(1)).path], tmp_path / "n")
