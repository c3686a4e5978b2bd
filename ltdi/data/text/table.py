"""A user's own texts in JSONL, CSV or TSV files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ltdi.data.archive import open_tree, stem_of
from ltdi.data.text.rows import Labelling, Row, assemble, decode
from ltdi.data.text.textset import TextSet
from ltdi.errors import InputError, unknown

SUFFIXES = (".csv", ".jsonl", ".tsv")
# File names of the parts, without suffix.
_PARTS = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}
_Record = tuple[int, dict[str, Any]]
_ADVICE = "say which column holds the {role} with --columns.{role}"
# The first line that is not blank; within quotes a line may end.
_HEADER = re.compile(r'\s*(?:"[^"]*"|[^"\r\n])*')
_QUOTED = re.compile(r'"[^"]*"')
# Excel's way of telling the delimiter.
_TOLD = re.compile(r"sep=([,;|\t])\r?\n", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and how labels are read.

    Attributes:
        text: Column of the text.
        text2: Column of the second text; empty for single texts.
        label: Column of the label.
        regression: Whether labels are values, not classes.
        label_names: The classes, in the order of their numbers; when empty, those of the file.
        label_range: Lowest and highest value of a regression; when None, those of the file.
        metrics: The headline first; by default accuracy, or Spearman's and Pearson's correlation.
    """

    text: str = "text"
    text2: str = ""
    label: str = "label"
    regression: bool = False
    label_names: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ()

    @property
    def labelling(self) -> Labelling:
        """What labels mean."""
        return Labelling(self.regression, self.label_names, (), self.label_range, self.metrics)

    def like(self, known: TextSet) -> Columns:
        """The same columns, with the classes or the range of another part of the task."""
        return replace(self, label_names=known.label_names, label_range=known.label_range)


_COLUMNS = Columns()


def load(path: str | os.PathLike[str], columns: Columns = _COLUMNS) -> TextSet:
    """Read one file: JSON objects line by line, or CSV or TSV with a header line and quoting.

    Args:
        path: A `.jsonl`, `.csv` (commas, or semicolons) or `.tsv` file in UTF-8.
        columns: Which columns hold what.

    Raises:
        InputError: For another suffix, a missing column, a line that cannot be parsed, an empty
            text, or a label that is missing or outside the set; all with the line.
        DamagedFileError: For a file that is not UTF-8.
    """
    file = Path(path)
    check_suffix(file.name)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(file), fix="check the path"
        ) from None
    return _parse(file.stem, data, file.suffix.lower(), columns, str(file))


def load_parts(path: str | os.PathLike[str], columns: Columns = _COLUMNS) -> dict[str, TextSet]:
    """Read `train`, `dev` (or `val`, `validation`) and `test` files of a directory or an archive.

    Classes, or the range of values, are those of the part "train". "test" may lack the labels.

    Raises:
        InputError: If there is no train file, a part is there twice, and as `load`.
        DamagedFileError: For an unreadable archive, or a file that is not UTF-8.
    """
    with open_tree(path) as tree:
        files: dict[str, str] = {}
        for name in tree.names:
            part = _PARTS.get(PurePosixPath(name).stem.lower())
            if part is None or PurePosixPath(name).suffix.lower() not in SUFFIXES:
                continue
            if part in files:
                raise InputError(
                    f"the part {part!r} is there twice: {files[part]!r} and {name!r}",
                    where=tree.where,
                    fix="leave one of them",
                )
            files[part] = name
        if "train" not in files:
            raise InputError(
                f"there is no train file among {len(tree.names)} files",
                where=tree.where,
                fix=f"name it train.jsonl, train.csv or train.tsv; known: {', '.join(SUFFIXES)}",
            )
        sets: dict[str, TextSet] = {}
        for part in sorted(files, key=("train", "dev", "test").index):
            known = columns.like(sets["train"]) if sets else columns
            name = files[part]
            sets[part] = _parse(
                f"{stem_of(Path(path).name)}-{part}",
                tree.read(name),
                PurePosixPath(name).suffix.lower(),
                known,
                tree.label(name),
                labelled=part != "test",
            )
        return sets


def check_suffix(name: str) -> None:
    """Refuse a file whose type is not read here.

    Raises:
        InputError: With the known suffixes.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise unknown("file type", suffix or name, SUFFIXES, where=name)


def rows_of(
    records: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    where: str,
    *,
    labelled: bool = True,
) -> list[Row]:
    """Records with their lines as rows.

    Raises:
        InputError: For a missing column, or a text that is no text.
    """
    rows = []
    for line, record in records:
        at = f"{where}, line {line}"
        wanted = labelled or columns.label in record
        label = _cell(record, "label", columns.label, at) if wanted else None
        if isinstance(label, list | dict):
            raise InputError(
                f"column {columns.label!r} holds a {type(label).__name__}, not a label",
                where=at,
                fix="write one label in each row, as text or a number",
            )
        rows.append(
            Row(
                line,
                _text(record, "text", columns.text, at),
                _text(record, "text2", columns.text2, at) if columns.text2 else None,
                None if label is None else str(label),
            )
        )
    return rows


def _parse(
    name: str, data: bytes, suffix: str, columns: Columns, where: str, *, labelled: bool = True
) -> TextSet:
    text = decode(data, where)
    if suffix == ".jsonl":
        records = _jsonl(text, where)
    else:
        records = _csv(text, suffix, where, partial(check_header, columns, labelled=labelled))
    rows = rows_of(records, columns, where, labelled=labelled)
    return assemble(name, rows, columns.labelling, where)


def _jsonl(text: str, where: str) -> Iterator[_Record]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error).partition(";")[0])
            raise _unparsed(f"not valid JSON ({reason})", line, where) from None
        if not isinstance(record, dict):
            raise _unparsed(f"a JSON {type(record).__name__}, not an object", line, where)
        yield line, record


def _csv(
    text: str, suffix: str, where: str, check: Callable[[Sequence[str], str], None]
) -> Iterator[_Record]:
    found = _HEADER.match(text)
    first = _QUOTED.sub("", found[0] if found else "")
    # Spreadsheets in countries with a decimal comma write semicolons.
    comma = ";" if ";" in first and "," not in first else ","
    told = _TOLD.match(text)
    delimiter = told[1] if told else "\t" if suffix == ".tsv" else comma
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if told:
        next(reader)
    header: Sequence[str] = ()
    while True:
        line = reader.line_num + 1  # a quoted field may span several
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _unparsed(f"cannot be read ({error})", line, where) from None
        if not fields:
            continue
        if not header:
            header = fields
            check(header, f"{where}, line {line}")
            continue
        if len(fields) != len(header):
            raise _unparsed(f"{len(fields)} columns instead of {len(header)}", line, where)
        yield line, dict(zip(header, fields, strict=True))


def _unparsed(what: str, line: int, where: str) -> InputError:
    return InputError(what, where=f"{where}, line {line}", fix="repair the line")


def check_header(
    columns: Columns,
    header: Sequence[str],
    where: str,
    *,
    labelled: bool = True,
    advice: str = _ADVICE,
) -> None:
    """Refuse a header line that has a column twice, or lacks one of `columns`.

    `advice` is what to do about one that it lacks; in it "{role}" is what the column holds.
    """
    if len(set(header)) < len(header):
        raise InputError(
            f"a column is there twice: {', '.join(header)}", where=where, fix="repair the line"
        )
    roles = {"text": columns.text, "text2": columns.text2, "label": labelled and columns.label}
    for role, column in roles.items():
        if column:
            _check_column(header, role, column, where, advice)


def _check_column(
    known: Collection[str], role: str, column: str, where: str, advice: str = _ADVICE
) -> None:
    if column not in known:
        error = unknown("column", column, known, where=where)
        fix = f"{advice.format(role=role)}; {error.fix}"
        raise InputError(error.what, where=where, fix=fix)


def _cell(record: Mapping[str, Any], role: str, column: str, where: str) -> Any:
    _check_column(record.keys(), role, column, where)
    return record[column]


def _text(record: Mapping[str, Any], role: str, column: str, where: str) -> str:
    value = _cell(record, role, column, where)
    if not isinstance(value, str):
        raise InputError(
            f"column {column!r} holds {type(value).__name__}, not text",
            where=where,
            fix="choose the column of the text, or write it as a string",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"column {column!r} holds half a character, {value[error.start]!a}",
            where=where,
            fix="repair the text; JSON writes such characters as two escapes",
        ) from None
    return value
