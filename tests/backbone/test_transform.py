"""`ltdi.backbone.transform`: any image in, one input out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltdi.backbone import InputTransform
from ltdi.errors import InputError

from .conftest import RGB, conv, ink, pixels

GREY = InputTransform()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [(1, 1), (28, 28), (105, 80), (7, 300)])
@pytest.mark.parametrize("transform", [GREY, RGB], ids=["grey", "rgb"])
def test_any_size_and_colour_becomes_the_backbones(
    transform: InputTransform, channels: int, side: tuple[int, int]
) -> None:
    out = transform(pixels(2, channels, *side))
    assert out.shape == (2, transform.channels, transform.size, transform.size)
    assert out.dtype == torch.float32 and bool(out.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_pixels_are_bytes_over_255(dtype: torch.dtype) -> None:
    x = ink()
    rounding = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(GREY((x / 255).to(dtype)), GREY(x), rtol=0, atol=max(rounding, 1e-6))


def test_the_transform_is_its_equation() -> None:
    x = pixels(3, 3, 20, 20)
    mean, std = torch.tensor(RGB.mean), torch.tensor(RGB.std)
    wanted = (x.float().permute(0, 2, 3, 1) / 255 - mean) / std
    torch.testing.assert_close(RGB(x), wanted.permute(0, 3, 1, 2))
    grey = pixels(3, 1, 20, 20)
    torch.testing.assert_close(RGB(grey), RGB(grey.expand(-1, 3, -1, -1)))


def test_colour_becomes_grey_as_in_pil() -> None:
    import numpy as np
    from PIL import Image

    x = pixels(1, 3, 28, 28)
    wanted = np.asarray(Image.fromarray(x[0].permute(1, 2, 0).numpy()).convert("L"))
    out = InputTransform(polarity="keep")(x)[0, 0] * 255
    assert float((out - torch.from_numpy(wanted.copy()).float()).abs().max()) <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 60])
def test_an_image_and_its_negative_are_the_same_input(channels: int, size: int) -> None:
    x = ink(size=size, channels=channels)
    light, dark = GREY(x), GREY(255 - x)
    torch.testing.assert_close(light, dark, rtol=0, atol=1e-5)
    assert float(light[..., 0, :].max()) < 0.1  # paper is 0, strokes are not
    assert float(light.max()) > 0.5


def test_polarity_is_decided_image_by_image() -> None:
    x = ink()
    mixed = torch.where(torch.tensor([1, 0, 1, 0]).bool()[:, None, None, None], x, 255 - x)
    torch.testing.assert_close(GREY(mixed), GREY(x), rtol=0, atol=1e-5)


def test_kept_polarity_keeps_values() -> None:
    keep = InputTransform(polarity="keep")
    x = ink()
    assert torch.equal(keep(x), x / 255)
    assert not torch.allclose(keep(x), keep(255 - x), atol=0.1)


@pytest.mark.parametrize(
    "shape", [(28, 28), (1, 28, 28), (2, 2, 28, 28), (2, 1, 0, 28), (0, 1, 8, 8)]
)
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must have shape \[n, 1 or 3, height, width\]"):
        GREY(pixels(*shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_another_type_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"uint8.*got {dtype}"):
        GREY(torch.zeros(2, 1, 28, 28, dtype=dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("number", [0, 3, 9])
def test_an_image_that_is_not_finite_is_named(value: float, number: int) -> None:
    x = torch.rand(10, 1, 28, 28)
    x[number, 0, 5, 6] = value
    with pytest.raises(InputError, match=f"image {number} has NaN or infinite"):
        GREY(x)
    with pytest.raises(InputError, match=f"image {number} has NaN or infinite"):
        conv().features(x, batch=4)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1), (-2.1, 2.6), (0, 1.1)])
def test_another_range_is_refused(low: float, high: float) -> None:
    x = torch.linspace(low, high, 28).expand(2, 1, 28, 28)
    with pytest.raises(InputError, match=r"must lie in 0\.\.1"):
        GREY(x)


# Resizing.


@pytest.mark.parametrize(("kind", "pil"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
@pytest.mark.parametrize("size", [20, 64, 112])
def test_resizing_is_that_of_pil(kind: str, pil: str, size: int) -> None:
    import numpy as np
    from PIL import Image

    # Mild contrast: PIL cuts off what bicubic overshoots after the rows already.
    x = pixels(1, 3, 32, 32) // 2 + 64
    image = Image.fromarray(x[0].permute(1, 2, 0).numpy())
    wanted = np.asarray(image.resize((size, size), Image.Resampling[pil])).transpose(2, 0, 1)
    out = InputTransform(size, 3, "keep", interpolation=kind)(x)[0] * 255
    # PIL rounds to bytes, after the rows and again after the columns.
    assert float((out - torch.from_numpy(wanted.copy()).float()).abs().max()) <= 1.5


def test_bicubic_pixels_stay_in_their_range() -> None:
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    free = F.interpolate(edge / 255, (50, 50), mode="bicubic", antialias=True)
    assert float(free.max()) > 1.01 and float(free.min()) < -0.01
    out = InputTransform(50, polarity="keep", interpolation="bicubic")(edge)
    assert float(out.max()) == 1 and float(out.min()) == 0
