"""Vision models of the transformers library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltdi.backbone import Backbone, InputTransform, transformers_backbone
from ltdi.errors import InputError

from .conftest import pixels, save_model


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
