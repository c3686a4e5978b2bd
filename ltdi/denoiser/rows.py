"""A denoiser over the units of a network: one token for each row [weight, bias].

What it is told about a task is the gradient of the support's loss at its last estimate, so that a
chain of several steps is a learned optimiser: each step goes along the gradient, seen through
learned preconditioners, and adds what many solved tasks know beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.denoiser.transformer import Block, time_features
from ltdi.weights import WeightSpace


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
        blank: Whether x_t is zero as well: layers below the head then need not be read.
    """

    estimate: Tensor
    gradient: Tensor
    signal: Tensor
    stage: Tensor
    first: bool = False
    blank: bool = False


class RowDenoiser(nn.Module):
    """x0-prediction of all weights of a network as a residual to a shared initialisation.

    The output of a layer's rows is write(h) + a x_t + b estimate - s A gradient B, where h is the
    transformer's view of the row, A and B are learned and start as the identity (class rows share
    a scalar in place of A), and a, b, s start as 0, 1 and the step size of the initialisation: an
    untrained network takes a step of gradient descent. Class rows carry no position, so permuting
    classes permutes them.

    Args:
        space: Weight space, at any way.
        steps: T.
        width: Of the tokens.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(
        self, space: WeightSpace, *, steps: int, width: int = 64, depth: int = 1, heads: int = 4
    ) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        count = len(space.layers)
        # Typical size of a gradient's entries in each layer, in normalised units.
        self.register_buffer("size", torch.ones(count))
        self.size: Tensor
        self.read, self.write = nn.ModuleList(), nn.ModuleList()
        self.place = nn.ParameterList()
        self.left, self.right = nn.ParameterList(), nn.ParameterList()
        for layer in space.layers:
            self.read.append(nn.Linear(3 * layer.row, width))
            write = nn.Linear(width, layer.row)
            nn.init.zeros_(write.weight)
            nn.init.zeros_(write.bias)
            self.write.append(write)
            units = 1 if layer.per_class else layer.units
            self.place.append(nn.Parameter(0.1 * torch.randn(units, width)))
            self.left.append(nn.Parameter(torch.eye(units)))
            self.right.append(nn.Parameter(torch.eye(layer.row)))
        self.of_time = nn.Sequential(
            nn.Linear(width + 2, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        # The coefficients a, b and s of every layer, as functions of the time.
        self.mix = nn.Linear(width, 3 * count)
        nn.init.zeros_(self.mix.weight)
        with torch.no_grad():
            self.mix.bias.copy_(torch.tensor([0.0, 1.0, 1.0]).repeat_interleave(count))

    @torch.no_grad()
    def standardise(self, size: Tensor, step: Tensor) -> None:
        """Fit the size of gradients [layers] and the step sizes [layers] to start from.

        Both in normalised units; the step sizes are those of plain gradient descent.
        """
        self.size.copy_(size.clamp(min=1e-12))
        count = len(size)
        self.mix.bias[2 * count :].copy_(step * self.size)

    def forward(self, x: Tensor, t: Tensor, guide: Descent, space: WeightSpace) -> Tensor:
        """Normalised residual [B, n] to the initialisation, from x_t [B, n] at t [B]."""
        layers = space.layers
        sizes = [layer.units * layer.row for layer in layers]
        place = torch.stack([guide.signal, guide.stage], -1)
        time = time_features(t, self.steps, self.width).to(x)
        context = self.of_time(torch.cat([time, place], -1))
        mix = self.mix(context).unflatten(-1, (3, -1))
        # The linear estimate of theta from x_t when theta has unit variance: no noise at t = 0.
        noised = guide.signal[:, None] * x
        parts = [v.split(sizes, 1) for v in (noised, guide.estimate, guide.gradient)]
        rows: list[list[Tensor]] = []
        tokens = []
        for i, layer in enumerate(layers):
            if guide.blank and not layer.per_class:
                # Nothing to be read: the token is the same for all tasks.
                rows.append([])
                token = (self.read[i].bias + self.place[i]).expand(len(x), -1, -1)
                tokens.append(token)
                continue
            own = [part[i].unflatten(-1, (layer.units, layer.row)) for part in parts]
            own[2] = _tamed(own[2], self.size[i])
            rows.append(own)
            tokens.append(self.read[i](torch.cat(own, -1)) + self.place[i])
        h = torch.cat(tokens, 1)
        for block in self.blocks:
            h = block(h, context)
        h = F.layer_norm(h, h.shape[-1:])
        out = []
        for i, part in enumerate(h.split([layer.units for layer in layers], 1)):
            new = self.write[i](part)
            if rows[i]:
                linear, estimate, gradient = rows[i]
                a, b, s = mix[:, :, i, None, None].unbind(1)
                new = new + a * linear + b * estimate
                if layers[i].per_class:
                    new = new - s * self.left[i] * (gradient @ self.right[i])
                elif not guide.first:
                    new = new - s * (self.left[i] @ gradient @ self.right[i])
            out.append(new.flatten(1))
        return torch.cat(out, -1)


def _tamed(gradient: Tensor, size: Tensor) -> Tensor:
    """A layer's gradient [B, units, row] in units of its size, but never much above one.

    The gradient of a support that is nearly solved spans orders of magnitude from task to task.
    """
    own = gradient.square().mean((1, 2), keepdim=True)
    return gradient * (2 / (own + size.square())).sqrt()
