"""New samples of nets for one known task: generation without a condition."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ltdi.anchor import Anchor, Centres
from ltdi.denoiser import Descent, RowDenoiser
from ltdi.errors import InputError
from ltdi.generator.base import Callback, Generator, View, Weights, repeat
from ltdi.generator.nets import build_rows
from ltdi.nets import NetHost
from ltdi.parts import Host, Saved
from ltdi.weights import WeightSpace


class SampleGenerator(Generator):
    """Generates nets like those of a zoo of checkpoints, all of one task, from noise alone.

    There is nothing to be told about a task, so a support is a number: how many nets are wanted.
    They start from the centres of the zoo's trainings in turn, the first of them by the seed. The
    rows of the head have an order here, as the task's classes have.
    """

    kind: ClassVar[str] = "sample"

    @classmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Anchor, Host]:
        """See `Generator.build`."""
        anchor = Centres(torch.zeros_like(saved.groups["anchor"]["theta"]))
        network = build_rows(saved.space, saved.shape, saved.diffusion)
        return network, anchor, NetHost.from_config(saved.config["net"])

    def read(self, support: Any) -> int:
        """See `Generator.read`; None stands for one net."""
        count = 1 if support is None else support
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(
                f"this generator has no condition: give the number of nets, not {count!r}",
                where="support",
                fix="call generate(1), or draws(100)",
            )
        return count

    def generate_many(self, supports: list[Any], *, seed: int, **options: Any) -> list[Weights]:
        """See `Generator.generate_many`; each number gives its nets stacked, [count, ...]."""
        theta = self.draws(sum(supports), seed=seed, **options)
        space = self.parts.space
        return [space.unflatten(part) for part in theta.split(supports)]

    def draws(
        self, count: int, *, seed: int = 0, callback: Callback | None = None, **options: Any
    ) -> Tensor:
        """Flat weights [count, n] of nets; `samples` are averaged."""
        chosen = self.sampling(**options)
        which = self.origins(count, seed)
        drawn = self.chain(
            lambda copies: self._view(which, copies, chosen.end),
            chosen,
            seed=seed,
            callback=callback,
        )
        return drawn.mean(0)

    def origins(self, count: int, seed: int) -> Tensor:
        """[count] number of the centre that each net is drawn around."""
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.centres(1.0)), generator=rng)
        return order[torch.arange(count) % len(order)]

    def centres(self, end: float) -> Tensor:
        """[C, n] what nets are drawn around when the chain ends at a share of the trajectory."""
        return cast(Centres, self.parts.anchor).near(end)

    def _view(self, which: Tensor, copies: int, end: float) -> View:
        space, network = self.parts.space, cast(RowDenoiser, self.parts.network)
        start = repeat(self.centres(end)[which], copies)
        sampler = Unguided(network, space)
        return View(space, start, sampler.step)

    def architecture(self, weights: Weights) -> str:
        """See `Generator.architecture`."""
        shape = weights["head.weight"].shape
        numbers = sum(v[0].numel() if len(shape) > 2 else v.numel() for v in weights.values())
        return f"conv net, {numbers} weights, {shape[-2]} classes"


class Unguided:
    """A denoiser that is told its own last estimate, and no gradient."""

    def __init__(self, network: Any, space: WeightSpace) -> None:
        self.network, self.space = network, space
        self.estimate: Tensor | None = None

    def step(self, x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
        """One denoising step of x_t [B, n]; its x0 becomes the estimate."""
        zero = torch.zeros_like(x)
        before = zero if self.estimate is None else self.estimate
        guide = Descent(before, zero, signal, stage, first=True)
        out: Tensor = self.network(x, t, guide, self.space)
        self.estimate = out.detach()
        return out


def sample_space(host: NetHost, classes: int) -> WeightSpace:
    """All weights of a net for one task, whose classes have an order."""
    shapes = {p.name: p.shape for p in host.space(classes).params}
    return WeightSpace.from_shapes(shapes)
