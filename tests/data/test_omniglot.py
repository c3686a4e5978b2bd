"""`ltdi.data.omniglot`: on a small fake of the official layout, and on the real thing."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltdi.data import omniglot
from ltdi.errors import InputError

from .conftest import fake_omniglot, fake_splits, write, zipped


def halves() -> dict[str, dict[str, bytes]]:
    files = fake_omniglot()
    return {p: {n: d for n, d in files.items() if n.startswith(p)} for p in omniglot.PARTS}


def official_zips(folder: Path) -> Path:
    folder.mkdir()
    for part, files in halves().items():
        zipped(folder / f"{part}.zip", files)
    return folder


def alphabets(classes: Iterable[str]) -> set[str]:
    return {c.split("/")[1] for c in classes}


def test_every_packing_gives_the_same_images(tmp_path: Path) -> None:
    zips = official_zips(tmp_path / "zips")
    write(zips, fake_splits())
    unpacked = write(tmp_path / "unpacked", fake_omniglot() | fake_splits())
    wrapped = {f"omniglot/{n}": d for n, d in (fake_omniglot() | fake_splits()).items()}
    one = zipped(tmp_path / "one.zip", wrapped)
    nested = zipped(
        tmp_path / "nested.zip",
        {f"python/{p}.zip": (zips / f"{p}.zip").read_bytes() for p in omniglot.PARTS}
        | {f"python/{n}": d for n, d in fake_splits().items()},
    )
    loaded = [omniglot.load(p, size=9) for p in (zips, unpacked, one, nested)]
    assert [len(s.classes) for s in loaded[0].values()] == [56, 4, 20]
    for other in loaded[1:]:
        for part, images in loaded[0].items():
            assert other[part].classes == images.classes
            assert torch.equal(other[part].images, images.images)


def test_official_split_is_disjoint_by_alphabet_and_needs_no_lists(tmp_path: Path) -> None:
    sets = omniglot.load(official_zips(tmp_path / "o"), split="official", size=9)
    assert [len(s.classes) for s in sets.values()] == [16, 40, 24]
    names = [alphabets(s.classes) for s in sets.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 10
    assert all(c.startswith("images_evaluation/") for c in sets["test"].classes)


def test_missing_lists_name_the_place_and_the_alternative(tmp_path: Path) -> None:
    folder = official_zips(tmp_path / "o")
    with pytest.raises(InputError) as caught:
        omniglot.load(folder)
    assert "no splits/vinyals_train.txt" in str(caught.value) and str(folder) in str(caught.value)
    assert "split='official'" in str(caught.value)


def test_lists_that_do_not_fit(tmp_path: Path) -> None:
    folder = write(official_zips(tmp_path / "o"), fake_splits())
    test = folder / "splits" / "vinyals_test.txt"
    kept = test.read_text()
    test.write_text(kept + "\nimages_background/Nowhere/character01\n")
    with pytest.raises(InputError, match="Nowhere"):
        omniglot.load(folder)
    test.write_text(kept + "\n" + (folder / "splits" / "vinyals_val.txt").read_text())
    with pytest.raises(InputError, match="twice"):
        omniglot.load(folder)


def test_missing_part_and_unknown_split(tmp_path: Path) -> None:
    folder = official_zips(tmp_path / "o")
    with pytest.raises(InputError, match="did you mean 'vinyals'"):
        omniglot.load(folder, split="vinyal")
    (folder / "images_evaluation.zip").unlink()
    with pytest.raises(InputError, match="images_evaluation"):
        omniglot.load(folder, split="official")


def test_download_stores_only_what_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official_zips(tmp_path / "source")

    def reply(url: str, timeout: float) -> io.BytesIO:
        assert url.startswith("https://github.com/brendenlake/omniglot/raw/master/python/")
        return io.BytesIO((tmp_path / "source" / url.rsplit("/", 1)[1]).read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", reply)
    omniglot.download(tmp_path / "new")
    omniglot.load(tmp_path / "new", split="official", size=9)
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [
        f"{p}.zip" for p in omniglot.PARTS
    ]


@pytest.mark.parametrize("answer", [urllib.error.URLError("no route"), b"<html>sign in</html>"])
def test_refused_download_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    def reply(url: str, timeout: float) -> io.BytesIO:
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", reply)
    with pytest.raises(InputError, match=r"by hand and put it at .*images_background\.zip"):
        omniglot.download(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_real_vinyals_split(real: Callable[[str], Path]) -> None:
    sets = omniglot.load(real("omniglot"), size=14)
    assert [len(s.classes) for s in sets.values()] == [4 * 1028, 4 * 172, 4 * 423]
    assert all((s.counts == 20).all() for s in sets.values())
    names = [set(s.classes) for s in sets.values()]
    assert sum(map(len, names)) == len(set.union(*names))
    ink = 1 - sets["train"].images.float().mean() / 255
    assert 0.02 < ink < 0.3


def test_real_official_split(real: Callable[[str], Path]) -> None:
    sets = omniglot.load(real("omniglot"), split="official", size=14)
    train, val, test = ([c for c in s.classes if "@" not in c] for s in sets.values())
    assert len(train) + len(val) == 964
    assert len(test) == 659
    parts = [alphabets(c) for c in (train, val, test)]
    assert [len(p) for p in parts] == [25, 5, 20]
    assert len(set.union(*parts)) == 50
