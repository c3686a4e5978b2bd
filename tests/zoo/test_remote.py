"""`ltdi.zoo.remote`: a zoo at a URL is read piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltdi.errors import InputError
from ltdi.zoo import HEADER, Zoo
from ltdi.zoo.index import NAME as INDEX
from tests.zoo.made import ABOUT, SPACE, append, assert_same, load, make_tasks


def test_a_zoo_is_read_from_a_url(zoo: Zoo, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(str(zoo.path), "/zoos/one", recursive=True)
    there = Zoo.open("memory://zoos/one", cache=tmp_path / "cache")
    assert there.shards == zoo.shards
    fetched = {p.name for p in there.path.iterdir()}
    assert fetched == {HEADER, INDEX}  # nothing else was needed
    for a, b in zip(load(there), load(zoo), strict=True):
        assert_same(a, b)
    # A shard that was made anew there is fetched anew.
    (zoo.path / "a.safetensors").unlink()
    append(zoo, "a", make_tasks(8))
    system.put(str(zoo.path / "a.safetensors"), "/zoos/one/a.safetensors")
    system.put(str(zoo.path / INDEX), f"/zoos/one/{INDEX}")
    again = Zoo.open("memory://zoos/one", cache=tmp_path / "cache")
    for a, b in zip(load(again), load(zoo), strict=True):
        assert_same(a, b)
    with pytest.raises(InputError, match="is for reading"):
        Zoo.create("memory://zoos/two", SPACE, ABOUT)
    with pytest.raises(InputError, match="not a zoo"):
        Zoo.open("memory://zoos/none", cache=tmp_path / "cache")
    with pytest.raises(InputError, match="cannot read nosuch://x"):
        Zoo.open("nosuch://x")
