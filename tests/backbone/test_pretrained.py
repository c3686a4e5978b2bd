"""`ltdi.backbone.pretrained_backbone`: every source behind one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltdi.backbone import (
    Backbone,
    InputTransform,
    pretrained_backbone,
    timm_backbone,
    transformers_backbone,
)
from ltdi.errors import InputError

from .conftest import conv, pixels, save_model


def test_every_source_is_found_by_its_name(
    calls: list[dict[str, Any]], efficientnet: Backbone, tmp_path: Path
) -> None:
    model = save_model("resnet", tmp_path / "model")
    conv().save(tmp_path / "saved")
    found = {
        "efficientnet-lite0": efficientnet,
        "timm:resnet18": timm_backbone("resnet18"),
        f"transformers:{model}": transformers_backbone(str(model)),
        str(model): transformers_backbone(str(model)),
        str(tmp_path / "saved"): conv(),
    }
    assert calls
    for spec, wanted in found.items():
        assert pretrained_backbone(spec).fingerprint == wanted.fingerprint
        assert pretrained_backbone(spec).config["kind"] == wanted.config["kind"]


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("eficientnet-lite", "did you mean 'efficientnet-lite0'"),
        ("tim:resnet18", "did you mean 'timm'"),
        ("conv", "timm:NAME, transformers:NAME"),
        ("/no/such/place", "give a directory with backbone.json, or one of: efficientnet-lite0"),
        ("tests/nowhere", "give a directory with backbone.json"),
    ],
)
def test_an_unknown_backbone_is_answered_with_the_forms(
    spec: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    with pytest.raises(InputError, match=hint):
        pretrained_backbone(spec)


def test_a_name_on_the_hub_is_one_of_transformers() -> None:
    pytest.importorskip("transformers", reason="its vision models are tested")
    with pytest.raises(InputError, match="cannot load the vision model 'nobody/nothing'"):
        pretrained_backbone("nobody/nothing")


def test_a_directory_of_neither_kind_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"backbone\.json not found"):
        pretrained_backbone(str(tmp_path))


def test_a_convolutional_net_takes_another_size(tmp_path: Path) -> None:
    conv().save(tmp_path)
    larger = pretrained_backbone(str(tmp_path), size=40)
    assert larger.transform == InputTransform(40)
    x = pixels(3, 1, 40, 40)
    assert not torch.allclose(larger.features(x), conv().features(x), rtol=0.01)


def test_a_net_of_one_size_says_so(tmp_path: Path) -> None:
    path = save_model("vit", tmp_path)
    with pytest.raises(InputError, match="cannot see images of 48 pixels") as caught:
        pretrained_backbone(str(path), size=48)
    assert "its own, 32" in caught.value.fix
    with pytest.raises(InputError, match="size must be at least 1, got 0"):
        pretrained_backbone(str(path), size=0)
