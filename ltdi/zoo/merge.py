"""Several zoos into one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ltdi.anchor.frame import Frame
from ltdi.errors import InputError, MismatchError
from ltdi.zoo.common import LOCK
from ltdi.zoo.header import HEADER
from ltdi.zoo.index import NAME as INDEX
from ltdi.zoo.index import Entry
from ltdi.zoo.store import Zoo

# What may differ between the zoos: how many tasks, and which.
FREE = ("seed", "tasks")


def merge(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Zoo:
    """Put the tasks of several zoos into a new one.

    All must have one weight space, one way of solving and the same shared tensors. Frames may
    differ: they are numbered anew. A shard that two zoos have in common, as two parts of one
    collection may, is taken once. What else lies beside the shards comes from the first zoo.

    Args:
        paths: Two zoos or more.
        out: Directory of the new one; going on with the same command is safe.
        progress: Called as progress(shards, all shards).

    Raises:
        InputError: If there are fewer than two, or one is the output.
        MismatchError: If they do not fit together.
        DamagedFileError: If a shard is missing, truncated or altered.
    """
    zoos = [Zoo.open(p) for p in paths]
    if len(zoos) < 2 or Path(out).resolve() in [z.path.resolve() for z in zoos]:
        raise InputError(
            "a merge needs at least two zoos and another directory for the result",
            where="ltdi zoo merge",
            fix="name two zoos or more, and --out DIR",
        )
    first = zoos[0]
    for other in zoos[1:]:
        _check(first, other)
    about = {**first.about, "merged": [z.about for z in zoos]}
    into = Zoo.create(out, first.space, about)
    for name in first.header["shared"]:
        if name != "frames":
            into.keep(name, first.shared(name), first.note(name))
    shift = _merge_frames(zoos, into)
    _copy_rest(first, into)
    total, done = sum(len(z.shards) for z in zoos), 0
    taken: dict[str, Entry] = {}
    for number, zoo in enumerate(zoos):
        for entry in zoo.shards:
            name = str(entry["name"])
            known = taken.get(name)
            if known is None or known["digest"] != entry["digest"] or shift[number]:
                new = name if known is None else f"{name}-{number}"
                _copy(zoo, entry, into, new, shift[number])
                taken.setdefault(name, entry)
            done += 1
            if progress:
                progress(done, total)
    return into


def _check(first: Zoo, other: Zoo) -> None:
    first.check(other.space)
    for key in sorted({*first.about, *other.about} - set(FREE)):
        if first.about.get(key) != other.about.get(key):
            raise MismatchError(
                f"{key} is {first.about.get(key)!r} in {first.path} and "
                f"{other.about.get(key)!r} in {other.path}",
                where=str(other.path),
                fix="merge zoos that were collected in the same way",
            )
    for name in sorted({*first.header["shared"], *other.header["shared"]} - {"frames"}):
        marks = [z.header["shared"].get(name, {}).get("digest") for z in (first, other)]
        if marks[0] != marks[1]:
            raise MismatchError(
                f"{name} differs between {first.path} and {other.path}",
                where=str(other.path / f"{name}.safetensors"),
                fix="merge zoos of the same data",
            )


def _merge_frames(zoos: Sequence[Zoo], into: Zoo) -> list[int]:
    """Store the frames of all zoos one after the other; where those of each begin."""
    shift: list[int] = []
    frames: list[Frame] = []
    held: list[list[int]] = []
    known: dict[str, int] = {}
    for zoo in zoos:
        mark = zoo.header["shared"].get("frames", {}).get("digest")
        if mark is not None and mark not in known:
            known[mark] = len(frames)
            frames += zoo.frames()
            held += zoo.held
        shift.append(known.get(mark, 0))
    if frames:
        into.keep_frames(frames, held)
    return shift


def _copy(zoo: Zoo, entry: Entry, into: Zoo, name: str, shift: int) -> None:
    if into.has(name):
        return
    columns: dict[str, Tensor] = dict(zoo.columns(entry))
    setting = dict(entry["setting"])
    if "frame" in setting:
        setting["frame"] += shift
        columns["frame"] = columns["frame"] + shift
    beside = {n: mean for n, mean in entry["mean"].items() if n not in columns}
    into.add(name, columns, setting, dropped=entry["dropped"], beside=beside)


def _copy_rest(first: Zoo, into: Zoo) -> None:
    """Backbone, anchor and whatever else lies beside the shards."""
    own = {HEADER, INDEX, LOCK, ".ltdi", "log.jsonl", "collect.yaml"}
    own |= {f"{n}.safetensors" for n in first.header["shared"]}
    own |= {f"{e['name']}.safetensors" for e in first.shards}
    for source in first.path.iterdir():
        target = into.path / source.name
        if source.name in own or target.exists() or source.suffix in (".tmp", ".lock"):
            continue
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
