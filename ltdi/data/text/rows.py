"""From rows of text files to a `TextSet`; every complaint names its line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ltdi.data.text.textset import TextSet
from ltdi.errors import DamagedFileError, InputError, unknown

CLASSIFICATION = ("accuracy",)
REGRESSION = ("spearman", "pearson")


class Row(NamedTuple):
    """One row as it is written.

    Attributes:
        line: Its place in the file, counted from 1.
        first: The text.
        second: The second text of a pair, or None.
        label: The label, or None where it is unknown.
    """

    line: int
    first: str
    second: str | None
    label: str | None


@dataclass(frozen=True)
class Labelling:
    """What labels mean.

    Attributes:
        regression: Whether labels are values.
        values: Of classes, as they are written, in the order of their numbers; when empty, the
            labels of the file itself, sorted.
        names: Of classes, for people; `values` when empty.
        label_range: Of a regression; when None, from the lowest to the highest value of the file.
        metrics: The headline first; when empty, accuracy, or Spearman and Pearson.
    """

    regression: bool = False
    values: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ()


def assemble(name: str, rows: Sequence[Row], labelling: Labelling, where: str) -> TextSet:
    """A set from rows, all of them with a label or none.

    Raises:
        InputError: For no row, an empty text, or a label that is missing or outside the set.
    """
    if not rows:
        raise InputError("the file has no row", where=where, fix="give one labelled text or more")
    for row in rows:
        _check_texts(row, where)
    labels = None if all(r.label is None for r in rows) else _read_labels(rows, labelling, where)
    given = labelling.metrics or (REGRESSION if labelling.regression else CLASSIFICATION)
    known = labels or _Labels(None, labelling.names or labelling.values, labelling.label_range)
    return TextSet(
        name,
        tuple((row.first, row.second) for row in rows),
        known.tensor,
        known.names,
        given,
        known.label_range,
    )


def decode(data: bytes, where: str) -> str:
    """A text file's content, without its byte-order mark.

    Raises:
        DamagedFileError: For bytes that are not UTF-8, with the line they are in.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DamagedFileError(
            f"byte {data[error.start]:#04x} is not UTF-8 text",
            where=f"{where}, line {line}",
            fix="save the file as UTF-8",
        ) from None


class _Labels(NamedTuple):
    tensor: Tensor | None
    names: tuple[str, ...]
    label_range: tuple[float, float] | None


def _check_texts(row: Row, where: str) -> None:
    for which, text in (("text", row.first), ("second text", row.second)):
        if text is not None and not text.strip():
            raise InputError(
                f"the {which} is empty",
                where=f"{where}, line {row.line}",
                fix="fill it in, or remove the row",
            )


def _read_labels(rows: Sequence[Row], labelling: Labelling, where: str) -> _Labels:
    written = [_label_of(row, where) for row in rows]
    if labelling.regression:
        numbers = [_number(t, r.line, where) for t, r in zip(written, rows, strict=True)]
        low, high = labelling.label_range or (min(numbers), max(numbers))
        for number, row in zip(numbers, rows, strict=True):
            if not low <= number <= high:
                raise InputError(
                    f"label {number:g} is outside the range {low:g}..{high:g}",
                    where=f"{where}, line {row.line}",
                    fix="correct it, or widen label_range",
                )
        return _Labels(torch.tensor(numbers, dtype=torch.float32), (), (low, high))
    values = labelling.values or _distinct(written, where)
    place = {value: i for i, value in enumerate(values)}
    for value, row in zip(written, rows, strict=True):
        if value not in place:
            raise unknown("label", value, values, where=f"{where}, line {row.line}")
    classes = torch.tensor([place[value] for value in written])
    return _Labels(classes, labelling.names or values, None)


def _label_of(row: Row, where: str) -> str:
    if row.label is None or not row.label.strip():
        raise InputError(
            "the label is missing",
            where=f"{where}, line {row.line}",
            fix="fill it in, or remove the row",
        )
    return row.label.strip()


def _number(text: str, line: int, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"label {text!r} is not a finite number",
            where=f"{where}, line {line}",
            fix="correct it, or read the labels as classes",
        )
    return value


def _distinct(written: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes of a file: whole numbers by value, anything else by code point."""
    values = sorted(set(written))
    try:
        return tuple(sorted(values, key=int))
    except ValueError:
        pass
    try:
        numbers = [float(v) for v in values]
    except ValueError:
        return tuple(values)
    example = next((v for v, x in zip(values, numbers, strict=True) if not x.is_integer()), "")
    if example:
        shown = example if len(example) < 30 else example[:27] + "..."
        raise InputError(
            f"labels such as {shown!r} are values, not classes",
            where=where,
            fix="read them with regression=True (--columns.regression true)",
        )
    # Whole numbers as other programs write them: 0.0, 1.0.
    ordered = sorted(zip(numbers, values, strict=True))
    for (number, one), (next_number, other) in pairwise(ordered):
        if number == next_number:
            raise InputError(
                f"the labels {one!r} and {other!r} are the same number",
                where=where,
                fix="write every class in one way",
            )
    return tuple(value for _, value in ordered)
