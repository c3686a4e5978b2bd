"""What meta-training reads of a zoo of heads, and what it minimises."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.anchor.frame import Frame
from ltdi.denoiser import Guide
from ltdi.diffusion import draw, make_schedule
from ltdi.diffusion.losses import Probe, loss_of
from ltdi.engine import Arrivals
from ltdi.meta import Batch, Params
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Group, Zoo

# Bytes of features that are kept in every frame.
FRAMED = 1 << 28


@dataclass(frozen=True)
class TrainingSet:
    """What meta-training reads: solved tasks by way, shot and frame, and their features.

    The tasks stay on disk; a batch reads its own rows.

    Attributes:
        bank: Features that tasks refer to by number.
        groups: The tasks; where there are arrivals, those that are visible at first.
        space: Weight space, at the zoo's own way.
        frames: By the number that groups have in their setting.
        arrivals: Where the zoo is being filled.
    """

    bank: FeatureBank
    groups: list[Group]
    space: WeightSpace
    frames: list[Frame]
    arrivals: Arrivals | None = None

    @classmethod
    def of(cls, zoo: Zoo, arrivals: Arrivals | None = None) -> TrainingSet:
        """Open a zoo's tasks, or those that arrive; see `Zoo.groups` for the errors."""
        groups = zoo.groups() if arrivals is None else arrivals.at(0)
        return cls(zoo.bank(), groups or zoo.groups(), zoo.space, zoo.frames(), arrivals)


class HeadObjective:
    """The training loss of a head generator: draws batches and scores them.

    Args:
        data: Solved tasks.
        network: Encoder and denoiser.
        normaliser: Of residuals.
        recipe: For the chain and the loss.
    """

    def __init__(
        self, data: TrainingSet, network: torch.nn.Module, normaliser: Normaliser, recipe: Recipe
    ) -> None:
        self.data, self.network, self.normaliser, self.recipe = data, network, normaliser, recipe
        self.schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.steps)
        # Whether the loss asks for predictions.
        d = recipe.diffusion
        self.loss = loss_of(d.loss, d.plus_weight)
        self.probes = d.loss != "weight"
        self.framed: dict[int, Tensor] = {}
        self.see(data.groups)

    def see(self, groups: list[Group]) -> None:
        """Draw from these tasks from now on."""
        self.groups = groups
        self.spaces = {int(g.setting["way"]): g.space for g in groups}

    def features(self, frame: int, items: Tensor) -> Tensor:
        """Features [..., D] of items of the bank, in a frame.

        All of a bank is taken into every frame once, where there is room for that: to do it for
        the items of each batch takes longer than everything else that is drawn.
        """
        bank, frames = self.data.bank.features, self.data.frames
        if bank.nbytes * len(frames) > FRAMED:
            return frames[frame].enter(bank[items])
        if frame not in self.framed:
            self.framed[frame] = frames[frame].enter(bank)
        return self.framed[frame][items]

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets of random tasks, all of one way and shot; every tensor [tasks, ...]."""
        g = self.groups[int(torch.randint(len(self.groups), (), generator=rng))]
        pick = torch.randint(len(g), (tasks,), generator=rng)
        columns = ("theta", "anchor", "support", *(("query",) if self.probes else ()))
        held = g.read(pick, columns)
        space, anchor = self.spaces[int(g.setting["way"])], held["anchor"]
        d = self.recipe.diffusion
        noised = draw(
            d.objective,
            self.normaliser.normalise(held["theta"] - anchor.unsqueeze(1), space),
            self.schedule,
            prediction=d.prediction,
            first=d.first,
            rng=rng,
        )
        frame = int(g.setting["frame"])
        query = held["query"] if self.probes else held["support"][..., :0]
        support = self.features(frame, held["support"])
        return {
            **vars(noised),
            "anchor": anchor,
            "between": self.data.frames[frame].between.expand(tasks, -1),
            "support": support,
            "query": self.features(frame, query).flatten(1, 2),
            **self.told(g, held["support"], support, rng),
        }

    def told(self, group: Group, items: Tensor, support: Tensor, rng: torch.Generator) -> Batch:
        """What else of a batch the guide needs; nothing, here.

        Args:
            group: Where the tasks are from.
            items: [tasks, way, shot] of the bank.
            support: Their features in the coordinates of the frame.
            rng: For choices.
        """
        return {}

    def guide(self, batch: Batch) -> Guide:
        """What the denoiser is told of a batch."""
        return Guide(**{f.name: batch[f.name] for f in fields(Guide)})

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner."""
        support = batch["support"]
        space = self.spaces[support.shape[1]]
        mask = torch.ones(support.shape[:3], device=support.device)
        output = functional_call(
            self.network,
            params,
            (batch["x_t"], batch["t"], support, mask, space, self.guide(batch)),
        )
        scale = self.normaliser.scale(space).to(support.device)
        probe = Probe(batch["query"], batch["anchor"], scale)
        return self.loss(output, batch["target"], batch["weight"], probe)


def fit_normaliser(data: TrainingSet) -> Normaliser:
    """Fitted on residuals at the zoo's own way; the statistics do not depend on the way."""
    group = data.groups[0]
    some = torch.arange(min(len(group), 4096))
    held = group.read(some, ("theta", "anchor"))
    return Normaliser.fit(held["theta"] - held["anchor"].unsqueeze(1), group.space, centre=False)
