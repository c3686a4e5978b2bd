"""Omniglot (Lake et al., 2015): 1,623 handwritten characters of 50 alphabets, 20 drawers each."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ltdi import errors
from ltdi.data.archive import FileTree, open_tree
from ltdi.data.images import ImageSet, check_geometry, decode
from ltdi.errors import InputError

URL = "https://github.com/brendenlake/omniglot/raw/master/python/{part}.zip"
PARTS = ("images_background", "images_evaluation")
SPLITS = ("official", "vinyals")
_VAL_ALPHABETS = 5
_TIMEOUT_S = 60

# Character name, such as "images_background/Greek/character01" -> its files.
_Characters = dict[str, list[tuple[FileTree, str]]]


def load(
    path: str | os.PathLike[str],
    *,
    split: str = "vinyals",
    size: int = 28,
    channels: int = 1,
    rotations: bool = True,
) -> dict[str, ImageSet]:
    """Read Omniglot in its official layout, `images_<part>/<Alphabet>/characterNN/NNNN_MM.png`.

    Args:
        path: A directory that holds `images_background` and `images_evaluation` as zips or
            unpacked, or a zip that contains them.
        split: "vinyals" (Vinyals et al., 2016: 1,028 / 172 / 423 characters, read from
            `splits/vinyals_{train,val,test}.txt` below `path`), or "official" (background minus
            5 alphabets / those 5 / evaluation; no alphabet is in two parts).
        size: Height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        rotations: Make turns by 90, 180 and 270 degrees classes of their own, as is usual.

    Returns:
        "train", "val" and "test"; ink is 0, paper 255.

    Raises:
        InputError: For an unknown split, or parts or lists that are missing or do not fit.
        DamagedFileError: For an unreadable image or zip.
    """
    check_geometry(size, channels)
    if split not in SPLITS:
        raise errors.unknown("split", split, SPLITS, where="omniglot")
    with ExitStack() as stack:
        tree = stack.enter_context(open_tree(path))
        characters = _find_characters(tree, stack)
        lists = _vinyals(tree, characters) if split == "vinyals" else _official(characters)
        sets = {
            part: _decode(f"omniglot-{part}", characters, names, size, channels)
            for part, names in lists.items()
        }
    return {part: s.with_rotations() if rotations else s for part, s in sets.items()}


def load_named(
    data_dir: Path | None, *, size: int, channels: int, split: str | None, seed: int
) -> dict[str, ImageSet]:
    """The registry's entry; the data do not depend on `seed`.

    Raises:
        InputError: As `load`, and when no `data_dir` is given.
    """
    del seed
    if data_dir is None:
        raise InputError(
            "Omniglot is not embedded", where="data_dir", fix="give the folder or zip that holds it"
        )
    return load(data_dir, split=split or "vinyals", size=size, channels=channels)


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


def _find_characters(tree: FileTree, stack: ExitStack) -> _Characters:
    """Every character's files, sorted; unpacked folders go before zips."""
    found: _Characters = {}
    for part in PARTS:
        source = tree
        files = list(_matches(tree, part))
        zips = [n for n in tree.names if n == f"{part}.zip" or n.endswith(f"/{part}.zip")]
        if not files and zips:
            source = stack.enter_context(tree.open_zip(zips[0]))
            files = list(_matches(source, part))
        if not files:
            raise InputError(
                f"no {part}/<Alphabet>/<character>/*.png, nor a {part}.zip with them",
                where=tree.where,
                fix="put both official zips there (ltdi.data.omniglot.download fetches them)",
            )
        for character, name in files:
            found.setdefault(character, []).append((source, name))
    return found


def _matches(tree: FileTree, part: str) -> Iterable[tuple[str, str]]:
    pattern = re.compile(rf"(?:^|.*/)({part}/[^/]+/[^/]+)/[^/]+\.png", re.IGNORECASE)
    for name in tree.names:
        match = pattern.fullmatch(name)
        if match:
            yield match[1], name


def _vinyals(tree: FileTree, characters: _Characters) -> dict[str, list[str]]:
    lists = {part: _read_list(tree, f"vinyals_{part}.txt") for part in ("train", "val", "test")}
    listed = [c for names in lists.values() for c in names]
    absent = [c for c in listed if c not in characters]
    if absent:
        raise InputError(
            f"{len(absent)} characters of the split lists are not among the images, "
            f"such as {absent[0]!r}",
            where=tree.where,
            fix="complete the images, or use split='official'",
        )
    if len(set(listed)) < len(listed):
        raise InputError(
            "the split lists name a character twice",
            where=tree.where,
            fix="restore the lists as they were published, or use split='official'",
        )
    return lists


def _read_list(tree: FileTree, file: str) -> list[str]:
    at = next((n for n in tree.names if f"/{n}".endswith(f"/splits/{file}")), None)
    lines = tree.read(at).decode("utf-8", "replace").split("\n") if at else []
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(
            f"the Vinyals split needs its list splits/{file}, which is "
            + ("empty" if at else "missing"),
            where=tree.where,
            fix=f"put it at {tree.where}/splits/{file}, one images_<part>/<Alphabet>/<character> "
            "a line, or use split='official', which needs no lists",
        )
    return names


def _official(characters: _Characters) -> dict[str, list[str]]:
    background = [c for c in characters if c.startswith(PARTS[0])]
    # Ordered by hash: a fixed shuffle that no library version can change.
    alphabets = sorted({_alphabet(c) for c in background}, key=_digest)
    if len(alphabets) <= _VAL_ALPHABETS:
        raise InputError(
            f"{PARTS[0]} has {len(alphabets)} alphabets; "
            f"the official split needs more than {_VAL_ALPHABETS}",
            where="omniglot",
            fix="use the complete images_background (30 alphabets)",
        )
    held_out = set(alphabets[-_VAL_ALPHABETS:])
    return {
        "train": [c for c in background if _alphabet(c) not in held_out],
        "val": [c for c in background if _alphabet(c) in held_out],
        "test": [c for c in characters if c.startswith(PARTS[1])],
    }


def _alphabet(character: str) -> str:
    return character.split("/")[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _decode(
    name: str, characters: _Characters, chosen: Sequence[str], size: int, channels: int
) -> ImageSet:
    groups = {
        c: [
            decode(tree.read(n), size=size, channels=channels, where=tree.label(n))
            for tree, n in characters[c]
        ]
        for c in chosen
    }
    return ImageSet.from_groups(name, groups)
