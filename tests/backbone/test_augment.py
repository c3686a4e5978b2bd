"""`ltdi.backbone.augment`: random changes that keep what they must keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ltdi.backbone import Augmentation, InputTransform, augment, distort, mix
from ltdi.backbone.augment import crop_and_flip, cutout, jitter
from ltdi.errors import InputError

from .conftest import ink

OFF = Augmentation(crop=1.0, flip=False, jitter=0.0, cutout=0.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 16, channels: int = 3, size: int = 12) -> Tensor:
    return torch.randn(n, channels, size, size, generator=rng(1))


def test_an_augmentation_of_nothing_changes_nothing() -> None:
    torch.testing.assert_close(augment(noise(), OFF, rng()), noise())


@pytest.mark.parametrize("how", [Augmentation(), Augmentation(cutout=0.4)], ids=str)
def test_views_are_fixed_by_the_generator_and_differ_by_image(how: Augmentation) -> None:
    x = noise(1).expand(8, -1, -1, -1)
    out = augment(x, how, rng())
    assert out.shape == x.shape and bool(out.isfinite().all())
    assert torch.equal(out, augment(x, how, rng()))
    assert not torch.equal(out, augment(x, how, rng(2)))
    assert all(float((out[i] - out[0]).abs().max()) > 0.05 for i in range(1, 8))


def test_a_flip_is_a_mirror_image_of_about_half() -> None:
    x = noise(64)
    out = crop_and_flip(x, 1.0, True, rng())
    same = (out - x).abs().amax((1, 2, 3)) < 1e-4
    turned = (out - x.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    assert bool((same ^ turned).all()) and 16 < int(turned.sum()) < 48


@given(least=st.floats(0.01, 1), size=st.integers(2, 40), seed=st.integers(0, 99))
def test_a_crop_lies_in_the_image_and_keeps_its_share(least: float, size: int, seed: int) -> None:
    flat = torch.full((4, 1, size, size), 3.0)
    torch.testing.assert_close(crop_and_flip(flat, least, True, rng(seed)), flat)


@pytest.mark.parametrize("least", [0.2, 0.7, 1.0])
def test_a_crop_has_the_area_and_the_shape_it_promises(least: float) -> None:
    """A ramp's slope tells how much of the image is left, in both directions."""
    ramp = torch.linspace(-1, 1, 101).expand(400, 1, 101, 101)
    out = crop_and_flip(torch.cat([ramp, ramp.mT], 1), least, False, rng())
    # Away from the border, where it is not cut off.
    wide = (out[:, 0, 50, 70] - out[:, 0, 50, 30]) / 0.8
    high = (out[:, 1, 70, 50] - out[:, 1, 30, 50]) / 0.8
    area, ratio = wide * high, wide / high
    assert float(area.min()) >= least - 1e-3 and float(area.max()) <= 1 + 1e-3
    assert float(ratio.min()) >= 3 / 4 - 1e-3 and float(ratio.max()) <= 4 / 3 + 1e-3
    if least < 1:
        assert float(area.mean()) == pytest.approx((1 + least) / 2, abs=0.03)
        assert float(ratio.log().mean()) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("strength", [0.1, 0.8])
def test_jitter_shifts_an_images_mean_by_at_most_its_strength(strength: float) -> None:
    x = noise(200)
    out = jitter(x, strength, rng())
    shift = (out - x).mean((1, 2, 3))
    assert 0.8 * strength < float(shift.abs().max()) <= strength + 1e-5
    factor = out.std((1, 2, 3)) / x.std((1, 2, 3))
    assert float(factor.max()) <= (1 + strength) ** 2 and float(factor.min()) < 1 < factor.max()
    assert jitter(x, 0.0, rng()) is x


def test_jitter_keeps_grey_grey_and_flat_flat() -> None:
    grey = noise(channels=1).expand(-1, 3, -1, -1)
    out = jitter(grey, 0.5, rng())
    torch.testing.assert_close(out, out[:, :1].expand(-1, 3, -1, -1))
    flat = jitter(torch.full((5, 3, 4, 4), 2.0), 0.5, rng())
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))


def test_cutout_blanks_one_square_and_nothing_else() -> None:
    x = noise(50, size=16)
    out = cutout(x, 0.5, rng())
    blank = (out == 0).all(1)
    assert torch.equal(out.masked_select(~blank.unsqueeze(1)), x.masked_select(~blank.unsqueeze(1)))
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), rows * columns)
    assert int(rows.max()) == int(columns.max()) == 8 and int(rows.min()) >= 4
    assert cutout(x, 0.0, rng()) is x


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@given(n=st.integers(2, 12), size=st.integers(1, 17), seed=st.integers(0, 99))
def test_a_target_says_what_an_image_is_made_of(kind: str, n: int, size: int, seed: int) -> None:
    """Images of one value each: the mean pixel is the target's mean of the values."""
    value = torch.arange(n, dtype=torch.float32)
    x = value.view(n, 1, 1, 1).expand(n, 3, size, size)
    mixed, target = mix(x, torch.eye(n), kind, rng(seed))
    torch.testing.assert_close(target.sum(1), torch.ones(n))
    torch.testing.assert_close(target @ value, mixed.mean((1, 2, 3)), rtol=1e-4, atol=1e-4)
    assert float(target.min()) >= -1e-6


def test_mixing_mixes_and_nothing_is_mixed_unless_asked() -> None:
    x, target = noise(), torch.eye(16)
    assert mix(x, target, "none", rng()) == (x, target)
    for kind in ("mixup", "cutmix"):
        assert int(((mix(x, target, kind, rng())[1] > 0.05).sum(1) == 2).sum()) > 8
    with pytest.raises(InputError, match="did you mean 'cutmix'"):
        mix(x, target, "cutmx", rng())


def test_distortion_is_off_at_zero_and_differs_by_image() -> None:
    x = InputTransform()(ink(1)).expand(4, -1, -1, -1)
    assert distort(x, 0.0, rng()) is x
    out = distort(x, 1.0, rng())
    assert out.shape == x.shape and bool(out.isfinite().all())
    assert all(float((out[i] - out[0]).abs().max()) > 0.05 for i in range(1, 4))
