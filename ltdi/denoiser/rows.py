"""A denoiser over the rows of a network: a token for each class, and one for each other layer.

What it is told about a task is the gradient of the support's loss at its last estimate, so that a
chain of several steps is a learned optimiser: each step goes along the gradient, seen through
learned preconditioners, and adds what many solved tasks know beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.denoiser.transformer import Block, StepEmbedding, silent
from ltdi.weights import WeightSpace

# Adam moves every entry of a matrix by its step size; from a start that is good already, many
# entries together must not move far.
_FINE = 0.03
# A step from the network's own estimate, in units of the first: that solves the support nearly.
_LATER = 0.01


@dataclass(frozen=True)
class Descent:
    """What the denoiser knows besides x_t and t, all in normalised units.

    Attributes:
        estimate: [B, n] its last x0, or zeros (the anchor) before the first step.
        gradient: [B, n] of the support's loss at the estimate.
        signal: [B] share of the target in x_t.
        stage: [B] i/k of the local target that is asked for.
        first: Whether the estimate is the anchor; of the gradient only the class rows are read
            there, because a head of zeros lets nothing through to the layers below.
    """

    estimate: Tensor
    gradient: Tensor
    signal: Tensor
    stage: Tensor
    first: bool = False


@dataclass(frozen=True)
class Opening:
    """What the first step from x_t = 0 is for all tasks alike; see `RowDenoiser.opening`.

    Attributes:
        context: [1, width].
        tokens: [1, layers - 1, width] of the layers below the head.
        step: [1, 1, 1] s of the head.
    """

    context: Tensor
    tokens: Tensor
    step: Tensor


class RowDenoiser(nn.Module):
    """x0-prediction of all weights of a network as a residual to a shared initialisation.

    A class is a token, and so is every other layer: the mean of its rows, each seen through its own
    place. The output of a layer's rows is write(h) + a x_t + b estimate - s A gradient B, where h
    is the transformer's view of the token at the row's place. A and B are learned and start as the
    identity (class rows share a scalar in place of A), and a, b, s start as 0, 1 and the step size
    of the initialisation, a hundredth of it from the second step on: an untrained network is
    gradient descent. Class rows carry no position, so permuting classes permutes them. In a space
    without class rows, where nets are generated without a condition, a, b, s start as 1, 0, 0.
    """

    def __init__(
        self, space: WeightSpace, *, steps: int, width: int = 64, depth: int = 1, heads: int = 4
    ) -> None:
        super().__init__()
        count = len(space.layers)
        # Typical size of a gradient's entries in each layer, in normalised units.
        self.size = nn.Buffer(torch.ones(count))
        # See `ltdi.generator.nets.NetTask`.
        self.doubt = nn.Buffer(torch.tensor(torch.inf))
        self.read, self.write = nn.ModuleList(), nn.ModuleList()
        self.layer, self.place = nn.ParameterList(), nn.ParameterList()
        self.left, self.right = nn.ParameterList(), nn.ParameterList()
        for layer in space.layers:
            self.read.append(nn.Linear(3 * layer.row, width))
            self.write.append(silent(width, layer.row))
            units = 1 if layer.per_class else layer.units
            self.layer.append(nn.Parameter(0.1 * torch.randn(1, width)))
            self.place.append(nn.Parameter(torch.randn(units, width)))
            self.left.append(nn.Parameter(torch.zeros(units, units)))
            self.right.append(nn.Parameter(torch.zeros(layer.row, layer.row)))
        self.of_time = StepEmbedding(width, steps, 2)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        # The coefficients a, b and s of every layer, as functions of the time.
        self.mix = silent(width, 3 * count)
        # Without classes there is no support: nothing is known but the noised weights.
        guided = space.way is not None
        self.fine = _FINE if guided else 1.0
        start = [0.0, 1.0, 1.0] if guided else [1.0, 0.0, 0.0]
        with torch.no_grad():
            self.mix.bias.copy_(torch.tensor(start).repeat_interleave(count))

    @torch.no_grad()
    def standardise(self, size: Tensor, step: Tensor) -> None:
        """Fit what an untrained network does to the initialisation.

        Args:
            size: [layers] size of gradients.
            step: [layers] step sizes of plain gradient descent. Both in normalised units.
        """
        self.size.copy_(size.clamp(min=1e-12))
        count = len(size)
        self.mix.bias[2 * count :].copy_(step * self.size)

    def forward(self, x: Tensor, t: Tensor, guide: Descent, space: WeightSpace) -> Tensor:
        """Normalised residual [B, n] to the initialisation, from x_t [B, n] at t [B]."""
        layers = space.layers
        context = self.of_time(t, guide.signal, guide.stage)
        mix = self.mix(context).unflatten(-1, (3, -1))
        # The linear estimate of theta from x_t when theta has unit variance: no noise at t = 0.
        linear = guide.signal[:, None] * x
        told = (linear, guide.estimate, guide.gradient)
        rows: list[Tensor] = []
        tokens, start = [], 0
        for i, layer in enumerate(layers):
            stop = start + layer.units * layer.row
            own = torch.stack([v[:, start:stop] for v in told], 1)
            own = own.unflatten(-1, (layer.units, layer.row))
            own = torch.cat([own[:, :2], _tamed(own[:, 2:], self.size[i])], 1)
            rows.append(own)
            read = self.read[i](own.transpose(1, 2).flatten(2)) * self.place[i]
            tokens.append(self.layer[i] + (read if layer.per_class else read.mean(1, keepdim=True)))
            start = stop
        written = self._written(torch.cat(tokens, 1), context, space)
        out = []
        for i, (layer, own, new) in enumerate(zip(layers, rows, written, strict=True)):
            noised, estimate, gradient = own.unbind(1)
            a, b, s = mix[:, :, i, None, None].unbind(1)
            whole = new + a * noised + b * estimate
            if layer.per_class and guide.first:
                whole = whole - s * self._along(gradient, i, True)
            elif not guide.first:
                whole = whole - _LATER * s * self._along(gradient, i, layer.per_class)
            out.append(whole.flatten(1))
        return torch.cat(out, -1)

    def _written(self, tokens: Tensor, context: Tensor, space: WeightSpace) -> list[Tensor]:
        """The transformer's part of every layer's rows, [B, units, row] each."""
        h = tokens
        for block in self.blocks:
            h = block(h, context)
        h = F.layer_norm(h, h.shape[-1:])
        counts = [layer.units if layer.per_class else 1 for layer in space.layers]
        parts = zip(h.split(counts, 1), self.place, self.write, strict=True)
        return [self.fine * write(part * place) for part, place, write in parts]

    def _along(self, gradient: Tensor, number: int, per_class: bool) -> Tensor:
        """A gradient B, for rows [B, units, row]."""
        left = self.left[number]
        along = gradient + self.fine * (gradient @ self.right[number])
        turned: Tensor = left * along if per_class else left @ along
        out: Tensor = along + self.fine * turned
        return out

    def opening(self, t: Tensor, signal: Tensor, stage: Tensor) -> Opening:
        """What the first step of a chain without noise has in common for all tasks; [1] each."""
        context = self.of_time(t, signal, stage)
        step = self.mix(context)[:, -1, None, None]
        tokens = [
            layer + (read.bias * place).mean(0, keepdim=True)
            for layer, read, place in zip(self.layer, self.read, self.place, strict=True)
        ]
        return Opening(context, torch.stack(tokens[:-1], 1), step)

    def begin(self, gradient: Tensor, opening: Opening, space: WeightSpace) -> Tensor:
        """`forward` at x_t = 0 from the initialisation, in a fraction of its time.

        Args:
            gradient: [B, class rows] of the head, at a head of zeros.
            opening: What `opening` gave for this step.
            space: Weight space, whose only per-class layer is the last.
        """
        head, number = space.layers[-1], len(space.layers) - 1
        rows = _tamed(gradient.unflatten(-1, (head.units, head.row)), self.size[number])
        read = self.read[number]
        assert isinstance(read, nn.Linear)
        # Of x_t, estimate and gradient only the last is not zero.
        seen = F.linear(rows, read.weight[:, 2 * head.row :], read.bias) * self.place[number]
        tokens = [opening.tokens.expand(len(rows), -1, -1), self.layer[number] + seen]
        written = self._written(torch.cat(tokens, 1), opening.context, space)
        written[-1] = written[-1] - opening.step * self._along(rows, number, True)
        return torch.cat([part.flatten(1) for part in written], -1)


def _tamed(gradient: Tensor, size: Tensor) -> Tensor:
    """A layer's gradient [..., units, row] in units of its size, but never much above one.

    The gradient of a support that is nearly solved spans orders of magnitude from task to task.
    """
    own = gradient.square().mean((-2, -1), keepdim=True)
    return gradient * (2 / (own + size.square())).sqrt()
