"""`ltdi.data.text.TextSet`: parts that fit together, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltdi.data.text import TextSet
from ltdi.errors import InputError

CLASSES = TextSet(
    "films", (("good", None), ("bad", None)), torch.tensor([1, 0]), ("no", "yes"), ("accuracy",)
)
VALUES = TextSet(
    "pairs", (("a", "b"), ("c", "d")), torch.tensor([1.0, 4.0]), (), ("spearman",), (0.0, 5.0)
)


def test_what_a_set_says_of_itself() -> None:
    assert (len(CLASSES), CLASSES.outputs, CLASSES.pairs, CLASSES.regression) == (
        2,
        2,
        False,
        False,
    )
    assert (len(VALUES), VALUES.outputs, VALUES.pairs, VALUES.regression) == (2, 1, True, True)
    assert (CLASSES.metric, VALUES.metric) == ("accuracy", "spearman")


def test_targets_are_classes_or_values_scaled_to_one() -> None:
    assert CLASSES.targets.tolist() == [1, 0]
    assert VALUES.targets.tolist() == pytest.approx([0.2, 0.8])


def test_select_keeps_the_order_and_repeats() -> None:
    some = CLASSES.select([1, 0, 1])
    assert some.texts == (("bad", None), ("good", None), ("bad", None))
    assert some.targets.tolist() == [0, 1, 0]
    assert CLASSES.select(torch.arange(2)).texts == CLASSES.texts


@pytest.mark.parametrize("rows", [[], [2], [-1], [0, 5]])
def test_rows_that_are_not_there(rows: list[int]) -> None:
    with pytest.raises(InputError, match=r"rows must be one or more of 0\.\.1"):
        CLASSES.select(rows)


def test_a_set_without_labels_has_no_targets() -> None:
    unlabelled = TextSet("t", CLASSES.texts, None, ("no", "yes"), ("accuracy",))
    assert unlabelled.select([1]).labels is None
    with pytest.raises(InputError, match="there are no labels"):
        _ = unlabelled.targets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ()}, "there is no text"),
        ({"texts": (("a", None), (" \t", None))}, "text 1 is empty"),
        ({"texts": (("a", "b"), ("a", ""))}, "text 1 is empty"),
        ({"texts": (("a", "b"), ("a", None))}, "text 1 is single"),
        ({"texts": (("a", None), ("a", "b"))}, "text 1 is a pair"),
        ({"labels": torch.tensor([0, 2])}, r"label 2 of text 1 is outside 0\.\.1"),
        ({"labels": torch.tensor([-1, 1])}, r"label -1 of text 0 is outside 0\.\.1"),
        ({"labels": torch.tensor([0])}, r"labels must be torch.int64 \[2\], got torch.int64 \[1\]"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be torch.int64"),
        ({"label_names": ("yes", "yes")}, "two classes or more, of different names"),
        ({"label_names": ("yes",)}, "two classes or more"),
        ({"metrics": ()}, "no metric"),
        ({"metrics": ("accuracies",)}, "unknown metric 'accuracies'"),
        ({"metrics": ("accuracy", "pearson")}, "pearson is no metric of a classification"),
        ({"label_range": (0.0, 1.0)}, "a regression, and nothing else, has a label range"),
        ({"label_names": ()}, "a regression, and nothing else, has a label range"),
    ],
)
def test_parts_of_classes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TextSet(**{**vars(CLASSES), **changes})
    assert "films" in caught.value.where or "metric" in caught.value.where


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([1.0, 6.0])}, r"label 6 of text 1 is outside 0\.\.5"),
        ({"labels": torch.tensor([float("nan"), 1.0])}, r"label nan of text 0"),
        ({"labels": torch.tensor([1, 2])}, "labels must be torch.float32"),
        ({"label_range": (5.0, 5.0)}, r"range 5\.\.5 is empty"),
        ({"label_range": (0.0, float("inf"))}, "not finite"),
    ],
)
def test_parts_of_values_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextSet(**{**vars(VALUES), **changes})
