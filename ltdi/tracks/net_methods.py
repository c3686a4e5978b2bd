"""The methods of the track of whole networks, and what a run shares among them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ltdi.baselines import Banks, Budget, fitted, validation_episodes
from ltdi.baselines.tuning import choose
from ltdi.baselines.whole import (
    STEPS,
    MamlLearner,
    NetMethod,
    Plan,
    Prototypes,
    ReptileLearner,
    Tuned,
    walk,
)
from ltdi.engine import Runtime
from ltdi.evaluate import accuracy, calibrate
from ltdi.generator import NetGenerator
from ltdi.nets import Initial, NetHost
from ltdi.pipeline.choice import EPISODES
from ltdi.progress import Progress, Step
from ltdi.recipe import VARIANTS, Recipe, named_recipe
from ltdi.tracks.world import GeneratorMethod, SharedWorld
from ltdi.whole import NetCollection, begin_net_zoo, train_net_generator

STARTS = (1, 5)
# Step sizes of the head to choose from, as a share of the initialisation's own.
_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass
class NetWorld(SharedWorld[NetCollection, NetGenerator]):
    """What the methods of one run share, for whole networks; banks hold images."""

    host: NetHost
    initial: Initial

    def key(self, recipe: Recipe) -> Hashable:
        """See `SharedWorld.key`."""
        return (recipe.tasks, recipe.prepare, recipe.meta.seed)

    def solve(self, place: Path, recipe: Recipe, progress: Progress | None) -> NetCollection:
        """See `SharedWorld.solve`."""
        collection = begin_net_zoo(place, self.train, self.host, self.initial, recipe)
        return collection.fill(progress=progress)

    def meta_train(
        self, solved: NetCollection, recipe: Recipe, progress: Progress | None
    ) -> NetGenerator:
        """See `SharedWorld.meta_train`."""
        return train_net_generator(solved, recipe, runtime=Runtime(progress=progress))


class GeneratedNet(GeneratorMethod[NetGenerator], NetMethod):
    """A generator of whole networks."""

    note = "all weights generated from the support, without a gradient step"
    # As in the published tables; peers have fewer (docs/reproduce.md).
    judged = EPISODES

    def __init__(self, name: str, base: Recipe, world: NetWorld) -> None:
        NetMethod.__init__(self, world.host)
        GeneratorMethod.__init__(self, name, named_recipe(name, base), world)

    def adapt(self, support: Tensor) -> Tensor:
        """See `NetMethod.adapt`."""
        return fitted(self.generator, self).weights(support)


class Refined(NetMethod):
    """Generated weights, and some gradient steps from them.

    Step sizes to choose from are shares of `unit`, that of the initialisation.
    """

    kind = "ours"
    note = "lt-di, then gradient descent on all weights"

    def __init__(self, single: GeneratedNet, unit: float, steps: int) -> None:
        super().__init__(single.host)
        self.single, self.unit, self.steps = single, unit, steps
        self.rates = torch.zeros(1)

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """See `Method.fit`; the step sizes are chosen on validation episodes."""
        if self.single.generator is None:
            self.single.fit(banks, budget, progress)
        self.prepare_s, self.train_s = self.single.prepare_s, self.single.train_s
        support, query = validation_episodes(banks.valid, budget)
        count = len(self.host.space(budget.way).layers)
        scored: list[tuple[float, Tensor, Tensor]] = []
        for head in _RATES:
            for below in (0.0, 0.1, 1.0):
                self.rates = torch.full((count,), below * head * self.unit)
                self.rates[-1] = head * self.unit
                theta = torch.cat([self.adapt(part) for part in support.split(32)])
                logits = self.host.query_logits(theta, query)
                scored.append((float(accuracy(logits).mean()), self.rates, logits))
        _, self.rates, logits = choose(scored, lambda entry: entry[0])
        self.scale = calibrate(logits)

    def adapt(self, support: Tensor) -> Tensor:
        """See `NetMethod.adapt`."""
        theta = self.single.adapt(support)
        space, mask = self.host.space(support.shape[1]), torch.ones(support.shape[:3])
        rates = self.rates[space.layer_of]
        for _ in range(self.steps):
            theta = theta - rates * self.host.gradient(theta, support, mask, space, alone=True)
        return theta


class Initialisation(NetMethod):
    """The shared initialisation with no step at all, or with the one that it was learned for."""

    kind = "control"
    note = "theta_0 itself; a shared initialisation cannot know the task's labels"

    def __init__(self, world: NetWorld, steps: int) -> None:
        super().__init__(world.host)
        count = len(world.host.space(2).layers)
        rates = torch.zeros(count)
        rates[-1] = steps * world.initial.rate
        self.plan = Plan(world.initial.theta_0, rates, 1)

    def adapt(self, support: Tensor) -> Tensor:
        """See `NetMethod.adapt`."""
        return walk(self.plan, self.host, support)[-1]


def methods_of(names: Sequence[str], recipe: Recipe, world: NetWorld) -> dict[str, NetMethod]:
    """The methods called `names`, unfitted."""
    reptile = ReptileLearner(world.initial)
    maml = MamlLearner(world.initial, reptile.common)
    single = GeneratedNet("lt-di", recipe, world)
    made: dict[str, Callable[[], NetMethod]] = {
        "lt-di": lambda: single,
        **{f"lt-di+{n}": partial(Refined, single, world.initial.rate, n) for n in STARTS},
        **{n: partial(GeneratedNet, n, recipe, world) for n in VARIANTS if n != "lt-di"},
        "protonet": partial(Prototypes, world.host, world.initial),
        "anchor": partial(Initialisation, world, 0),
        "anchor-step": partial(Initialisation, world, 1),
        **{f"reptile-{n}": partial(Tuned, world.host, reptile, n) for n in STEPS},
        **{f"maml-{n}": partial(Tuned, world.host, maml, n) for n in STEPS},
    }
    return {name: made[name]() for name in names}


ALL_METHODS = (
    "lt-di",
    *(f"lt-di+{n}" for n in STARTS),
    *(name for name in VARIANTS if name != "lt-di"),
    "anchor",
    "anchor-step",
    "protonet",
    *(f"reptile-{n}" for n in STEPS),
    *(f"maml-{n}" for n in STEPS),
)
