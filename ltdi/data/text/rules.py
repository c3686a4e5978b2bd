"""Text tasks made by rule: no download, and a tiny random model can learn them.

They are for tests and for trying things out; nothing about language can be learnt from them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ltdi.data.text.textset import Text, TextSet
from ltdi.errors import unknown

_GOOD = ("good", "great", "new")
_BAD = ("bad", "old", "no")
_FILL = (
    *("the", "a", "this", "that", "it", "was", "is", "and", "or", "of"),
    *("in", "on", "with", "they", "he", "she", "we", "all", "some", "more"),
)
_Draw = tuple[Text, float]


def _words(rng: torch.Generator, n: int) -> list[str]:
    return [_FILL[i] for i in torch.randint(len(_FILL), (n,), generator=rng).tolist()]


def _one(rng: torch.Generator, words: tuple[str, ...]) -> str:
    return words[int(torch.randint(len(words), (), generator=rng))]


def _tone(rng: torch.Generator, label: int) -> _Draw:
    words = _words(rng, 6)
    words[int(torch.randint(6, (), generator=rng))] = _one(rng, _GOOD if label else _BAD)
    return (" ".join(words), None), label


def _length(rng: torch.Generator, label: int) -> _Draw:
    return (" ".join(_words(rng, 10 if label else 4)), None), label


def _same(rng: torch.Generator, label: int) -> _Draw:
    (first, _), tone = _tone(rng, int(torch.randint(2, (), generator=rng)))
    (second, _), _ = _tone(rng, int(tone) if label else 1 - int(tone))
    return (first, second), label


def _amount(rng: torch.Generator, label: int) -> _Draw:
    good = int(torch.randint(5, (), generator=rng))
    words = [*_words(rng, 5), *(_one(rng, _GOOD) for _ in range(good))]
    order = torch.randperm(len(words), generator=rng).tolist()
    return (" ".join(words[i] for i in order), None), float(good)


TASKS: dict[str, Callable[[torch.Generator, int], _Draw]] = {
    "tone": _tone,
    "length": _length,
    "same": _same,
    "amount": _amount,
}
DESCRIPTIONS = {
    "tone": "is it good or bad",
    "length": "is it more",
    "same": "are the two the same",
    "amount": "all that is good",
}


def load(task: str, *, rows: int = 400, seed: int = 0) -> dict[str, TextSet]:
    """The parts "train" and "dev", half as many rows, of a task by rule.

    Raises:
        InputError: For an unknown task.
    """
    if task not in TASKS:
        raise unknown("task by rule", task, TASKS)
    rng = torch.Generator().manual_seed(seed + sorted(TASKS).index(task))
    parts = {}
    for part, n in (("train", rows), ("dev", rows // 2)):
        drawn = [TASKS[task](rng, i % 2) for i in range(n)]
        values = [y for _, y in drawn]
        regression = task == "amount"
        parts[part] = TextSet(
            f"{task}-{part}",
            tuple(text for text, _ in drawn),
            torch.tensor(values, dtype=torch.float32 if regression else torch.int64),
            () if regression else ("0", "1"),
            ("spearman", "pearson") if regression else ("accuracy",),
            (0.0, 4.0) if regression else None,
        )
    return parts
