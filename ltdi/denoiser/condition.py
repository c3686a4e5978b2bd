"""Task embeddings: what the denoiser is told about a task.

A `Condition` has one vector for the task and one for each of its classes. Encoders are invariant
to the order of a class's samples and equivariant to the order of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """Embedding of B tasks.

    Attributes:
        task: [B, width].
        classes: [B, way, width].
    """

    task: Tensor
    classes: Tensor


class SetEncoder(nn.Module):
    """Deep-sets encoder over the support's backbone features (Zaheer et al., 2017).

    A class is described by its mean feature, its mean non-linear embedding, the spread of its
    samples and how many they are; the task by the mean over its classes.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.centre = nn.Buffer(torch.zeros(features))
        self.scale = nn.Buffer(torch.ones(()))
        self.embed = nn.Sequential(nn.Linear(features, width), nn.GELU())
        self.mix = nn.Linear(width + 2 * features + 1, width)
        self.task = nn.Linear(width, width)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Fit the input standardisation to features [..., D] of the training classes."""
        flat = features.reshape(-1, features.shape[-1])
        self.centre.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, support: Tensor, mask: Tensor) -> Condition:
        """Embed tasks.

        Args:
            support: [B, way, shot, D] features, anything where the mask is 0.
            mask: [B, way, shot] 1 for a real sample, 0 for padding; at least one 1 per class.
        """
        keep = mask.unsqueeze(-1)
        # Not only multiplied away: 0 * inf and 0 * nan would reach the class.
        x = torch.where(keep > 0, (support - self.centre) / self.scale, 0.0)
        count = keep.sum(-2)
        mean = (x * keep).sum(-2) / count
        spread = ((x - mean.unsqueeze(-2)).square() * keep).sum(-2) / count
        deep = (self.embed(x) * keep).sum(-2) / count
        parts = [deep, mean, (spread + 1e-6).sqrt(), count.log()]
        classes = self.mix(torch.cat(parts, -1))
        return Condition(self.task(classes.mean(-2)), classes)
