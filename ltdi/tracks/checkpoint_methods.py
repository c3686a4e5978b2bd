"""The methods of the track of checkpoints: nets like those of a zoo, drawn in different ways."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ltdi.baselines.samples import plain_samples
from ltdi.generator.samples import SampleGenerator
from ltdi.nets.novelty import nearest
from ltdi.progress import Progress
from ltdi.recipe import Recipe, named_recipe
from ltdi.samples import BATCH, JUDGED, Checkpoints, chosen_sampler, descended, train_sampler
from ltdi.tracks.world import Once

# Without the loss in function space; and plain generators after gradient descent on that loss.
_WEIGHTS, _DESCENT = "weight-loss", "+sgd"
RECIPES = ("lt-di", "mv-di", "tw-di", "mv-di-matched", "single-level", _WEIGHTS)
_GAUSSIAN = ("gaussian", "gaussian-run", "gaussian-full")
_PEERS = ("noise", "average-2", "average-run", "average", *_GAUSSIAN)
_DESCENDED = ("average-run" + _DESCENT, "gaussian-run" + _DESCENT)
# In the order in which they are drawn: `noise` is as far away as the nets of `lt-di`.
ALL_METHODS = ("originals", *RECIPES, *_PEERS, *_DESCENDED)


def kind_of(name: str) -> str:
    """Whether a method is ours, a control or a peer."""
    return "ours" if name == "lt-di" else "peer" if name in _PEERS else "control"


@dataclass(frozen=True)
class Drawn:
    """The nets of one method.

    Attributes:
        theta: [E, n].
        skip: [E] which checkpoint each net is, where it is one.
        tried: What was chosen from: accuracy on images that no net was trained on.
    """

    theta: Tensor
    skip: Tensor | None = None
    tried: dict[str, float] = field(default_factory=dict)
    generator: SampleGenerator | None = None
    train_s: float = 0.0
    latency_ms: float = 0.0


@dataclass
class CheckpointWorld:
    """What the methods of one run share.

    Attributes:
        count: Nets of every method.
        temperature: The only one to try, or None.
        distance: From a checkpoint to the nets of `noise`.
    """

    zoo: Checkpoints
    recipe: Recipe
    count: int
    seed: int
    temperature: float | None
    progress: Progress

    def __post_init__(self) -> None:
        self.rng = torch.Generator().manual_seed(self.seed + 1)
        self.moved: Once[tuple[Tensor, dict[str, float]]] = Once()
        # Until the nets of `lt-di` are measured: that between two checkpoints.
        self.distance = float(self.away(self.zoo.last[:1], torch.zeros(1, dtype=torch.long)))

    def away(self, theta: Tensor, skip: Tensor | None = None) -> Tensor:
        """Distance [E] of nets [E, n] to the nearest checkpoint; see `nearest`."""
        return nearest(theta, self.zoo.last, self.zoo.run, self.zoo.space, skip)

    def draw(self, name: str) -> Drawn:
        """The nets of a method; those of a recipe are trained first."""
        if name == "originals":
            skip = torch.randperm(len(self.zoo.last), generator=self.rng)[: self.count]
            return Drawn(self.zoo.last[skip], skip)
        if name in RECIPES:
            return self._generated(name)
        if name in _DESCENDED:
            (centres, tried), seconds = self.moved.once("centres", self._descended)
            theta = self._plain(name.removesuffix(_DESCENT), centres)
            return Drawn(theta, tried=tried, train_s=seconds)
        return Drawn(self._plain(name))

    def _generated(self, name: str) -> Drawn:
        start = time.perf_counter()
        made = train_sampler(self.zoo, self._recipe(name), self.progress)
        made, tried = chosen_sampler(made, self.zoo, self.temperature)
        trained = time.perf_counter()
        theta = made.draws(self.count, seed=self.seed)
        latency = 1000 * (time.perf_counter() - trained) / self.count
        return Drawn(theta, None, tried, made, trained - start, latency)

    def _recipe(self, name: str) -> Recipe:
        base = replace(self.recipe, meta=replace(self.recipe.meta, seed=self.seed))
        if name == _WEIGHTS:
            d = replace(base.diffusion, loss="weight", plus_weight=0.0)
            return replace(base, diffusion=d)
        return named_recipe(name, base)

    def _plain(self, name: str, centres: Tensor | None = None) -> Tensor:
        return plain_samples(name, self.zoo, self.count, self.rng, self.distance, centres)

    def _descended(self) -> tuple[Tensor, dict[str, float]]:
        """The centres after gradient descent on as many images as meta-training shows its nets.

        Returns:
            [C, n] nets, and the validation accuracy of each step size.
        """
        m, runs = self.recipe.meta, len(self.zoo.centres())
        nets = m.iterations * m.meta_batch * m.inner_steps * m.tasks
        steps = max(1, nets * JUDGED // (runs * BATCH))
        rng = torch.Generator().manual_seed(self.seed + 2)
        centres, scores = descended(self.zoo, steps, rng)
        return centres, {f"rate {rate:g}": round(score, 4) for rate, score in scores.items()}
