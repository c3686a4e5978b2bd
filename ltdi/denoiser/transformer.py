"""A transformer over weight tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.denoiser.condition import Condition
from ltdi.weights import WeightSpace


def time_features(t: Tensor, steps: int, width: int) -> Tensor:
    """Sinusoidal features [B, width] of diffusion steps t [B], 0 <= t < steps."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(1000.0) / half))
    angle = (t.float() / steps * 1000.0)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class StepEmbedding(nn.Sequential):
    """What a network is told of a step [B, width]: its time, and what else is known of it."""

    def __init__(self, width: int, steps: int, facts: int = 0) -> None:
        super().__init__(nn.Linear(width + facts, width), nn.SiLU(), nn.Linear(width, width))
        self.steps, self.width = steps, width

    def forward(self, t: Tensor, *facts: Tensor) -> Tensor:
        """Diffusion steps t [B] and numbers [B] each -> [B, width]."""
        time = time_features(t, self.steps, self.width).to(next(self.parameters()).dtype)
        told = torch.cat([time, *(f.unsqueeze(-1) for f in facts)], -1)
        out: Tensor = super().forward(told)  # type: ignore[no-untyped-call]
        return out


def silent(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Pre-norm attention and MLP; scale, shift and gate come from the task (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = silent(width, 6 * width)

    def pace(self, context: Tensor) -> tuple[Tensor, ...]:
        """Shifts, scales and gates [B, 1, width] that a context [B, width] stands for."""
        out: Tensor = self.modulation(F.silu(context)).unsqueeze(1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = out.chunk(6, -1)
        return shift_a, 1 + scale_a, 1 + gate_a, shift_m, 1 + scale_m, 1 + gate_m

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens [B, N, width], context [B, width] -> [B, N, width]."""
        return self.run(x, self.pace(context))

    def run(self, x: Tensor, pace: tuple[Tensor, ...]) -> Tensor:
        """The same, given `pace` of the context; [width] each where all tasks share it."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = pace
        q, k, v = (
            self.qkv(_norm(x, scale_a, shift_a))
            .unflatten(-1, (3, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        h = _attend(q, k, v, fused=scale_a.ndim == 1).transpose(1, 2).flatten(-2)
        x = torch.addcmul(x, gate_a, self.out(h))
        return torch.addcmul(x, gate_m, self.mlp(_norm(x, scale_m, shift_m)))


def _attend(q: Tensor, k: Tensor, v: Tensor, *, fused: bool) -> Tensor:
    """Attention; under vmap the fused kernel would fall back to a loop over base learners."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer normalisation with a scale and a shift of the task, or [width] of all."""
    if scale.ndim == 1:
        return F.layer_norm(x, x.shape[-1:], scale, shift)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)


class TokenTransformer(nn.Module):
    """Denoiser over the tokens of a weight space, for any way.

    A class token carries the embedding of its class and no position, so permuting the classes of
    the condition permutes the generated rows. The output layer starts at zero.
    """

    def __init__(
        self,
        space: WeightSpace,
        *,
        condition_width: int,
        steps: int,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        places = int(space.tokens.position.max()) + 1
        self.read = nn.Linear(space.token_size, width)
        self.layer = nn.Embedding(len(space.layers), width)
        self.position = nn.Embedding(places, width)
        self.of_class = nn.Linear(condition_width, width)
        self.of_task = nn.Linear(condition_width, width)
        self.of_time = StepEmbedding(width, steps)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.write = silent(width, space.token_size)

    def forward(self, x: Tensor, t: Tensor, condition: Condition, space: WeightSpace) -> Tensor:
        """Denoise.

        Args:
            x: [B, n] noised weights.
            t: [B] diffusion steps.
            condition: Embedding of the B tasks.
            space: The weight space at the way of these tasks.

        Returns:
            [B, n].
        """
        layout = space.tokens
        h = self.read(space.tokenize(x))
        layer, position = (i.to(x.device) for i in (layout.layer, layout.position))
        h = h + self.layer(layer) + self.position(position)
        if space.way is not None:
            classes = self.of_class(condition.classes)
            if space.plain and len(layout.class_of) == classes.shape[1]:
                h = h + classes  # a token is a class, in their order
            else:
                h = h + F.pad(classes, (0, 0, 0, 1))[:, layout.class_of.to(x.device)]
        context = self.of_task(condition.task) + self.of_time(t)
        for block in self.blocks:
            h = block(h, context)
        return space.untokenize(self.write(F.layer_norm(h, h.shape[-1:])))
