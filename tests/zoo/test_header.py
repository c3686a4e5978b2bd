"""`ltdi.zoo.header`: what a zoo was made with is checked before anything is added."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.errors import DamagedFileError, InputError, MismatchError
from ltdi.files import own_directory
from ltdi.weights import head_space
from ltdi.zoo import HEADER, Zoo
from tests.zoo.made import ABOUT, SPACE, D, create, make_bank


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", "null", '"zoo"', '{"schema": 1}', '{"schema": 1, "shards": []}']
)
def test_a_damaged_header_is_named(zoo: Zoo, content: str) -> None:
    (zoo.path / HEADER).write_text(content)
    with pytest.raises(DamagedFileError, match=r"zoo\.json"):
        Zoo.open(zoo.path)


def test_another_schema_is_refused(zoo: Zoo) -> None:
    header = json.loads((zoo.path / HEADER).read_text())
    (zoo.path / HEADER).write_text(json.dumps({**header, "schema": 99}))
    with pytest.raises(MismatchError, match="schema 99, this version reads 3"):
        Zoo.open(zoo.path)


def test_a_directory_that_is_not_a_zoo(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a zoo"):
            Zoo.open(path)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="left as it is"):
        create(tmp_path)
    own_directory(tmp_path / "g", "generator")
    with pytest.raises(InputError, match="holds a generator"):
        create(tmp_path / "g")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["thesis.tex"]


def test_the_same_settings_take_a_zoo_up(zoo: Zoo) -> None:
    assert create(zoo.path).shards == zoo.shards
    # The way may differ.
    assert create(zoo.path, head_space(D, 10)).shards == zoo.shards


def test_other_settings_weight_space_or_features_do_not(zoo: Zoo) -> None:
    before = {p.name: p.read_bytes() for p in zoo.path.iterdir()}
    with pytest.raises(MismatchError, match="seed = 1, now 2"):
        create(zoo.path, SPACE, None, {**ABOUT, "seed": 2})
    with pytest.raises(MismatchError, match=r"prepare = \{'lr': 0.1\}, now \{'lr': 0.2\}"):
        create(zoo.path, SPACE, None, {**ABOUT, "prepare": {"lr": 0.2}})
    with pytest.raises(MismatchError, match=r"weight\[3, 4\].*not weight\[3, 7\]"):
        create(zoo.path, head_space(7, 3))
    renamed = replace(make_bank(), classes=("x", "c1", "c2", "c3", "c4"))
    moved = replace(make_bank(), offsets=torch.tensor([0, 9, 16, 24, 32, 40]))
    for bank in (make_bank(seed=1), make_bank(classes=6), renamed, moved):
        with pytest.raises(MismatchError, match="other images"):
            create(zoo.path, SPACE, bank)
    assert before == {p.name: p.read_bytes() for p in zoo.path.iterdir()}


def test_features_that_only_round_differently_are_the_same(zoo: Zoo) -> None:
    bank = make_bank()
    create(zoo.path, SPACE, replace(bank, features=bank.features * (1 + 1e-3)))
