"""Small fakes of the official layouts: random pixels under official names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ltdi.data import splits
from ltdi.data.cifar import CIFAR100
from ltdi.data.cifar_binary import Family

from .conftest import png

PER_CLASS = {"train": 2, "test": 1}


def tarred(target: Path, files: dict[str, bytes]) -> Path:
    """`files` as a `.tar.gz`."""
    with tarfile.open(target, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target


def cifar_pixels(family: Family) -> dict[tuple[str, str, int], np.ndarray]:
    """(part, class, number) -> uint8 [3, 32, 32]."""
    rng = np.random.default_rng(0)
    return {
        (part, label, i): rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
        for part, n in PER_CLASS.items()
        for label in family.classes
        for i in range(n)
    }


def cifar_folders(family: Family) -> dict[str, bytes]:
    """The pixels as `{train,test}/<class>/<image>.png`."""
    files = {}
    for (part, label, i), pixels in cifar_pixels(family).items():
        out = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "PNG")
        files[f"{part}/{label}/{label}_s_{i:06d}.png"] = out.getvalue()
    return files


def cifar_binary(family: Family) -> dict[str, bytes]:
    """The same pixels as the official binary version, spread over its files."""
    pixels = cifar_pixels(family)
    files = {}
    for part, n in PER_CLASS.items():
        # Neighbours are of different classes, as in the original.
        order = [(part, label, i) for i in range(n) for label in reversed(family.classes)]
        records = [
            bytes([*[7] * (family.labels - 1), family.classes.index(key[1])])
            + pixels[key].tobytes()
            for key in order
        ]
        batches = [file for file, its_part in family.binary.items() if its_part == part]
        size = len(records) // len(batches)
        for b, file in enumerate(batches):
            files[file] = b"".join(records[b * size : (b + 1) * size])
    names = "fine_label_names.txt" if family is CIFAR100 else "batches.meta.txt"
    files[names] = ("\n".join(family.classes) + "\n\n").encode()
    folder = "cifar-100-binary" if family is CIFAR100 else "cifar-10-batches-bin"
    return {f"{folder}/{name}": data for name, data in files.items()}


def tiny_imagenet() -> dict[str, bytes]:
    """All classes of the lists and one more, 2 train images and 1 val image each."""
    parts = (*splits.TIERED.values(), *splits.MINI.values(), ("n00000001",))
    wnids = sorted({c for classes in parts for c in classes})
    files = {
        f"train/{wnid}/images/{wnid}_{i}.JPEG": png(3 * w + i, 8)
        for w, wnid in enumerate(wnids)
        for i in range(2)
    }
    files |= {f"val/images/val_{w}.JPEG": png(3 * w + 2, 8) for w in range(len(wnids))}
    rows = [f"val_{w}.JPEG\t{wnid}\t0\t32\t44\t62" for w, wnid in enumerate(wnids)]
    files["val/val_annotations.txt"] = "\n".join(rows).encode()
    files["wnids.txt"] = "\n".join(wnids).encode()
    others = ["n99999999\tsomething else"]
    lines = [f"{wnid}\tword {w}, its synonym" for w, wnid in enumerate(wnids)]
    files["words.txt"] = "\n".join(others + lines).encode()
    return {f"tiny-imagenet-200/{name}": data for name, data in files.items()}


def pets() -> dict[str, bytes]:
    """Three breeds of 4, 5 and 6 images; the first 2 of each are annotated for testing."""
    counts = {"Bengal": 4, "american_bulldog": 5, "Egyptian_Mau": 6}
    stems = [f"{breed}_{i}" for breed, n in counts.items() for i in range(n)]
    files = {f"images/{stem}.jpg": png(i, 12) for i, stem in enumerate(stems)}
    test = [stem for stem in stems if stem[-1] in "01"]
    lists = {"list": stems, "test": test, "trainval": [s for s in stems if s not in test]}
    for name, rows in lists.items():
        text = "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(f"{row} 1 1 1" for row in rows)
        files[f"annotations/{name}.txt"] = text.encode()
    return files | {"images/Bengal_1.mat": b"", "annotations/trimaps/Bengal_1.png": b""}
