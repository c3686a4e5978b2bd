"""GLUE (Wang et al., 2019) in its official layout, `<TASK>/{train,dev,test}.tsv`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ltdi.data.archive import FileTree
from ltdi.data.layout import find, open_source
from ltdi.data.text.rows import Labelling, assemble, decode
from ltdi.data.text.table import Columns, check_header, rows_of
from ltdi.data.text.textset import TextSet
from ltdi.errors import InputError, unknown

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class GlueTask:
    """Where a task's files have what, and what is measured.

    Attributes:
        folder: Official name of its folder.
        columns: Of the text, or of the two texts, and of the label.
        labelling: Values, names and metrics; the first metric is the headline.
        headless: Columns of train and dev where they have no header line.
    """

    folder: str
    columns: Columns
    labelling: Labelling
    headless: tuple[str, ...] = ()


def _classes(
    *names: str, values: tuple[str, ...] = ("0", "1"), metrics: tuple[str, ...] = ("accuracy",)
) -> Labelling:
    return Labelling(False, values, names, None, metrics)


_ENTAILMENT = ("entailment", "not_entailment")
# GLUE reports accuracy and F1 of MRPC, Spearman and Pearson of STS-B.
TASKS = {
    "cola": GlueTask(
        "CoLA",
        Columns("sentence"),
        _classes("unacceptable", "acceptable", metrics=("matthews",)),
        headless=("source", "label", "mark", "sentence"),
    ),
    "sst-2": GlueTask("SST-2", Columns("sentence"), _classes("negative", "positive")),
    "mrpc": GlueTask(
        "MRPC",
        Columns("#1 String", "#2 String", "Quality"),
        _classes("not_equivalent", "equivalent", metrics=("accuracy", "f1")),
    ),
    "qnli": GlueTask(
        "QNLI", Columns("question", "sentence"), _classes(*_ENTAILMENT, values=_ENTAILMENT)
    ),
    "rte": GlueTask(
        "RTE", Columns("sentence1", "sentence2"), _classes(*_ENTAILMENT, values=_ENTAILMENT)
    ),
    "sts-b": GlueTask(
        "STS-B",
        Columns("sentence1", "sentence2", "score"),
        Labelling(True, label_range=(0.0, 5.0), metrics=("spearman", "pearson")),
    ),
    "wnli": GlueTask(
        "WNLI", Columns("sentence1", "sentence2"), _classes("not_entailment", "entailment")
    ),
}
# What each task asks; the words are ours.
DESCRIPTIONS = {
    "cola": "Is the sentence acceptable English grammar?",
    "sst-2": "Is the sentiment of the film review positive or negative?",
    "mrpc": "Are the two sentences from the news paraphrases of each other?",
    "qnli": "Does the sentence contain the answer to the question?",
    "rte": "Does the first text entail the second?",
    "sts-b": "How similar in meaning are the two sentences?",
    "wnli": "Does the second sentence follow from the first, with the pronoun replaced?",
}


def load(
    path: str | os.PathLike[str] | None, task: str, parts: Sequence[str] = ("train", "dev")
) -> dict[str, TextSet]:
    """Read a task's files: split at tabs, without quoting, with or without a byte-order mark.

    Args:
        path: A directory or an archive that holds `<TASK>/<part>.tsv` at any depth.
        task: A key of `TASKS`, in any case, with or without its hyphen.
        parts: Of "train", "dev" and "test"; the official test part has no labels.

    Raises:
        InputError: For an unknown task or part, a missing file or column, a line with another
            number of columns, an empty text, or a label outside the set.
        DamagedFileError: For an unreadable archive, or a file that is not UTF-8.
    """
    about = TASKS[task_name(task)]
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS, where=f"GLUE {about.folder}")
    with open_source(path, "GLUE") as tree:
        return {part: _read(tree, about, part) for part in parts}


def is_task(name: str) -> bool:
    """Whether `task_name` knows the name."""
    return _plain(name) in _NAMES


def task_name(name: str) -> str:
    """The key of `TASKS` for a name such as "SST2" or "sst-2".

    Raises:
        InputError: For an unknown name.
    """
    if not is_task(name):
        raise unknown("GLUE task", name.lower(), TASKS)
    return _NAMES[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())


_NAMES = {_plain(name): name for name in TASKS}


def _read(tree: FileTree, about: GlueTask, part: str) -> TextSet:
    file = f"{about.folder}/{part}.tsv"
    found = find(tree, re.escape(file))
    if not found:
        raise InputError(
            f"there is no {file}",
            where=tree.where,
            fix=f"give the directory or archive that holds the folder {about.folder}",
        )
    name = found[0][1]
    where = tree.label(name)
    labelled = part != "test"
    header, records = _records(
        decode(tree.read(name), where), about.headless if labelled else (), where
    )
    advice = "restore the official file"
    check_header(about.columns, header, f"{where}, line 1", labelled=labelled, advice=advice)
    rows = rows_of(records, about.columns, where, labelled=labelled)
    return assemble(f"{about.folder}-{part}", rows, about.labelling, where)


def _records(
    text: str, headless: Sequence[str], where: str
) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, str]]]]:
    """The names of the columns, and the lines with their numbers."""
    # Not splitlines(): it also cuts at characters that stand inside sentences.
    lines = enumerate(text.removesuffix("\n").split("\n") if text else (), 1)
    fields = ((number, line.removesuffix("\r").split("\t")) for number, line in lines)
    header = headless or next(fields, (0, ()))[1]
    if not header:
        raise InputError("the file is empty", where=where, fix="fetch it again")
    return header, _named(fields, header, where)


def _named(
    fields: Iterator[tuple[int, list[str]]], header: Sequence[str], where: str
) -> Iterator[tuple[int, dict[str, str]]]:
    for number, row in fields:
        if len(row) != len(header):
            raise InputError(
                f"{len(row)} columns instead of {len(header)}",
                where=f"{where}, line {number}",
                fix="repair the line: columns are split at tabs, quotes have no meaning",
            )
        yield number, dict(zip(header, row, strict=True))
