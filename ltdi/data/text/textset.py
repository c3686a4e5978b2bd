"""Texts or pairs of texts, with classes or values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.data.text.metrics import check_metric
from ltdi.errors import InputError

Text = tuple[str, str | None]


@dataclass(frozen=True, eq=False)
class TextSet:
    """Labelled texts of one task.

    Attributes:
        name: The source, for messages and reports.
        texts: n texts, each with a second one or None; all alike.
        labels: int64 [n] classes; float32 [n] values of a regression; None where unknown.
        label_names: One per class; empty for a regression.
        metrics: Keys of `ltdi.data.text.metrics.METRICS`, the headline first.
        label_range: Of a regression, the lowest and the highest value.

    Raises:
        InputError: When the parts do not fit together, a text is empty, or there is none.
    """

    name: str
    texts: tuple[Text, ...]
    labels: Tensor | None
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    label_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check texts, labels and metrics."""
        self._check_texts()
        self._check_range()
        if len(self.label_names) == 1 or len(set(self.label_names)) < len(self.label_names):
            raise self._error(
                f"a task has two classes or more, of different names, got {self.label_names[:5]}",
                "give rows of two classes or more, or read the labels as values of a regression",
            )
        if not self.metrics:
            raise self._error("no metric is given", "name one of ltdi.data.text.metrics.METRICS")
        for metric in self.metrics:
            check_metric(metric, regression=self.regression)
        if self.labels is not None:
            self._check_labels(self.labels)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    @property
    def regression(self) -> bool:
        """Whether labels are values."""
        return not self.label_names

    @property
    def outputs(self) -> int:
        """Outputs of a classifier: one per class, one for a regression."""
        return len(self.label_names) or 1

    @property
    def pairs(self) -> bool:
        """Whether each text has a second one."""
        return self.texts[0][1] is not None

    @property
    def metric(self) -> str:
        """The headline metric."""
        return self.metrics[0]

    @property
    def targets(self) -> Tensor:
        """What a model is fitted to: classes int64 [n], or values float32 [n] scaled to 0..1.

        In their own units, values of a wide range take an optimiser most of its steps to reach.

        Raises:
            InputError: If there are no labels.
        """
        if self.labels is None:
            raise self._error("there are no labels", "use the part train or dev")
        if self.label_range is None:
            return self.labels
        low, high = self.label_range
        return (self.labels - low) / (high - low)

    def select(self, rows: Sequence[int] | Tensor) -> TextSet:
        """The given rows, in the given order.

        Raises:
            InputError: For a row that is not there, or no row at all.
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        if not len(index) or int(index.min()) < 0 or int(index.max()) >= len(self):
            raise self._error(
                f"rows must be one or more of 0..{len(self) - 1}, got {index.tolist()[:5]}", ""
            )
        texts = tuple(self.texts[i] for i in index.tolist())
        labels = None if self.labels is None else self.labels[index]
        return replace(self, texts=texts, labels=labels)

    def _check_texts(self) -> None:
        if not self.texts:
            raise self._error("there is no text", "give one row or more")
        pairs = self.pairs
        for number, (first, second) in enumerate(self.texts):
            if (second is not None) != pairs:
                raise self._error(f"text {number} is {'single' if pairs else 'a pair'}", "")
            if not first.strip() or (second is not None and not second.strip()):
                raise self._error(f"text {number} is empty", "remove it or fill it in")

    def _check_labels(self, labels: Tensor) -> None:
        wanted = torch.float32 if self.regression else torch.int64
        if labels.dtype != wanted or labels.shape != (len(self.texts),):
            raise self._error(
                f"labels must be {wanted} [{len(self.texts)}], "
                f"got {labels.dtype} {list(labels.shape)}",
                "",
            )
        low, high = self.label_range or (0, len(self.label_names) - 1)
        # Written so that NaN is found too.
        outside = ~((labels >= low) & (labels <= high))
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise self._error(
                f"label {labels[first].item():g} of text {first} is outside {low:g}..{high:g}", ""
            )

    def _check_range(self) -> None:
        given = self.label_range
        if self.regression == (given is None):
            raise self._error("a regression, and nothing else, has a label range", "")
        if given and not (-math.inf < given[0] < given[1] < math.inf):
            raise self._error(
                f"the label range {given[0]:g}..{given[1]:g} is empty or not finite",
                "give the lowest and the highest value that a label can have",
            )

    def _error(self, what: str, fix: str) -> InputError:
        return InputError(what, where=f"TextSet {self.name!r}", fix=fix)
