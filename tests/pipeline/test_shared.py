"""`ltdi.pipeline.shared`: what lies beside a zoo comes back, and what was swapped is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ltdi.backbone import Backbone, ConvNet, InputTransform
from ltdi.errors import LtdiError, MismatchError
from ltdi.pipeline import HeadCollection, load_shared, make_anchor, save_shared
from ltdi.zoo import Zoo
from tests.pipeline.made import same


def test_shared_parts_round_trip(zoo: Zoo, tmp_path, train, valid, backbone, recipe):
    path = Path(shutil.copytree(zoo.path, tmp_path / "z"))
    anchor = make_anchor(recipe, train, valid)
    save_shared(path, backbone, valid)
    held, found = load_shared(Zoo.open(path))
    assert same(dict(HeadCollection(Zoo.open(path)).anchor.state_dict()), dict(anchor.state_dict()))
    assert held.fingerprint == backbone.fingerprint
    assert torch.equal(found.features, valid.features) and found.classes == valid.classes
    # A backbone that was swapped afterwards is found.
    other = Backbone(ConvNet(1, 4, 28), InputTransform(), backbone.config)
    other.save(path / "backbone")
    with pytest.raises(MismatchError, match="not the one that it was collected on"):
        load_shared(Zoo.open(path))
    (path / "anchor.safetensors").unlink()
    with pytest.raises(LtdiError, match="anchor"):
        HeadCollection(Zoo.open(path))
