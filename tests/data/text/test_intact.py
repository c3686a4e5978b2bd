"""Tasks that are made of texts without their labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltdi.data import text
from ltdi.data.text.intact import intact
from ltdi.errors import InputError

TEXTS = [(f"the {a} cat sat on a {b} mat", None) for a in "abcdef" for b in "uvwxyz"]


def differs_in_one_place(damaged: list[str], whole: list[str]) -> bool:
    if len(damaged) < len(whole):
        return any(damaged == [*whole[:i], *whole[i + 1 :]] for i in range(len(whole)))
    wrong = [i for i, (a, b) in enumerate(zip(damaged, whole, strict=True)) if a != b]
    if len(wrong) == 2:
        i, j = wrong
        return j == i + 1 and damaged[i : j + 1] == [whole[j], whole[i]]
    return len(wrong) == 1


def test_every_other_text_is_damaged_in_one_place() -> None:
    made = intact("mine", TEXTS)
    wholes = [a.split() for a, _ in TEXTS]
    labels = made.targets.tolist()
    assert made.label_names == ("damaged", "intact") and len(made) == len(TEXTS)
    assert sum(labels) == len(TEXTS) // 2
    kinds = set()
    for (words, second), label in zip(made.texts, labels, strict=True):
        assert second is None
        given = words.split()
        if label:
            assert given in wholes
        else:
            assert any(differs_in_one_place(given, whole) for whole in wholes)
            kinds.add((len(given), sorted(given) in [sorted(w) for w in wholes]))
    # A word is left out, two are exchanged, one is replaced.
    assert kinds == {(7, False), (8, True), (8, False)}
    assert intact("mine", TEXTS).texts == made.texts
    assert intact("mine", TEXTS, seed=1).texts != made.texts


def test_texts_of_pairs_are_taken_once_and_a_word_that_stands_twice_is_no_damage() -> None:
    made = intact("mine", [("so so so so so", "no no no no no"), ("no no no no no", "too short")])
    assert len(made) == 2
    (damaged,) = (a for (a, _), y in zip(made.texts, made.targets, strict=True) if y == 0)
    assert damaged not in ("so so so so so", "no no no no no")


def test_too_few_texts() -> None:
    with pytest.raises(InputError, match="1 of 2 different texts have 5 to 30 words"):
        intact("mine", [("one text of five words", None), ("short", None)])


def test_they_are_named_after_their_texts_and_glue_gives_its_test_part(tmp_path: Path) -> None:
    parts = text.load("intact:rule:tone")
    assert list(parts) == ["all"] and text.short_name("intact:rule:tone") == "intact-tone"
    assert text.origin("intact:rule:tone") == "tone" and text.origin("rule:tone") == ""
    assert "as it was written" in text.description("intact:rule:tone")
    folder = tmp_path / "QNLI"
    folder.mkdir()
    rows = [f"{i}\tis it number {i} of them ?\tit is number {i} of them ." for i in range(4)]
    (folder / "test.tsv").write_text("\n".join(["index\tquestion\tsentence", *rows]) + "\n")
    made = text.find("intact:qnli", tmp_path)["all"]
    assert made.name == "intact-qnli" and len(made) == 8
    with pytest.raises(InputError, match="tone"):
        text.load("intact:rule:tome")
