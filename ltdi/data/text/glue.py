"""GLUE (Wang et al., 2019) in its official layout, `<TASK>/{train,dev,test}.tsv`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ltdi.data.archive import FileTree
from ltdi.data.layout import find, open_source
from ltdi.data.text.rows import Labelling, Row, assemble, decode
from ltdi.data.text.textset import TextSet
from ltdi.errors import InputError, unknown

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class GlueTask:
    """Where a task's files have what, and what is measured.

    Attributes:
        folder: Official name of its folder.
        texts: Columns of the text, or of the two texts.
        label: Column of the label.
        labelling: Values, names and metrics; the first metric is the headline.
        headless: Columns of train and dev where they have no header line.
    """

    folder: str
    texts: tuple[str, ...]
    label: str = "label"
    labelling: Labelling = field(default_factory=Labelling)
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
        ("sentence",),
        labelling=_classes("unacceptable", "acceptable", metrics=("matthews",)),
        headless=("source", "label", "mark", "sentence"),
    ),
    "sst-2": GlueTask("SST-2", ("sentence",), labelling=_classes("negative", "positive")),
    "mrpc": GlueTask(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        _classes("not_equivalent", "equivalent", metrics=("accuracy", "f1")),
    ),
    "qnli": GlueTask(
        "QNLI", ("question", "sentence"), labelling=_classes(*_ENTAILMENT, values=_ENTAILMENT)
    ),
    "rte": GlueTask(
        "RTE", ("sentence1", "sentence2"), labelling=_classes(*_ENTAILMENT, values=_ENTAILMENT)
    ),
    "sts-b": GlueTask(
        "STS-B",
        ("sentence1", "sentence2"),
        "score",
        Labelling(True, label_range=(0.0, 5.0), metrics=("spearman", "pearson")),
    ),
    "wnli": GlueTask(
        "WNLI", ("sentence1", "sentence2"), labelling=_classes("not_entailment", "entailment")
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
        path: A directory or zip that holds `<TASK>/<part>.tsv` at any depth.
        task: A key of `TASKS`, in any case, with or without its hyphen.
        parts: Of "train", "dev" and "test"; the official test part has no labels.

    Raises:
        InputError: For an unknown task or part, a missing file or column, a line with another
            number of columns, an empty text, or a label outside the set.
        DamagedFileError: For an unreadable zip, or a file that is not UTF-8.
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
            fix=f"give the directory or zip that holds the folder {about.folder}",
        )
    name = found[0][1]
    where = tree.label(name)
    lines = _lines(decode(tree.read(name), where))
    headless = about.headless if part != "test" else ()
    columns = headless or _header(lines, where)
    places = [_place(c, columns, where) for c in about.texts]
    labelled = part != "test" or about.label in columns
    label = _place(about.label, columns, where) if labelled else None
    rows = [
        Row(
            number,
            fields[places[0]],
            fields[places[1]] if len(places) > 1 else None,
            fields[label] if label is not None else None,
        )
        for number, fields in _fields(lines, len(columns), where)
    ]
    return assemble(f"{about.folder}-{part}", rows, about.labelling, where)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): it also cuts at characters that stand inside sentences.
    lines = text.removesuffix("\n").split("\n") if text else []
    return ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))


def _header(lines: Iterator[tuple[int, str]], where: str) -> tuple[str, ...]:
    first = next(lines, None)
    if first is None:
        raise InputError("the file is empty", where=where, fix="fetch it again")
    return tuple(first[1].split("\t"))


def _fields(
    lines: Iterator[tuple[int, str]], count: int, where: str
) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != count:
            raise InputError(
                f"{len(fields)} columns instead of {count}",
                where=f"{where}, line {number}",
                fix="repair the line: columns are split at tabs, quotes have no meaning",
            )
        yield number, fields


def _place(column: str, columns: Sequence[str], where: str) -> int:
    if column not in columns:
        raise unknown("column", column, columns, where=f"{where}, header")
    return columns.index(column)
