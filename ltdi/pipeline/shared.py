"""What lies beside a zoo of heads: backbone and validation features."""

from __future__ import annotations

import json
from pathlib import Path

from ltdi.backbone import Backbone
from ltdi.errors import MismatchError
from ltdi.files import read_metadata, read_tensors, write_tensors
from ltdi.tasks import FeatureBank
from ltdi.zoo import Zoo


def save_shared(path: Path, backbone: Backbone, valid: FeatureBank) -> None:
    """Write backbone and validation features beside a zoo; the anchor is in it."""
    if not (path / "backbone" / "backbone.json").is_file():
        backbone.save(path / "backbone")
    write_tensors(
        path / "valid.safetensors",
        {"features": valid.features, "offsets": valid.offsets},
        {"classes": json.dumps(list(valid.classes))},
    )


def load_shared(zoo: Zoo) -> tuple[Backbone, FeatureBank]:
    """What `save_shared` wrote.

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
    return backbone, FeatureBank(held["features"], held["offsets"], tuple(names))
