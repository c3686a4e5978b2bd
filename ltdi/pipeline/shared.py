"""What lies beside a zoo: backbone and validation features, all that training needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ltdi.anchor import Anchor
from ltdi.backbone import Backbone
from ltdi.errors import MismatchError
from ltdi.files import read_metadata, read_tensors, write_tensors
from ltdi.pipeline.collecting import load_anchor
from ltdi.tasks import FeatureBank
from ltdi.zoo import Zoo


@dataclass(frozen=True)
class Shared:
    """What a zoo's directory keeps besides the zoo: all that training needs.

    Attributes:
        anchor: Of all training classes.
        backbone: That the features came from.
        valid: Features of validation classes.
    """

    anchor: Anchor
    backbone: Backbone
    valid: FeatureBank


def save_shared(path: Path, backbone: Backbone, valid: FeatureBank) -> None:
    """Write backbone and validation features beside a zoo; the anchor is in it."""
    if not (path / "backbone" / "backbone.json").is_file():
        backbone.save(path / "backbone")
    write_tensors(
        path / "valid.safetensors",
        {"features": valid.features, "offsets": valid.offsets},
        {"classes": json.dumps(list(valid.classes))},
    )


def load_shared(zoo: Zoo) -> Shared:
    """What lies in a zoo and beside it, for training.

    Raises:
        InputError: If a file is missing.
        DamagedFileError: If one is truncated or altered.
        MismatchError: If the backbone is not the one that the zoo was collected on.
    """
    backbone = Backbone.load(zoo.file("backbone"))
    if backbone.fingerprint != zoo.about["backbone"]:
        raise MismatchError(
            "the backbone beside the zoo is not the one that it was collected on",
            where=str(zoo.file("backbone")),
            fix="restore it from a copy, or collect the zoo anew",
        )
    file = zoo.file("valid.safetensors")
    held = read_tensors(file)  # verified before its metadata are believed
    names = json.loads(read_metadata(file)["classes"])
    valid = FeatureBank(held["features"], held["offsets"], tuple(names))
    return Shared(load_anchor(zoo), backbone, valid)
