"""Small data sets made on the spot, and the real one where a machine has it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Pack = Callable[[Path], Path]


def png(seed: int = 0, side: int = 12, mode: str = "RGB") -> bytes:
    """A PNG of random pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """`files` below `root`."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(target: Path, files: dict[str, bytes]) -> Path:
    """`files` as a zip."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def fake_omniglot() -> dict[str, bytes]:
    """Official names: 7 + 3 alphabets of 2 characters with 2 drawings, and split lists."""
    files: dict[str, bytes] = {}
    for part, alphabets in (("images_background", 7), ("images_evaluation", 3)):
        for a in range(alphabets):
            for c in (1, 2):
                for d in (1, 2):
                    name = f"{part}/{part[7:10]}{a}/character{c:02d}/{c:04d}_{d:02d}.png"
                    files[name] = png(len(files), 15, "1")
    return files


def fake_splits() -> dict[str, bytes]:
    """Vinyals lists that fit `fake_omniglot`, across both official parts."""
    names = sorted({n.rsplit("/", 1)[0] for n in fake_omniglot()})
    parts = {"train": names[:14], "val": names[14:15], "test": names[15:]}
    return {f"splits/vinyals_{p}.txt": "\n".join(c).encode() for p, c in parts.items()}
