"""What the denoiser is told about a text task: statistics of its support rows, and a description.

Rows are seen through the frozen encoder (`ltdi.lora.pair_features`). A task has the mean of its
rows; an output has the correlation of its target with them, which serves classes (the indicator of
the class) and values of a regression alike, and is the same for any number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.data.text import Text
from ltdi.denoiser.condition import Condition
from ltdi.lora import Base, embed, pair_features


def row_features(base: Base, texts: Sequence[Text], *, max_length: int = 64) -> Tensor:
    """float32 [rows, 4 D + 1]: pair features, the text as a whole, and 1 for a pair.

    Raises:
        InputError: As `ltdi.lora.encode`.
    """
    parts = pair_features(base, texts, max_length=max_length)
    pairs = texts[0][1] is not None
    # A single text as a whole is what the first part of its pair features is already.
    whole = embed(base, texts, max_length=max_length) if pairs else parts[:, : base.width]
    return torch.cat([parts, whole, torch.full((len(texts), 1), float(pairs))], -1)


def describe(base: Base, description: str) -> Tensor:
    """[D + 1] embedding of a description and 1; zeros where there is none."""
    if not description.strip():
        return torch.zeros(base.width + 1)
    return torch.cat([embed(base, [(description, None)])[0], torch.ones(1)])


def one_hot(targets: Tensor, outputs: int) -> Tensor:
    """Targets [...] as float [..., outputs]: indicators of classes, or values as they are."""
    if targets.is_floating_point():
        return targets.unsqueeze(-1)
    return torch.nn.functional.one_hot(targets, outputs).float()


@dataclass(frozen=True)
class Facts:
    """Statistics of B tasks of as many outputs.

    Attributes:
        task: [B, F + 1] mean of row features, and 1 for a regression.
        outputs: [B, outputs, F] covariance of row features with each target, in units of the
            target's deviation.
        text: [B, D + 1] of `describe`.
    """

    task: Tensor
    outputs: Tensor
    text: Tensor


def facts(features: Tensor, targets: Tensor, outputs: int, text: Tensor) -> Facts:
    """Statistics of B tasks.

    Args:
        features: [B, rows, F] of `row_features`, projected or not.
        targets: [B, rows] classes or values.
        outputs: Of a head.
        text: [B, D + 1] of `describe`.
    """
    y = one_hot(targets, outputs)
    y = y - y.mean(1, keepdim=True)
    y = y / y.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
    mean = features.mean(1)
    covariance = y.mT @ (features - mean.unsqueeze(1)) / features.shape[1]
    value = features.new_full((len(features), 1), float(targets.is_floating_point()))
    return Facts(torch.cat([mean, value], -1), covariance, text)


def as_way(outputs: Tensor, way: int) -> Tensor:
    """What is known of outputs [B, w, F] for a task of another number of outputs.

    A value and two classes say the same of a text: the second class is where the value is high.
    Between others there is no such relation, and nothing is known.
    """
    if outputs.shape[1] == way:
        return outputs
    if (outputs.shape[1], way) == (1, 2):
        return torch.cat([-outputs, outputs], 1)
    if (outputs.shape[1], way) == (2, 1):
        return outputs[:, 1:]
    return outputs.new_zeros(len(outputs), way, outputs.shape[2])


class TextEncoder(nn.Module):
    """Embeds `Facts` of row features, of which it looks at `seen` principal directions."""

    def __init__(
        self, width: int, out: int, *, seen: int = 48, rows: bool = True, text: bool = True
    ) -> None:
        super().__init__()
        size = 4 * width + 1
        self.rows, self.text, self.seen = rows, text, seen
        self.centre = nn.Buffer(torch.zeros(size))
        self.directions = nn.Buffer(torch.zeros(seen, size))
        self.of_task = nn.Sequential(nn.Linear(seen + 1, out), nn.GELU(), nn.Linear(out, out))
        self.of_outputs = nn.Linear(seen, out, bias=False)
        self.spread = nn.Sequential(nn.Linear(out, out), nn.GELU(), nn.Linear(out, out))
        self.of_text = nn.Linear(width + 1, out)

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the principal directions of row features [rows, F] of the training tasks."""
        centre = features.mean(0)
        _, size, directions = torch.linalg.svd(features - centre, full_matrices=False)
        kept = min(self.seen, int((size > 1e-5 * size[0]).sum()))
        # The means of tasks are to be of size one; rows vary more than means do.
        scale = size[:kept].square().mean().div(len(features)).sqrt().clamp(min=1e-6)
        self.get_buffer("centre").copy_(centre)
        self.get_buffer("directions").zero_()[:kept] = directions[:kept] / scale

    def project(self, features: Tensor) -> Tensor:
        """Row features [..., F] -> [..., seen]; what `facts` is given."""
        return (features - self.get_buffer("centre")) @ self.get_buffer("directions").T

    def forward(self, task: Tensor, outputs: Tensor, text: Tensor) -> Condition:
        """Embed the fields of `Facts`."""
        each = self.of_outputs(outputs)
        whole = torch.zeros_like(each[:, 0])
        if self.rows:
            # Even in the outputs: two classes that change names are the same task.
            whole = self.of_task(task) + self.spread(each.square()).mean(1)
        else:
            each = torch.zeros_like(each)
        if self.text:
            whole = whole + self.of_text(text)
        return Condition(whole, each)
