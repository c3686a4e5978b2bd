"""Text sets of the hub, through the `datasets` library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltdi.data.text.rows import assemble
from ltdi.data.text.table import Columns, rows_of
from ltdi.data.text.textset import TextSet
from ltdi.errors import InputError
from ltdi.optional import optional

_UNKNOWN = "-1"  # what the hub writes for a label that was kept back


def load(
    name: str, columns: Columns, *, config: str | None = None, revision: str | None = None
) -> dict[str, TextSet]:
    """All parts of a data set of the hub, under the hub's names for them.

    Classes are the hub's own where it names them; `config` is a configuration of the set, such as
    "rte".

    Raises:
        InputError: If `datasets` is not installed or cannot load the set, and as
            `ltdi.data.text.table.load`, with rows for lines.
    """
    datasets = optional("datasets", purpose="a data set of the hub", package="datasets")
    try:
        # Never code of the set's own.
        parts = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load {name!r} from the hub: {str(error).splitlines()[0]}",
            where="datasets",
            fix="check its name and configuration, and that the hub can be reached; or give files",
        ) from None
    out: dict[str, TextSet] = {}
    for part in sorted(parts, key=lambda p: str(p) != "train"):
        known = columns.like(out["train"]) if "train" in out else columns
        out[str(part)] = _read(name, str(part), parts[part], known)
    return out


def _read(name: str, part: str, rows: Any, columns: Columns) -> TextSet:
    names = getattr(rows.features.get(columns.label), "names", None)
    where = f"{name}, {part}"

    read = rows_of(enumerate(rows, 1), columns, where, labelled=part != "test")
    labelling = columns.labelling
    if names:
        labelling = replace(
            labelling, values=tuple(map(str, range(len(names)))), names=tuple(names)
        )
        if all(row.label == _UNKNOWN for row in read):
            read = [row._replace(label=None) for row in read]
    return assemble(f"{name.rpartition('/')[2]}-{part}", read, labelling, where)
