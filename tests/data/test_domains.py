"""`ltdi.data.domains`: the same classes in every domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltdi import data
from ltdi.data import domains
from ltdi.data.images import decode
from ltdi.errors import DamagedFileError, InputError

from .conftest import png, write, zipped


def fake(source: str = "pacs", classes: tuple[str, ...] = ("dog", "cat")) -> dict[str, bytes]:
    names = [f"{d}/{c}/{i}.png" for d in domains.DOMAINS[source] for c in classes for i in range(2)]
    return {name: png(i) for i, name in enumerate(names)}


@pytest.mark.parametrize("source", domains.DOMAINS)
def test_one_part_a_domain_with_the_same_classes(tmp_path: Path, source: str) -> None:
    files = {f"any/wrapper/{n}": d for n, d in fake(source).items()}
    parts = data.load(source, write(tmp_path, files), size=8, channels=3)
    assert tuple(parts) == domains.DOMAINS[source]
    for domain, images in parts.items():
        assert images.classes == ("cat", "dog")
        assert images.name.endswith(domain)
        file = files[f"any/wrapper/{domain}/dog/1.png"]
        assert torch.equal(images.images[3], decode(file, size=8, channels=3, where="x"))


def test_archive_in_a_folder_and_folder_agree(tmp_path: Path) -> None:
    packed = zipped(tmp_path / "PACS.zip", {f"PACS/{n}": d for n, d in fake().items()})
    unpacked = write(tmp_path / "PACS", fake())
    first, *others = (
        data.load("pacs", p, size=8, channels=1) for p in (packed, tmp_path, unpacked)
    )
    for other in others:
        assert all(torch.equal(first[d].images, other[d].images) for d in first)


def test_any_domains_of_that_layout(tmp_path: Path) -> None:
    write(tmp_path, {f"{d}/{c}/1.png": png() for d in ("summer", "winter") for c in "ab"})
    assert list(domains.load_domains(tmp_path, size=4, channels=1)) == ["summer", "winter"]


def test_missing_domain_class_and_layout(tmp_path: Path) -> None:
    files = fake()
    no_sketch = {n: d for n, d in files.items() if not n.startswith("sketch")}
    with pytest.raises(InputError, match="no domain 'sketch', only 'art_painting'"):
        data.load("pacs", write(tmp_path / "a", no_sketch), size=8, channels=1)
    no_dog = {n: d for n, d in files.items() if not n.startswith("photo/dog")}
    with pytest.raises(InputError, match=r"1 of 2 classes have no image: 'dog'(.|\n)*'photo'"):
        data.load("pacs", write(tmp_path / "b", no_dog), size=8, channels=1)
    flat = {f"{c}/1.png": png() for c in ("cat", "dog")}
    with pytest.raises(InputError, match=r"no domains(.|\n)*<domain>/<class>/<image>"):
        data.load("pacs", write(tmp_path / "c", flat), size=8, channels=1)
    (tmp_path / "empty").mkdir()
    loose = write(tmp_path / "loose", {"1.png": png()})
    for place in (tmp_path / "empty", loose):
        with pytest.raises(InputError, match="<domain>/<class>/<image>"):
            data.load("pacs", place, size=8, channels=1)
    with pytest.raises(InputError, match="unknown split"):
        data.load("pacs", tmp_path, size=8, channels=1, split="official")
    with pytest.raises(InputError, match="data_dir"):
        data.load("office-caltech10", size=8, channels=1)


def test_damage_and_unsafe_names(tmp_path: Path) -> None:
    damaged = fake() | {"photo/dog/0.png": png()[:50]}
    with pytest.raises(DamagedFileError, match=r"photo/dog/0\.png"):
        data.load("pacs", zipped(tmp_path / "x.zip", damaged), size=8, channels=1)
    unsafe = zipped(tmp_path / "y.zip", fake() | {"../photo/dog/1.png": png()})
    with pytest.raises(InputError, match=r"\.\./photo"):
        data.load("pacs", unsafe, size=8, channels=1)


@pytest.mark.data
@pytest.mark.parametrize(
    ("source", "folder", "classes"),
    [
        pytest.param("pacs", "pacs", 7, marks=pytest.mark.slow),
        ("office-caltech10", "office_caltech10", 10),
    ],
)
def test_real_domains(real: Callable[[str], Path], source: str, folder: str, classes: int) -> None:
    parts = data.load(source, real(folder), size=32, channels=3)
    assert tuple(parts) == domains.DOMAINS[source]
    assert {len(s.classes) for s in parts.values()} == {classes}
    counts = {d: len(s) for d, s in parts.items()}
    assert (
        counts
        == {
            "pacs": {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
            "office-caltech10": {"amazon": 958, "caltech10": 1123, "dslr": 157, "webcam": 295},
        }[source]
    )
