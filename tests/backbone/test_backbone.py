"""`ltdi.backbone.backbone`: the same features, now and after a save."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdi.backbone import CONFIG, WEIGHTS, Backbone, InputTransform
from ltdi.backbone.augment import wiggle
from ltdi.data import ImageSet
from ltdi.errors import DamagedFileError, InputError, MismatchError

from .conftest import conv, pixels

# Features.


def test_features_do_not_depend_on_the_batch() -> None:
    net, x = conv(), pixels(7, 1, 28, 28)
    whole = net.features(x, precision="float32")
    assert whole.shape == (7, net.net.width) and whole.dtype == torch.float32
    torch.testing.assert_close(net.features(x, batch=2, precision="float32"), whole)
    assert not whole.requires_grad


def test_low_precision_is_near() -> None:
    """Equal where the processor has no bfloat16; never far."""
    net, x = conv(), pixels(7, 1, 28, 28)
    a, b = net.features(x), net.features(x, precision="float32")
    assert a.dtype == torch.float32 and float((a - b).norm() / b.norm()) < 0.02
    with pytest.raises(InputError, match="did you mean 'float32'"):
        net.features(x, precision="float16")


def test_a_bank_holds_the_features_of_a_set(glyphs: dict[str, ImageSet]) -> None:
    net, images = conv(), glyphs["val"]
    seen: list[tuple[int, int]] = []
    bank = net.bank(images, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(bank.offsets, images.offsets) and bank.classes == images.classes
    torch.testing.assert_close(bank.features[-9:], net.features(images.images[-9:]))
    assert seen[-1] == (len(images.images), len(images.images))


class Seen(nn.Module):
    """Pixels as features; notes how many images and pixels each pass has."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, channels * size * size]."""
        self.passes.append((len(x), x[:, 0].numel()))
        return x.flatten(1)


@pytest.mark.parametrize(("size", "batch"), [(8, 512), (28, 256), (112, 16), (2000, 1)])
def test_large_images_pass_in_small_batches(size: int, batch: int) -> None:
    net = Backbone(Seen(), InputTransform(size), {"kind": "none"})
    n = min(600, 3 * batch // 2 + 1)
    net.features(pixels(n, 1, 2, 2))
    assert isinstance(net.net, Seen)
    assert [count for count, _ in net.net.passes] == [batch, n - batch]


def test_both_views_count_the_same() -> None:
    x = pixels(5, 1, 28, 28)
    one, two = conv(), conv(flip=True)
    wanted = (one.features(x) + one.features(x.flip(-1))) / 2
    torch.testing.assert_close(two.features(x), wanted)
    torch.testing.assert_close(two.features(x.flip(-1)), two.features(x))
    assert not torch.allclose(one.features(x.flip(-1)), one.features(x), rtol=0.01)
    # An image that is its own mirror image has the features of one view.
    even = torch.cat([x, x.flip(-1)], -1)
    torch.testing.assert_close(two.features(even), one.features(even), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("flip", [False, True])
def test_wiggled_views_count_the_same_and_bear_a_shift_better(flip: bool) -> None:
    x = torch.zeros(6, 1, 28, 28)
    x[..., 6:22, 6:22] = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    one, many = conv(), conv(wiggle=True, flip=flip)
    views = wiggle(many.transform(x))
    assert len(views) == 9 and all(v.shape == x.shape for v in views)
    views += [v.flip(-1) for v in views] if flip else []
    each = [one.features(v) for v in views]
    torch.testing.assert_close(many.features(x), sum(each) / len(each), rtol=0.01, atol=0.02)
    # Between two views lie three pixels: what is moved by them has views in common.
    torch.testing.assert_close(views[2].roll(-3, -1), views[1], rtol=0, atol=1e-4)
    moved = x.roll(-1, -1)
    drift = [(b.features(moved) - b.features(x)).square().mean() for b in (many, one)]
    assert float(drift[0]) < 0.5 * float(drift[1])


def test_a_net_that_low_precision_harms_is_spared_it() -> None:
    x = pixels(5, 1, 28, 28)
    net = conv()
    spared = Backbone(net.net, net.transform, {**net.config, "precision": "float32"})
    assert torch.equal(spared.features(x), net.features(x, precision="float32"))
    assert (spared.precision, net.precision) == ("float32", "auto")


# Files.


def test_a_saved_backbone_is_the_same(trained: Backbone, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = Backbone.load(tmp_path)
    x = pixels(5, 1, 40, 30)
    assert again.fingerprint == trained.fingerprint
    assert again.transform == trained.transform
    assert torch.equal(again.features(x), trained.features(x))


def test_the_fingerprint_sees_weights_buffers_and_transform() -> None:
    marks = {conv().fingerprint, conv(seed=1).fingerprint, conv(width=4).fingerprint}
    moved, turned = conv(), conv()
    moved.net.layers[1].running_mean += 1e-3
    turned.transform = InputTransform(polarity="keep")
    assert len(marks | {moved.fingerprint, turned.fingerprint}) == 5
    assert conv().fingerprint == conv().fingerprint


def test_a_fingerprint_of_the_first_format_still_holds() -> None:
    """Taken before the transform had `interpolation`, `flip` and `wiggle`."""
    state = {"w": torch.arange(4.0)}
    net = nn.ParameterDict(state)
    old = Backbone(net, InputTransform(20, 3, "keep", (0.5,) * 3, (0.2,) * 3), {"kind": "none"})
    assert old.fingerprint == "b4e7bea7dcb8b378d2942b1d51ede04f"
    marks = {old.fingerprint}
    for change in ({"flip": True}, {"interpolation": "bicubic"}, {"wiggle": True}):
        marks.add(Backbone(net, replace(old.transform, **change), old.config).fingerprint)
    assert len(marks) == 4


def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    conv().save(tmp_path)
    about = json.loads((tmp_path / CONFIG).read_text())
    for name in ("interpolation", "flip", "wiggle"):
        del about["transform"][name]
    (tmp_path / CONFIG).write_text(json.dumps(about))
    assert Backbone.load(tmp_path).transform == InputTransform()


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    conv(flip=True).save(tmp_path)
    state = torch.get_rng_state()
    again = Backbone.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.transform == InputTransform(flip=True)


@pytest.mark.parametrize("other", [conv(seed=1), conv(width=4)], ids=["same shapes", "other"])
def test_files_of_two_backbones_do_not_mix(other: Backbone, tmp_path: Path) -> None:
    conv().save(tmp_path / "a")
    other.save(tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(MismatchError, match=WEIGHTS):
        Backbone.load(tmp_path / "a")


def test_a_changed_transform_is_found(tmp_path: Path) -> None:
    conv().save(tmp_path)
    about = json.loads((tmp_path / CONFIG).read_text())
    about["transform"]["mean"] = [0.1]
    (tmp_path / CONFIG).write_text(json.dumps(about))
    with pytest.raises(MismatchError, match=CONFIG):
        Backbone.load(tmp_path)


@pytest.mark.parametrize(
    "about",
    [{}, {"config": {"kind": "conv"}, "transform": {}}, {"config": 1, "transform": {"x": 1}}],
)
def test_another_json_file_is_not_a_backbone(about: dict[str, Any], tmp_path: Path) -> None:
    conv().save(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(about))
    with pytest.raises(MismatchError, match=CONFIG):
        Backbone.load(tmp_path)


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    conv().save(tmp_path)
    about = json.loads((tmp_path / CONFIG).read_text())
    about["config"]["kind"] = "convv"
    (tmp_path / CONFIG).write_text(json.dumps(about))
    with pytest.raises(InputError, match="did you mean 'conv'"):
        Backbone.load(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_damaged_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    conv().save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-7])
    with pytest.raises(DamagedFileError, match=name):
        Backbone.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} not found"):
        Backbone.load(tmp_path)
