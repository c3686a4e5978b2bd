"""The paper's denoiser: a 1-D U-Net over the flat weight vector (section 5.1)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.denoiser.condition import Condition
from ltdi.denoiser.transformer import StepEmbedding
from ltdi.errors import MismatchError
from ltdi.weights import WeightSpace


class _Stage(nn.Module):
    """Two 1-D convolutions with a residual path; the context is added between them."""

    def __init__(self, inner: int, outer: int, context: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inner, outer, 3, padding=1)
        self.second = nn.Conv1d(outer, outer, 3, padding=1)
        self.norm = nn.GroupNorm(4, outer)
        self.context = nn.Linear(context, outer)
        self.skip = nn.Conv1d(inner, outer, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = F.silu(self.norm(self.first(x))) + self.context(context).unsqueeze(-1)
        out: Tensor = self.skip(x) + F.silu(self.second(h))
        return out


class UNet1d(nn.Module):
    """Convolutional denoiser for one fixed way; class conditions enter in the order of labels.

    Args:
        space: The weight space, whose way is fixed.
        condition_width: Width of the condition.
        steps: T.
        channels: Channels of the first stage; each further stage doubles them.
        levels: Number of halvings of the length.
    """

    def __init__(
        self,
        space: WeightSpace,
        *,
        condition_width: int,
        steps: int,
        channels: int = 32,
        levels: int = 3,
    ) -> None:
        super().__init__()
        self.way, c = space.way, 4 * channels
        self.of_time = StepEmbedding(c, steps)
        self.of_task = nn.Linear(condition_width * (1 + (space.way or 0)), c)
        sizes = [channels * 2**level for level in range(levels + 1)]
        self.entry = nn.Conv1d(1, channels, 3, padding=1)
        pairs = list(pairwise(sizes))
        self.down = nn.ModuleList(_Stage(a, b, c) for a, b in pairs)
        self.middle = _Stage(sizes[-1], sizes[-1], c)
        self.up = nn.ModuleList(_Stage(2 * b, a, c) for a, b in reversed(pairs))
        self.exit = nn.Conv1d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, condition: Condition, space: WeightSpace) -> Tensor:
        """Denoise [B, n]; see `TokenTransformer.forward`.

        Raises:
            MismatchError: If the tasks have another way than the network was built for.
        """
        if space.way != self.way:
            raise MismatchError(
                f"this U-Net generates {self.way}-way weights, the task has {space.way} classes",
                fix="use a token transformer, which serves any way, or train a U-Net for this way",
            )
        parts = [condition.task]
        if self.way is not None:
            parts.append(condition.classes.flatten(1))
        context = self.of_task(torch.cat(parts, -1)) + self.of_time(t)
        length = x.shape[-1]
        multiple = 2 ** len(self.down)
        h = self.entry(F.pad(x, (0, -length % multiple)).unsqueeze(1))
        skips = []
        for stage in self.down:
            h = stage(h, context)
            skips.append(h)
            h = F.avg_pool1d(h, 2)
        h = self.middle(h, context)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            h = stage(torch.cat([h.repeat_interleave(2, -1), skip], 1), context)
        out: Tensor = self.exit(h)
        return out.squeeze(1)[..., :length]
