"""`ltdi.backbone.cache`: the same features, computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.backbone import Backbone, ProtoTraining, cache, cached_backbone, cached_bank
from ltdi.data import ImageSet

from .conftest import conv, ink


def images(classes: int = 3) -> ImageSet:
    groups = [ink(4 + c) for c in range(classes)]
    return ImageSet.by_class("made", groups, [f"class {c}" for c in range(classes)])


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the image sets that were really embedded."""
    seen: list[int] = []
    real = Backbone.bank

    def counted(self: Backbone, given: ImageSet, **kwargs: object) -> object:
        seen.append(len(given))
        return real(self, given, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "bank", counted)
    return seen


def test_features_are_computed_once(tmp_path: Path, forwards: list[int]) -> None:
    net, given = conv(), images()
    first = cached_bank(net, given, tmp_path / "new")
    again = cached_bank(conv(), images(), tmp_path / "new")
    assert forwards == [len(given)]
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.features, net.bank(given).features)
    assert torch.equal(again.offsets, given.offsets) and again.classes == given.classes
    names = [p.name for p in (tmp_path / "new").iterdir()]
    assert len(names) == 1 and names[0].startswith("features-")


def test_whatever_features_depend_on_has_its_own_file(
    tmp_path: Path, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = images()
    brighter = ImageSet("made", given.images + 1, given.offsets, given.classes)
    renamed = ImageSet("made", given.images, given.offsets, ("a", "b", "c"))
    other = given.offsets.clone()
    other[1] += 1
    regrouped = replace(given, offsets=other)
    for net in (conv(), conv(1), conv(flip=True), conv(polarity="keep")):
        cached_bank(net, given, tmp_path)
    for changed in (brighter, renamed, regrouped):
        cached_bank(conv(), changed, tmp_path)
    # bfloat16 on one machine and float32 on another may share a directory.
    lower = cache.lowers("auto")
    monkeypatch.setattr(cache, "lowers", lambda precision: not lower)
    cached_bank(conv(), given, tmp_path)
    assert len(forwards) == len(list(tmp_path.iterdir())) == 8


def test_the_name_of_the_set_is_not_part_of_it(tmp_path: Path, forwards: list[int]) -> None:
    cached_bank(conv(), images(), tmp_path)
    cached_bank(conv(), replace(images(), name="other"), tmp_path)
    assert len(forwards) == 1


@pytest.mark.parametrize("damage", ["truncated", "altered", "not a file of ours"])
def test_a_damaged_file_is_told_and_made_anew(
    damage: str, tmp_path: Path, forwards: list[int]
) -> None:
    wanted = cached_bank(conv(), images(), tmp_path).features
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    changed = {"truncated": whole[:-5], "altered": whole[:-1] + bytes([whole[-1] ^ 1])}
    path.write_bytes(changed.get(damage, b"features"))
    with pytest.warns(UserWarning, match=f"{path.name}.*computed again"):
        found = cached_bank(conv(), images(), tmp_path)
    assert torch.equal(found.features, wanted) and len(forwards) == 2
    cached_bank(conv(), images(), tmp_path)
    assert len(forwards) == 2


def test_progress_is_that_of_the_bank(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        cached_bank(conv(), images(), tmp_path, progress=lambda i, n: seen.append((i, n)))
    assert seen == [(len(images()), len(images()))]


def test_a_backbone_is_trained_once_for_its_images_and_settings(tmp_path: Path) -> None:
    trained: list[int] = []

    def train() -> Backbone:
        trained.append(1)
        return conv()

    def kept(given: ImageSet, plan: ProtoTraining) -> Backbone:
        return cached_backbone(given, plan, tmp_path, train)

    plan = ProtoTraining(iterations=1)
    first = kept(images(), plan)
    assert kept(images(), plan).fingerprint == first.fingerprint and len(trained) == 1
    kept(images(), ProtoTraining(iterations=1, seed=1))
    kept(images(4), plan)
    assert len(trained) == 3
    for path in tmp_path.glob("backbone-*/backbone.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="trained again"):
        kept(images(), plan)
    assert len(trained) == 4
