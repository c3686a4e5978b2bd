"""What meta-training reads of a zoo of heads, and what it minimises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltdi.denoiser import Guide
from ltdi.diffusion.losses import Probe
from ltdi.engine import Objective
from ltdi.meta import Batch, Params
from ltdi.pipeline.collecting import HeadCollection
from ltdi.recipe import Diffusion
from ltdi.weights import Normaliser
from ltdi.zoo import Group

# Bytes of features that are kept in every frame.
FRAMED = 1 << 28


class HeadObjective(Objective):
    """The training loss of a head generator."""

    def __init__(
        self,
        data: HeadCollection,
        network: nn.Module,
        normaliser: Normaliser,
        diffusion: Diffusion,
        groups: Sequence[Group] | None = None,
    ) -> None:
        super().__init__(diffusion)
        self.data, self.network, self.normaliser = data, network, normaliser
        # Whether the loss asks for predictions.
        self.probes = diffusion.loss != "weight"
        self.framed: dict[int, Tensor] = {}
        self.see(groups or data.zoo.groups())

    def see(self, groups: Sequence[Group]) -> None:
        """See `Objective.see`."""
        super().see(groups)
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
        """See `Objective.draw`."""
        g, pick = self.pick(rng, tasks)
        columns = ("theta", "anchor", "support", *(("query",) if self.probes else ()))
        held = g.read(pick, columns)
        space, anchor = self.spaces[int(g.setting["way"])], held["anchor"]
        residual = self.normaliser.normalise(held["theta"] - anchor.unsqueeze(1), space)
        noised = self.noised(residual, rng)
        frame = int(g.setting["frame"])
        query = held["query"] if self.probes else held["support"][..., :0]
        support = self.features(frame, held["support"])
        origin = self.data.origin(frame, support)
        support = support - origin
        return {
            **vars(noised),
            "anchor": anchor,
            "between": self.data.frames[frame].between.expand(tasks, -1),
            "support": support,
            "query": (self.features(frame, query) - origin).flatten(1, 2),
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


def fit_normaliser(group: Group) -> Normaliser:
    """Fitted on residuals of heads of one way; the statistics do not depend on the way."""
    held = group.read(torch.arange(min(len(group), 4096)), ("theta", "anchor"))
    return Normaliser.fit(held["theta"] - held["anchor"].unsqueeze(1), group.space, centre=False)
