"""`ltdi.data.text.table`: a user's JSONL, CSV and TSV files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdi.data.text import Columns, TextSet, load, table
from ltdi.errors import DamagedFileError, InputError

from ..conftest import write, zipped

# A text may hold any character but those that no file can carry.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda t: bool(t.strip()) and "\0" not in t and "\r" not in t
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["yes", "no"])), min_size=1, max_size=6)
PAIR = Columns("q", "a", "y", label_names=("no", "yes"))


def as_csv(rows: list[tuple[str, str, str]], delimiter: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(
        [("y", "q", "a"), *((y, q, a) for q, a, y in rows)]
    )
    return out.getvalue()


def as_jsonl(rows: list[tuple[str, str, str]]) -> str:
    return "".join(json.dumps({"q": q, "a": a, "y": y}) + "\n" for q, a, y in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@given(rows=ROWS)
@pytest.mark.parametrize("suffix", table.SUFFIXES)
def test_what_was_written_is_read(
    folder: Path, suffix: str, rows: list[tuple[str, str, str]]
) -> None:
    text = (
        as_jsonl(rows) if suffix == ".jsonl" else as_csv(rows, {".csv": ",", ".tsv": "\t"}[suffix])
    )
    file = folder / f"mine{suffix}"
    file.write_bytes(text.encode())
    found = table.load(file, PAIR)
    assert found.name == "mine"
    assert found.texts == tuple((q, a) for q, a, _ in rows)
    assert found.targets.tolist() == [("no", "yes").index(y) for _, _, y in rows]


def read(tmp_path: Path, text: str, name: str = "t.csv", columns: Columns | None = None) -> TextSet:
    (tmp_path / name).write_bytes(text.encode())
    return table.load(tmp_path / name, columns or Columns())


def test_a_spreadsheet_with_a_decimal_comma_writes_semicolons(tmp_path: Path) -> None:
    found = read(tmp_path, 'text;label\n"a; b, c";x\nd;y\n')
    assert [text for text, *_ in found.texts] == ["a; b, c", "d"]


@pytest.mark.parametrize(
    "text",
    [
        'text;label\nd;x\n"e,;";y\n',
        '\r\n\ntext;label\nd;x\n"e,;";y\n',
        'sep=;\r\ntext;label\nd;x\n"e,;";y\n',
        'text;label;"no, comma"\nd;x;1\n"e,;";y;2\n',
        'text,label,"no; semicolon\n;"\nd,x,1\n"e,;",y,2\n',
        "SEP=|\ntext|label\nd|x\ne,;|y\n",
    ],
)
def test_the_delimiter_is_that_of_the_header_outside_quotes(tmp_path: Path, text: str) -> None:
    assert [first for first, *_ in read(tmp_path, text).texts] == ["d", "e,;"]


def test_lines_are_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"text is empty[\s\S]*line 4"):
        read(tmp_path, "sep=;\ntext;label\na;x\n;y\n")


def test_classes_are_sorted_and_numbers_by_value(tmp_path: Path) -> None:
    found = read(tmp_path, "label,text\n10,a\n9,b\n10,c\n")
    assert (found.label_names, found.targets.tolist()) == (("9", "10"), [1, 0, 1])
    found = read(tmp_path, "text,label\na,pos\nb,neg\n")
    assert (found.label_names, found.targets.tolist()) == (("neg", "pos"), [1, 0])
    found = read(tmp_path, "text,label\na,10.0\nb,9.0\n")  # as pandas writes whole numbers
    assert (found.label_names, found.targets.tolist()) == (("9.0", "10.0"), [1, 0])
    found = read(tmp_path, '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}', "t.jsonl")
    assert (found.label_names, found.targets.tolist()) == (("0", "1"), [1, 0])


def test_values_have_the_range_of_the_file_or_the_given_one(tmp_path: Path) -> None:
    text = "text,label\na,1\nb,3\nc,2\n"
    found = read(tmp_path, text, columns=Columns(regression=True))
    assert found.label_range == (1.0, 3.0)
    assert found.metrics == ("spearman", "pearson")
    assert found.targets.tolist() == [0.0, 1.0, 0.5]
    wide = Columns(regression=True, label_range=(-1.0, 3.0), metrics=("pearson",))
    found = read(tmp_path, text, columns=wide)
    assert (found.targets.tolist(), found.metrics) == ([0.5, 1.0, 0.75], ("pearson",))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "txet,label\na,x\n", r"column 'text'[\s\S]*line 1[\s\S]*did you mean 'txet'"),
        (
            "t.csv",
            "text,labels\na,x\n",
            r"column 'label'[\s\S]*--columns\.label; did you mean 'labels'",
        ),
        ("t.csv", "text,label\na,x\nb\n", r"1 columns instead of 2[\s\S]*line 3"),
        ("t.csv", 'text,label\n"a\nb",x\n,y\n', r"the text is empty[\s\S]*line 4"),
        ("t.csv", 'text,label\na,x\n"b,y\n', r"cannot be read[\s\S]*line 3"),
        ("t.csv", "text,label\na,x\nb, \n", r"the label is missing[\s\S]*line 3"),
        ("t.csv", "text,label\na,0.5\nb,1\n", r"labels such as '0\.5' are values[\s\S]*regression"),
        ("t.csv", "text,label\na,x\n", "two classes or more"),
        ("t.csv", "text,label,text\na,x,b\n", r"column is there twice[\s\S]*line 1"),
        ("t.csv", "text,label\n", "the file has no row"),
        ("t.csv", "", "the file has no row"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text"}\n', r"not valid JSON[\s\S]*line 2"),
        (
            "t.jsonl",
            '{"text": "a", "label": 1}\n["a"]\n',
            r"a JSON list, not an object[\s\S]*line 2",
        ),
        ("t.jsonl", '{"text": 3, "label": 1}\n', r"column 'text' holds int[\s\S]*line 1"),
        (
            "t.jsonl",
            '{"text": "a", "label": null}\n{"text": "b", "label": "x"}',
            "label is missing",
        ),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"column 'label'[\s\S]*line 2"),
        ("t.jsonl", '{"text": "a", "label": [1]}\n', r"holds a list, not a label[\s\S]*line 1"),
        ("t.jsonl", '{"text": "\\ud800", "label": 1}\n', r"half a character[\s\S]*line 1"),
        ("t.jsonl", "[" * 100_000, r"not valid JSON[\s\S]*line 1"),
        ("t.jsonl", '{"label": ' + "1" * 5_000 + "}", r"not valid JSON[\s\S]*line 1"),
        ("t.csv", "text,label\na,1\nb,1.0\n", r"'1' and '1\.0' are the same number"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, name)


def test_a_label_outside_the_set_brings_the_nearest(tmp_path: Path) -> None:
    columns = Columns(label_names=("negative", "positive"))
    with pytest.raises(InputError, match=r"label 'positives'[\s\S]*line 2[\s\S]*mean 'positive'"):
        read(tmp_path, "text,label\na,positives\n", columns=columns)
    ranged = Columns(regression=True, label_range=(0.0, 1.0))
    with pytest.raises(InputError, match=r"label 2 is outside the range 0\.\.1[\s\S]*line 2"):
        read(tmp_path, "text,label\na,2\n", columns=ranged)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        table.load(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"unknown file type '\.txt'"):
        read(tmp_path, "", "t.txt")
    (tmp_path / "t.csv").write_bytes(b"text,label\na,x\n\xe9,y\n")
    with pytest.raises(DamagedFileError, match=r"0xe9 is not UTF-8[\s\S]*line 3"):
        table.load(tmp_path / "t.csv")


PARTS = {
    "mine/train.csv": b"\xef\xbb\xbftext,label\na,x\nb,y\nc,z\n",
    "mine/valid.jsonl": b'{"text": "d", "label": "z"}\n',
    "mine/test.tsv": b"text\ne\n",
    "mine/notes.txt": b"",
}


def test_parts_share_the_classes_of_train(tmp_path: Path) -> None:
    for place in (write(tmp_path / "w", PARTS), zipped(tmp_path / "mine.zip", PARTS)):
        parts = load(place)
        assert list(parts) == ["train", "dev", "test"]
        assert {p.label_names for p in parts.values()} == {("x", "y", "z")}
        assert parts["dev"].targets.tolist() == [2]
        assert parts["test"].labels is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mine/valid.jsonl": b'{"text": "d", "label": "w"}\n'}, "unknown label 'w'"),
        ({"mine/valid.jsonl": b'{"text": "d"}\n'}, "unknown column 'label'"),
        ({"mine/dev.csv": b""}, "the part 'dev' is there twice"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, PARTS | changes))
    with pytest.raises(InputError, match="there is no train file among 1 files"):
        load(write(tmp_path / "other", {"dev.csv": PARTS["mine/train.csv"]}))
    with pytest.raises(InputError, match=r"'\.\.'"):
        load(zipped(tmp_path / "unsafe.zip", {"../train.csv": b"text,label\na,x\n"}))
