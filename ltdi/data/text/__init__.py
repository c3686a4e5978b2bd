"""Texts with labels: GLUE, a user's own files, and sets of the hub."""

from __future__ import annotations

import os
from pathlib import Path

from ltdi.data.archive import is_archive
from ltdi.data.text import glue, hub, intact, rules, table
from ltdi.data.text.subtasks import KINDS, kmeans, subtasks
from ltdi.data.text.table import Columns
from ltdi.data.text.textset import Text, TextSet
from ltdi.errors import InputError, unknown

__all__ = [
    "KINDS",
    "Columns",
    "Text",
    "TextSet",
    "description",
    "find",
    "kmeans",
    "load",
    "origin",
    "short_name",
    "subtasks",
]

HUB, RULE, INTACT = "hub:", "rule:", "intact:"
_COLUMNS = Columns()


def description(name: str) -> str:
    """What a task of GLUE, by rule or without labels asks, in a sentence; nothing for others."""
    if name.startswith(INTACT):
        return intact.DESCRIPTION
    if name.startswith(RULE):
        return rules.DESCRIPTIONS.get(name.removeprefix(RULE), "")
    return glue.DESCRIPTIONS[glue.task_name(name)] if glue.is_task(name) else ""


def short_name(name_or_path: str | os.PathLike[str]) -> str:
    """What a task is called in files and tables: "sst-2", "tone", "mine", "intact-mine"."""
    name = os.fspath(name_or_path)
    if name.startswith(INTACT):
        return f"intact-{short_name(name.removeprefix(INTACT))}"
    return Path(name).stem.removeprefix(RULE)


def origin(name: str) -> str:
    """Short name of the texts that a task without labels is made of; nothing for others."""
    return short_name(name.removeprefix(INTACT)) if name.startswith(INTACT) else ""


def find(
    name_or_path: str, data_dir: str | os.PathLike[str] | None, *, columns: Columns = _COLUMNS
) -> dict[str, TextSet]:
    """`load`, where `data_dir` is meant for those tasks that lie there, and for no others."""
    known = glue.is_task(name_or_path.removeprefix(INTACT))
    return load(name_or_path, data_dir if known else None, columns=columns)


def load(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    columns: Columns = _COLUMNS,
) -> dict[str, TextSet]:
    """Load texts by the name of a GLUE task, by path, or from the hub.

    Args:
        name_or_path: A GLUE task such as "sst-2"; a task by rule such as "rule:tone"; a `.jsonl`,
            `.csv` or `.tsv` file; a directory, zip or tar.gz with such files called train, dev
            and test; "hub:NAME" or "hub:NAME:CONFIG"; or "intact:" and one of these, whose texts
            make a task without their labels (`ltdi.data.text.intact`; of GLUE those of the test
            part).
        data_dir: Where GLUE lies, in its official layout; not for the others.
        columns: Which columns hold what; not for GLUE.

    Returns:
        "train" and "dev", and what else there is; "all", for a single file.

    Raises:
        InputError: For an unknown name, a missing path, or unusable data.
        DamagedFileError: For an unreadable file.
    """
    given = os.fspath(name_or_path)
    path = Path(given)
    if given.startswith(HUB):
        name, _, config = given.removeprefix(HUB).partition(":")
        return hub.load(name, columns, config=config or None)
    if given.startswith(INTACT):
        inner = given.removeprefix(INTACT)
        if glue.is_task(inner):
            parts = glue.load(data_dir, inner, ("test",))
        else:
            parts = load(inner, data_dir, columns=columns)
        texts = next(parts[p] for p in ("test", "train", "all") if p in parts).texts
        return {"all": intact.intact(short_name(given), texts)}
    if given.startswith(RULE):
        return rules.load(given.removeprefix(RULE))
    if glue.is_task(given):
        return glue.load(data_dir, given)
    if data_dir is not None and path.exists():
        raise InputError(
            f"both a path, {given!r}, and data_dir={os.fspath(data_dir)!r} are given",
            where="data_dir",
            fix="give the path alone",
        )
    if path.is_dir() or is_archive(path.name):
        return table.load_parts(path, columns)
    if path.suffix.lower() in table.SUFFIXES:
        return {"all": table.load(path, columns)}
    if path.is_file():
        table.check_suffix(path.name)
    raise unknown("text task (nor is there a file or folder)", given, glue.TASKS)
