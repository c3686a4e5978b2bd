"""Omniglot (Lake et al., 2015): 1,623 handwritten characters of 50 alphabets, 20 drawers each.

A directory that holds `images_background` and `images_evaluation` as zips or unpacked, or a zip
that contains them: `images_<part>/<Alphabet>/characterNN/NNNN_MM.png`, ink 0, paper 255. The
splits are "vinyals" (Vinyals et al., 2016: 1,028 / 172 / 423 characters, read from
`splits/vinyals_{train,val,test}.txt`) and "official" (background minus 5 alphabets / those 5 /
evaluation; no alphabet is in two parts). Turned characters are classes of their own, as is usual.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ltdi.data.archive import FileTree
from ltdi.data.layout import Groups, ImageSource, choose, find, image_file, read_lines
from ltdi.errors import InputError

URL = "https://github.com/brendenlake/omniglot/raw/master/python/{part}.zip"
PARTS = ("images_background", "images_evaluation")
_VAL_ALPHABETS = 5
_TIMEOUT_S = 60
_OFFICIAL = "use split='official', which needs no lists"


def _parts(tree: FileTree, split: str, seed: int) -> dict[str, Groups]:
    characters = _find_characters(tree)
    lists = _vinyals(tree) if split == "vinyals" else _official(characters)
    lack, fix = "characters of the split lists have no image", f"complete them, or {_OFFICIAL}"
    return {p: choose(characters, n, tree.where, lack=lack, fix=fix) for p, n in lists.items()}


def download(path: str | os.PathLike[str]) -> None:
    """Fetch the official zips that `path` lacks; never called by `load`.

    Args:
        path: The directory to put them in; made when missing.

    Raises:
        InputError: When the network refuses; says what to fetch by hand and where to put it.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if not (folder / f"{part}.zip").exists():
            _fetch(URL.format(part=part), folder / f"{part}.zip")


def _fetch(url: str, target: Path) -> None:
    partial = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply, partial.open("wb") as file:
            shutil.copyfileobj(reply, file)
        with zipfile.ZipFile(partial):
            pass
        partial.replace(target)
    except (OSError, zipfile.BadZipFile) as error:  # URLError is an OSError
        raise InputError(
            f"cannot download {url} ({error})",
            where=str(target),
            fix=f"fetch it by hand and put it at {target}",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _find_characters(tree: FileTree) -> Groups:
    """Every character's files, sorted; unpacked folders go before zips."""
    found: Groups = {}
    for part in PARTS:
        pattern = rf"(?P<character>{part}/[^/]+/[^/]+)/[^/]+\.(?i:png)"
        source, files = tree, find(tree, pattern)
        if not files and (zips := find(tree, rf"{part}\.zip")):
            source = tree.open_zip(zips[0][1])
            files = find(source, pattern)
        if not files:
            raise InputError(
                f"no {part}/<Alphabet>/<character>/*.png, nor a {part}.zip with them",
                where=tree.where,
                fix="put both official zips there (ltdi.data.omniglot.download fetches them)",
            )
        for match, name in files:
            found.setdefault(match["character"], []).append(image_file(source, name))
    return found


def _vinyals(tree: FileTree) -> dict[str, list[str]]:
    purpose = f"one images_<part>/<Alphabet>/<character> a line, or {_OFFICIAL}"
    lists = {
        part: read_lines(tree, rf"splits/vinyals_{part}\.txt", purpose)
        for part in ("train", "val", "test")
    }
    listed = [c for names in lists.values() for c in names]
    if len(set(listed)) < len(listed):
        raise InputError(
            "the split lists name a character twice",
            where=tree.where,
            fix=f"restore the lists as they were published, or {_OFFICIAL}",
        )
    return lists


def _official(characters: Iterable[str]) -> dict[str, list[str]]:
    alphabet = {c: c.split("/")[1] for c in characters if c.startswith(PARTS[0])}
    # Ordered by hash: a fixed shuffle that no library version can change.
    order = sorted(set(alphabet.values()), key=lambda a: hashlib.sha256(a.encode()).hexdigest())
    if len(order) <= _VAL_ALPHABETS:
        raise InputError(
            f"{PARTS[0]} has {len(order)} alphabets; "
            f"the official split needs more than {_VAL_ALPHABETS}",
            where="omniglot",
            fix="use the complete images_background (30 alphabets)",
        )
    held_out = set(order[-_VAL_ALPHABETS:])
    return {
        "train": [c for c, a in alphabet.items() if a not in held_out],
        "val": [c for c, a in alphabet.items() if a in held_out],
        "test": [c for c in characters if c.startswith(PARTS[1])],
    }


load = ImageSource(
    "omniglot", "Omniglot", ("vinyals", "official"), _parts, size=28, channels=1, turned=True
)
