"""`ltdi.backbone`: any image in, the same features out, now and after a save."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.backbone import (
    CONFIG,
    WEIGHTS,
    Backbone,
    ConvNet,
    InputTransform,
    ProtoTraining,
    distort,
    leave_one_out_loss,
    train_backbone,
    transformers_backbone,
)
from ltdi.data import ImageSet
from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.tasks import FeatureBank

GREY = InputTransform()
RGB = InputTransform(20, 3, "keep", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SHORT = ProtoTraining(iterations=80, classes=20, images=4, width=16)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


def ink(n: int = 4, size: int = 28, channels: int = 1) -> Tensor:
    """Dark random strokes on light paper, uint8."""
    x = torch.full((n, channels, size, size), 250, dtype=torch.uint8)
    middle = slice(size // 4, -(size // 4))
    x[..., middle, middle] = pixels(n, 1, size, size)[..., middle, middle]
    return x


def conv(seed: int = 0, width: int = 8) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvNet(width=width)
    config = {"kind": "conv", "channels": 1, "width": width, "size": 28}
    return Backbone(net, InputTransform(), config)


@pytest.fixture(scope="module")
def trained(glyphs: dict[str, ImageSet]) -> Backbone:
    return train_backbone(glyphs["train"], SHORT)


# The transform.


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


def test_an_unknown_polarity_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'keep'"):
        InputTransform(polarity="kep")


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


# Training.


def naive_loss(z: Tensor, scale: float) -> float:
    losses = []
    classes, images, width = z.shape
    for c in range(classes):
        for i in range(images):
            logits = []
            for other in range(classes):
                members = [z[other, j] for j in range(images) if (other, j) != (c, i)]
                prototype = torch.stack(members).mean(0)
                logits.append(-scale * (z[c, i] - prototype).square().sum() / width)
            losses.append(F.cross_entropy(torch.stack(logits), torch.tensor(c)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("shape", [(2, 2, 3), (5, 4, 7)])
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_the_leave_one_out_loss_is_a_loop(shape: tuple[int, int, int], scale: float) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    z = z + torch.arange(shape[0])[:, None, None]
    loss = leave_one_out_loss(z, torch.tensor(scale, dtype=torch.double))
    assert float(loss) == pytest.approx(naive_loss(z, scale), rel=1e-9)


def test_training_lowers_the_loss(glyphs: dict[str, ImageSet]) -> None:
    losses: list[float] = []
    train_backbone(
        glyphs["train"],
        replace(SHORT, iterations=40),
        progress=lambda i, n, loss: losses.append(loss),
    )
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def prototype_accuracy(bank: FeatureBank) -> float:
    e = bank.episodes(way=5, shot=1, query=5, episodes=300, seed=0)
    support, query = bank.features[e.support][:, :, 0], bank.features[e.query]
    nearest = torch.cdist(query.flatten(1, 2), support).argmin(-1).unflatten(1, (5, 5))
    return float((nearest == torch.arange(5)[:, None]).float().mean())


def test_a_short_training_beats_raw_pixels_on_unseen_classes(
    trained: Backbone, glyphs: dict[str, ImageSet]
) -> None:
    test = glyphs["test"]
    raw = FeatureBank(GREY(test.images).flatten(1), test.offsets, test.classes)
    assert prototype_accuracy(trained.bank(test)) > prototype_accuracy(raw) + 0.05


def test_training_is_fixed_by_its_seed(trained: Backbone, glyphs: dict[str, ImageSet]) -> None:
    state = torch.get_rng_state()
    torch.rand(3)
    assert train_backbone(glyphs["train"], SHORT).fingerprint == trained.fingerprint
    other = train_backbone(glyphs["train"], replace(SHORT, seed=1, iterations=1))
    assert (
        other.fingerprint
        != train_backbone(glyphs["train"], replace(SHORT, iterations=1)).fingerprint
    )
    torch.set_rng_state(state)


def test_training_leaves_the_global_random_state_alone(glyphs: dict[str, ImageSet]) -> None:
    state = torch.get_rng_state()
    train_backbone(glyphs["train"], replace(SHORT, iterations=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_image_per_class_is_refused() -> None:
    with pytest.raises(InputError, match="images must be at least 2, got 1"):
        ProtoTraining(images=1)


def test_distortion_is_off_at_zero_and_differs_by_image() -> None:
    rng = torch.Generator().manual_seed(0)
    x = GREY(ink(1)).expand(4, -1, -1, -1)
    assert distort(x, 0.0, rng) is x
    out = distort(x, 1.0, rng)
    assert out.shape == x.shape and bool(out.isfinite().all())
    assert all(float((out[i] - out[0]).abs().max()) > 0.05 for i in range(1, 4))


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


# Vision models of the transformers library.


def save_model(kind: str, path: Path, **processor: Any) -> Path:
    """A tiny random vision model and its preprocessor_config.json, as a hub has them."""
    transformers = pytest.importorskip("transformers", reason="its vision models are tested")
    torch.manual_seed(0)
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
        )
        model = transformers.ResNetModel(config)
    else:
        config = transformers.ViTConfig(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        )
        name = "ViTForImageClassification" if kind == "vit-classifier" else "ViTModel"
        model = getattr(transformers, name)(config)
    model.save_pretrained(path)
    about = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.2],
        "size": {"height": 32, "width": 32},
        **processor,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub, whatever the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = pytest.importorskip("huggingface_hub", reason="a dependency of the library")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("kind", ["resnet", "vit", "vit-classifier"])
def test_a_vision_model_gives_features_and_survives_without_its_source(
    kind: str, tmp_path: Path
) -> None:
    source = save_model(kind, tmp_path / "source")
    net = transformers_backbone(str(source))
    x = pixels(3, 1, 50, 40)
    features = net.features(x)
    assert features.shape == (3, 12) and bool(features.isfinite().all())
    assert float(features.std(0).max()) > 0
    assert net.transform == InputTransform(32, 3, "keep", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    # No weight is made up: two loads agree.
    assert transformers_backbone(str(source)).fingerprint == net.fingerprint
    net.save(tmp_path / "saved")
    for path in source.iterdir():
        path.unlink()
    again = Backbone.load(tmp_path / "saved")
    assert again.fingerprint == net.fingerprint
    assert torch.equal(again.features(x), features)


def test_a_vision_models_features_are_its_own_pooled_output(tmp_path: Path) -> None:
    source = save_model("vit", tmp_path)
    transformers = pytest.importorskip("transformers", reason="its vision models are tested")
    x = pixels(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    model = transformers.ViTModel.from_pretrained(source).eval()
    with torch.no_grad():
        wanted = model(pixel_values=(x / 255 - mean) / std)
    found = transformers_backbone(str(source)).features(x, precision="float32")
    torch.testing.assert_close(found, wanted.pooler_output)
    # A classifier's checkpoint has no pooler: the class token, not a random projection.
    classifier = save_model("vit-classifier", tmp_path / "c")
    model = transformers.ViTModel.from_pretrained(classifier).eval()
    with torch.no_grad():
        wanted = model(pixel_values=(x / 255 - mean) / std)
    found = transformers_backbone(str(classifier)).features(x, precision="float32")
    torch.testing.assert_close(found, wanted.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("size", "side"), [(40, 40), ({"shortest_edge": 36}, 36), ({"height": 30, "width": 30}, 30)]
)
def test_the_size_is_read_from_old_and_new_processors(
    size: int | dict[str, int], side: int, tmp_path: Path
) -> None:
    net = transformers_backbone(str(save_model("resnet", tmp_path, size=size)))
    assert net.transform.size == side


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/path", "nonsense"])
def test_a_model_that_is_not_there_is_an_input_error(name: str) -> None:
    pytest.importorskip("transformers", reason="its vision models are tested")
    with pytest.raises(InputError, match=f"cannot load the vision model '{name}'") as caught:
        transformers_backbone(name)
    assert caught.value.where == "--backbone" and "hub name" in caught.value.fix


def test_a_missing_or_incomplete_processor_is_an_input_error(tmp_path: Path) -> None:
    path = save_model("resnet", tmp_path)
    (path / "preprocessor_config.json").write_text('{"size": 30}')
    with pytest.raises(InputError, match="no image_mean and image_std"):
        transformers_backbone(str(path))
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="cannot load the vision model") as caught:
        transformers_backbone(str(path))
    assert "image processor" in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_model("vit", tmp_path)
    state = load_file(path / "model.safetensors")
    lost = next(name for name in state if "layernorm" in name)
    save_file(
        {k: v for k, v in state.items() if k != lost}, path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="no weights for"):
        transformers_backbone(str(path))
