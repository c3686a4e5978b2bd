"""`ltdi.data.images`: what an `ImageSet` promises, and what decoding makes of odd files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from ltdi.data import images
from ltdi.data.images import ImageSet, decode
from ltdi.errors import DamagedFileError, InputError

from .conftest import png


def make(counts: list[int], size: int = 4, channels: int = 1) -> ImageSet:
    generator = torch.Generator().manual_seed(sum(counts))
    groups = [
        torch.randint(0, 256, (n, channels, size, size), generator=generator).byte() for n in counts
    ]
    return ImageSet.by_class("made", groups, [f"c{i:02d}" for i in range(len(counts))])


def of_class(s: ImageSet, name: str) -> torch.Tensor:
    c = s.classes.index(name)
    return s.images[int(s.offsets[c]) : int(s.offsets[c + 1])]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), data=st.data())
def test_select_keeps_names_and_images(counts: list[int], data: st.DataObject) -> None:
    full = make(counts)
    chosen = data.draw(st.lists(st.sampled_from(range(len(counts))), unique=True, min_size=1))
    part = full.select(chosen)
    assert part.classes == tuple(full.classes[i] for i in chosen)
    assert part.counts.tolist() == [counts[i] for i in chosen]
    for name in part.classes:
        assert torch.equal(of_class(part, name), of_class(full, name))


@pytest.mark.parametrize("bad", [[0, 0], [3], [-1]])
def test_select_refuses_repeated_and_unknown(bad: list[int]) -> None:
    with pytest.raises(InputError, match="distinct"):
        make([1, 2, 3]).select(bad)


def test_four_quarter_turns_are_the_identity() -> None:
    original = make([2, 3])
    turned = original.with_rotations()
    assert turned.classes[:4] == ("c00", "c00@90", "c00@180", "c00@270")
    assert turned.counts.tolist() == [2] * 4 + [3] * 4
    assert torch.equal(of_class(turned, "c01"), of_class(original, "c01"))
    image = of_class(turned, "c01")
    for step in ("@90", "@180", "@270", ""):
        image = torch.rot90(image, 1, dims=(2, 3))
        assert torch.equal(image, of_class(turned, "c01" + step))


@pytest.mark.parametrize(
    ("images_", "offsets", "classes"),
    [
        (torch.zeros(2, 1, 4, 4), [0, 2], ("a",)),
        (torch.zeros(2, 1, 4, 5).byte(), [0, 2], ("a",)),
        (torch.zeros(2, 1, 4, 4).byte(), [0, 3], ("a",)),
        (torch.zeros(2, 1, 4, 4).byte(), [0, 2, 2], ("a", "b")),
        (torch.zeros(2, 1, 4, 4).byte(), [0, 1, 2], ("a", "a")),
        (torch.zeros(2, 1, 4, 4).byte(), [0, 2], ("a", "b")),
    ],
)
def test_invalid_sets_are_refused(
    images_: torch.Tensor, offsets: list[int], classes: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match="ImageSet"):
        ImageSet("bad", images_, torch.tensor(offsets), classes)


def test_decode_filter_is_torchs_antialiased_bilinear() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    ours = decode(encoded(Image.fromarray(pixels)), size=16, channels=3, where="x").float()
    theirs = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    theirs = F.interpolate(theirs, (16, 16), mode="bilinear", antialias=True)[0]
    assert (ours - theirs).abs().max() <= 1.0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_becomes_white(mode: str, channels: int) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    data = encoded(clear.convert(mode), "PNG")
    if mode == "P":
        data = encoded(Image.new("P", (8, 8), 0))
        image = Image.open(io.BytesIO(data))
        out = io.BytesIO()
        image.save(out, "PNG", transparency=0)
        data = out.getvalue()
    assert (decode(data, size=4, channels=channels, where="x") == 255).all()


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (32896, 128), (0, 0)])
def test_sixteen_bits_are_scaled_not_clipped(value: int, expected: int) -> None:
    data = encoded(Image.fromarray(np.full((8, 8), value, dtype=np.uint16)))
    assert (decode(data, size=4, channels=3, where="x") == expected).all()


def test_one_bit_and_orientation() -> None:
    assert (decode(encoded(Image.new("1", (8, 8), 1)), size=4, channels=1, where="x") == 255).all()
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    out = io.BytesIO()
    half.save(out, "PNG", exif=exif)
    shown = decode(out.getvalue(), size=8, channels=1, where="x")[0]
    assert shown[0, 0] == 0
    assert shown[7, 0] == 255


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_escape_as_another_error(data: bytes) -> None:
    with pytest.raises(DamagedFileError, match=r"some\.png"):
        decode(data, size=4, channels=1, where="some.png")


@settings(max_examples=60, deadline=None)
@given(at=st.integers(8, 300), value=st.integers(0, 255))
def test_altered_png_decodes_or_names_the_file(at: int, value: int) -> None:
    data = bytearray(png())
    data[at] = value
    try:
        decode(bytes(data), size=4, channels=3, where="some.png")
    except (DamagedFileError, InputError) as error:
        assert "some.png" in str(error)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_cut_off_png_is_damaged(keep: float) -> None:
    data = png()
    with pytest.raises(DamagedFileError, match=r"some\.png"):
        decode(data[: int(keep * len(data))], size=4, channels=3, where="some.png")


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "the file is empty"), (b"text", "of no known format")]
)
def test_what_is_wrong_is_said_without_pythons_words(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedFileError, match=reason):
        decode(data, size=4, channels=1, where="some.png")


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="too large"):
        decode(png(side=12), size=4, channels=1, where="x")


@pytest.mark.parametrize(("size", "channels"), [(0, 1), (8, 2), (-1, 3)])
def test_impossible_geometry(size: int, channels: int) -> None:
    with pytest.raises(InputError):
        decode(png(), size=size, channels=channels, where="x")
