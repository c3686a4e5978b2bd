"""Models of timm: a stand-in everywhere, the real ones where it is installed."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ltdi.backbone import Backbone, InputTransform, timm_backbone, transformers_backbone
from ltdi.errors import InputError

from .conftest import pixels


def test_a_timm_model_is_asked_for_without_its_classifier(calls: list[dict[str, Any]]) -> None:
    net = timm_backbone("resnet18.a1_in1k")
    assert calls == [{"name": "resnet18.a1_in1k", "pretrained": True, "num_classes": 0}]
    assert net.transform == InputTransform(
        24, 3, "keep", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic"
    )
    assert net.config == {"kind": "timm", "name": "resnet18.a1_in1k"}
    assert net.features(pixels(2, 1, 9, 9)).shape == (2, 7)


def test_a_timm_model_is_loaded_with_its_stored_weights(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    net = timm_backbone("resnet18")
    net.save(tmp_path)
    calls.clear()
    again = Backbone.load(tmp_path)
    assert [call["pretrained"] for call in calls] == [False]
    assert again.fingerprint == net.fingerprint
    x = pixels(3, 3, 30, 30)
    assert torch.equal(again.features(x), net.features(x))
    untrained = timm_backbone("resnet18", pretrained=False)
    assert untrained.fingerprint != net.fingerprint
    assert untrained.fingerprint == timm_backbone("resnet18", pretrained=False).fingerprint
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("calls")
def test_a_timm_model_that_is_not_there_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"unknown timm model 'resnt50\.a1'") as caught:
        timm_backbone("resnt50.a1")
    assert "resnet50" in caught.value.fix
    with pytest.raises(InputError, match=r"cannot load the vision model 'resnet18\.lost'"):
        timm_backbone("resnet18.lost")


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'timm'"),
        ModuleNotFoundError("No module named 'torchvision'"),
        RuntimeError("operator torchvision::nms does not exist"),
    ],
    ids=str,
)
def test_a_library_that_cannot_be_imported_is_an_input_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    for load, extra in ((timm_backbone, "timm"), (transformers_backbone, "transformers")):
        with pytest.raises(InputError, match=str(error)) as caught:
            load("resnet18")
        assert f"'.[{extra}]'" in caught.value.fix and f"needs {extra}" in caught.value.what


class NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives an empty torchvision, which is enough for the models of timm."""

    class Name(type):
        """Any attribute is its own name."""

        def __getattr__(cls, name: str) -> str:
            if name.startswith("__"):
                raise AttributeError(name)
            return name

    class Module(ModuleType):
        """Any attribute is an empty class."""

        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return NoTorchvision.Name(name, (), {})

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        mine = name.partition(".")[0] == "torchvision"
        return ModuleSpec(name, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


@pytest.fixture
def real_timm() -> Iterator[Any]:
    """The real timm, also where there is no torchvision for this torch."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("REAL TIMM NOT TESTED: it is an extra")
    before, finder = set(sys.modules), NoTorchvision()
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(finder)
    try:
        yield importlib.import_module("timm")
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
            for name in set(sys.modules) - before:
                if name.partition(".")[0] in ("timm", "torchvision"):
                    del sys.modules[name]


def test_a_model_of_the_real_timm(real_timm: Any, tmp_path: Path) -> None:
    net = timm_backbone("resnet10t", pretrained=False)
    assert (net.transform.size, net.transform.interpolation) == (176, "bicubic")
    x = pixels(2, 3, 176, 176)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (net.transform.mean, net.transform.std))
    model = real_timm.create_model("resnet10t", pretrained=False)
    model.load_state_dict(net.net.state_dict(), strict=False)
    with torch.no_grad():
        wanted = model.eval().forward_features((x / 255 - mean) / std).mean((2, 3))
    torch.testing.assert_close(net.features(x, precision="float32"), wanted, rtol=1e-3, atol=1e-4)
    net.save(tmp_path)
    assert Backbone.load(tmp_path).fingerprint == net.fingerprint
    with pytest.raises(InputError, match="unknown timm model 'resnet5000'"):
        timm_backbone("resnet5000")
