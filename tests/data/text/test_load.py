"""`ltdi.data.text.load`: one call for all sources; the hub is played by a stub."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltdi.data.text import Columns, hub, load
from ltdi.errors import InputError

from ..conftest import write

SST = b"sentence\tlabel\ngood\t1\nbad\t0\n"


def test_glue_by_name_and_files_by_path(tmp_path: Path) -> None:
    place = write(tmp_path, {"g/SST-2/train.tsv": SST, "g/SST-2/dev.tsv": SST})
    assert list(load("SST-2", place)) == ["train", "dev"]
    write(tmp_path, {"mine.csv": b"text,label\na,x\nb,y\n"})
    assert load(tmp_path / "mine.csv")["all"].label_names == ("x", "y")


@pytest.mark.parametrize(
    ("name", "message"),
    [("sst-3", "did you mean 'sst-2'"), ("nowhere.csv", "cannot be read"), ("no.zip", "no such")],
)
def test_what_is_not_there(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(name)


def test_a_path_needs_no_data_dir_and_a_task_does(tmp_path: Path) -> None:
    write(tmp_path, {"mine.csv": b"text,label\na,x\nb,y\n", "mine.xml": b""})
    with pytest.raises(InputError, match="both a path"):
        load(tmp_path / "mine.csv", tmp_path)
    with pytest.raises(InputError, match="GLUE is not embedded"):
        load("sst-2")
    with pytest.raises(InputError, match=r"unknown file type '\.xml'"):
        load(tmp_path / "mine.xml")


class FakePart(list[dict[str, Any]]):
    """Rows with features, as a `datasets.Dataset` has them."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None) -> None:
        super().__init__(rows)
        label = SimpleNamespace(names=names) if names else SimpleNamespace()
        self.features = {"text": SimpleNamespace(), "label": label}


def pretend(monkeypatch: pytest.MonkeyPatch, parts: Any) -> list[tuple[Any, ...]]:
    """Install a module `datasets`; returns what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, revision: str | None = None) -> Any:
        calls.append((name, config, revision))
        if isinstance(parts, Exception):
            raise parts
        return parts

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_the_hubs_own_classes_and_its_unknown_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["bad", "good"]
    parts = {
        "test": FakePart([{"text": "c", "label": -1}], names),
        "train": FakePart([{"text": "a", "label": 1}, {"text": "b", "label": 0}], names),
    }
    calls = pretend(monkeypatch, parts)
    found = load("hub:owner/films:small")
    assert calls == [("owner/films", "small", None)]
    assert found["train"].name == "films-train"
    assert found["train"].label_names == ("bad", "good")
    assert found["train"].targets.tolist() == [1, 0]
    assert found["test"].labels is None


def test_labels_without_names_take_the_classes_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "train": FakePart([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], None),
        "validation": FakePart([{"text": "c", "label": "y"}], None),
    }
    pretend(monkeypatch, parts)
    assert hub.load("films", Columns())["validation"].targets.tolist() == [1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (OSError("no route"), "cannot load 'films' from the hub: no route"),
        ({"train": FakePart([{"txt": "a", "label": 0}], None)}, r"column 'text'[\s\S]*'txt'"),
        ({"train": FakePart([{"text": "", "label": 0}], None)}, r"empty[\s\S]*train, line 1"),
        (
            {"train": FakePart([{"text": "a", "label": 5}], ["no", "yes"])},
            r"unknown label '5'[\s\S]*train, line 1",
        ),
    ],
)
def test_what_the_hub_cannot_give(
    monkeypatch: pytest.MonkeyPatch, parts: Any, message: str
) -> None:
    pretend(monkeypatch, parts)
    with pytest.raises(InputError, match=message):
        hub.load("films", Columns())


def test_the_library_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets[\s\S]*pip install datasets"):
        hub.load("films", Columns())
