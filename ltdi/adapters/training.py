"""Meta-training of adapter generators: trajectory diffusion over coordinates of a basis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.adapters.condition import facts
from ltdi.adapters.network import AdapterDenoiser
from ltdi.adapters.runs import Runs
from ltdi.checkpoint import NAME as CHECKPOINT
from ltdi.collect import Preparation
from ltdi.diffusion import draw, make_schedule
from ltdi.errors import InputError, unknown
from ltdi.lora import Adapter, Base
from ltdi.meta import Batch, MetaConfig, MetaTrainer, Params
from ltdi.recipe import VARIANTS, Diffusion, Network, Sampling, variant
from ltdi.seeding import seeded
from ltdi.team import ALONE, Team
from ltdi.weights import Normaliser, WeightSpace


@dataclass(frozen=True)
class AdapterRecipe:
    """Everything between text tasks and an adapter generator.

    Attributes:
        own: How single tasks are solved, by name, that `prepare` does not suit; with as many
            segments.
        rank: Directions per block that are generated (`Basis`).
        rows: Whether support rows are a condition.
        text: Whether descriptions of tasks are; half of the time they are left out in training.
        seen: Support rows that a task is shown by in training.
    """

    runs: Runs = field(default_factory=Runs)
    prepare: Preparation = field(
        default_factory=lambda: Preparation(
            "adamw", lr=3e-3, steps=600, segments=5, weight_decay=0.01, batch=16
        )
    )
    own: Mapping[str, Preparation] = field(default_factory=dict)
    diffusion: Diffusion = field(default_factory=lambda: Diffusion(loss="weight"))
    network: Network = field(default_factory=lambda: Network("transformer", 64, 2, 4))
    meta: MetaConfig = field(
        default_factory=lambda: MetaConfig(
            iterations=400, meta_batch=4, inner_steps=3, tasks=8, meta_lr=3e-3, warmup=10, ema=0.9
        )
    )
    sampling: Sampling = field(default_factory=Sampling)
    rank: int = 24
    rows: bool = True
    text: bool = True
    seen: int = 32

    def preparation(self, task: str) -> Preparation:
        """How a task of that name is solved."""
        return self.own.get(task, self.prepare)


def named_recipe(name: str, base: AdapterRecipe) -> AdapterRecipe:
    """The recipe of one of our methods; a control changes one idea of `base`.

    Raises:
        InputError: If the name is unknown.
    """
    if name == "hypernetwork":
        # Text-to-LoRA (Charakorn et al., 2025): regression of weights on a task's description.
        return replace(variant("anchored-regression", base), rows=False, text=True)
    if name not in VARIANTS:
        raise unknown("recipe", name, (*VARIANTS, "hypernetwork"))
    return variant(name, base)


@dataclass(frozen=True, eq=False)
class Solved:
    """Runs of tasks with as many outputs.

    Attributes:
        theta: [E, k, n] local targets.
        features: [E, R, F] row features of rows that each run was fitted to.
        targets: [E, R] their classes or values.
        text: [E, D + 1] descriptions of the tasks.
        task: [E] number of the task.
        labelled: [E] whether the task has labels that somebody gave, rather than texts alone.
    """

    theta: Tensor
    features: Tensor
    targets: Tensor
    text: Tensor
    task: Tensor
    labelled: Tensor

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def outputs(self) -> int:
        """Outputs of the heads."""
        return 1 if self.targets.is_floating_point() else int(self.targets.max()) + 1

    def keep(self, which: Tensor) -> Solved:
        """The runs where `which` [E] is true."""
        return Solved(**{name: value[which] for name, value in vars(self).items()})


class AdapterObjective:
    """The training loss: draws batches of noised coordinates, and scores them.

    Args:
        groups: Runs, by number of outputs.
        spaces: Weight space of each group.
        network: Encoder, basis and denoiser.
        normaliser: Of coordinates.
        recipe: For the chain.
    """

    def __init__(
        self,
        groups: Sequence[Solved],
        spaces: Sequence[WeightSpace],
        network: AdapterDenoiser,
        normaliser: Normaliser,
        recipe: AdapterRecipe,
    ) -> None:
        self.groups, self.network, self.recipe = list(groups), network, recipe
        d = recipe.diffusion
        self.schedule = make_schedule(d.schedule, d.steps)
        self.z = [
            normaliser.normalise(network.basis.enter(g.theta, s), network.latent(g.outputs))
            for g, s in zip(groups, spaces, strict=True)
        ]
        self.features = [network.encoder.project(g.features) for g in groups]
        self.share = torch.tensor([float(len(g)) for g in groups])

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised coordinates of random runs, all of as many outputs; tensors [tasks, ...]."""
        chosen = int(torch.multinomial(self.share, 1, generator=rng))
        g, d = self.groups[chosen], self.recipe.diffusion
        pick = torch.randint(len(g), (tasks,), generator=rng)
        rows = torch.rand(tasks, g.targets.shape[1], generator=rng).argsort(1)
        rows = rows[:, : self.recipe.seen]
        keep = (torch.rand(tasks, 1, generator=rng) < 0.5) | (not self.recipe.rows)
        known = facts(
            self.features[chosen][pick[:, None], rows],
            g.targets[pick[:, None], rows],
            g.outputs,
            g.text[pick] * keep,
        )
        z, outputs = _rename(self.z[chosen][pick], known.outputs, self.network, g.outputs, rng)
        noised = draw(d.objective, z, self.schedule, prediction=d.prediction, rng=rng)
        return {**vars(noised), "task": known.task, "outputs": outputs, "text": known.text}

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner: squared error of coordinates."""
        names = ("x_t", "t", "stage", "task", "outputs", "text")
        given = functional_call(self.network, params, tuple(batch[n] for n in names))
        loss: Tensor = (batch["weight"][:, None] * (given - batch["target"]).square()).mean()
        return loss


def _rename(
    z: Tensor, outputs: Tensor, network: AdapterDenoiser, way: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Classes in random order: z [B, k, m] and what is known of outputs [B, way, F].

    A zero start, and B = 0, make the run of a task with renamed classes this very permutation.
    """
    order = torch.rand(len(z), way, generator=rng).argsort(1)
    layout = network.latent(way).tokens
    rows = (layout.class_of >= 0).nonzero()[:, 0]
    tokens = z.unflatten(-1, (len(layout.class_of), -1)).clone()
    each = torch.arange(len(z))[:, None]
    tokens[:, :, rows] = tokens[each, :, rows[order]].transpose(1, 2)
    return tokens.flatten(-2), outputs[each, order]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and what belongs to it."""

    network: AdapterDenoiser
    normaliser: Normaliser
    recipe: AdapterRecipe


def empty_network(
    groups: Sequence[Solved], adapters: Mapping[int, Adapter], recipe: AdapterRecipe
) -> AdapterDenoiser:
    """The network that `train_network` trains, as it is initialised.

    Raises:
        InputError: If there is no run.
    """
    if not groups:
        raise InputError("there is no run to learn from", where="zoo", fix="collect text tasks")
    adapter = adapters[groups[0].outputs]
    with seeded(recipe.meta.seed):
        return AdapterDenoiser(
            adapter.space,
            adapter.base.width,
            recipe.network,
            recipe.diffusion.steps,
            rank=recipe.rank,
            rows=recipe.rows,
            text=recipe.text,
            tasks=len(torch.cat([g.task for g in groups]).unique()),
        )


def train_network(
    groups: Sequence[Solved],
    adapters: Mapping[int, Adapter],
    recipe: AdapterRecipe,
    *,
    out: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    team: Team = ALONE,
) -> Trained:
    """Meta-train an adapter generator's network.

    Args:
        groups: Runs, by number of outputs.
        adapters: The kind of adapter, by number of outputs.
        recipe: Chain, network, meta-training.
        out: Directory for a checkpoint; none is written without it.
        progress: Called as progress(iteration, iterations, loss).
        log: Called with JSON-able records.
        team: Processes that share the base learners, on the CPU.

    Raises:
        InputError: If there is no run.
        DivergedError: If the loss leaves the finite numbers.
    """
    network = empty_network(groups, adapters, recipe)
    spaces = [adapters[g.outputs].space for g in groups]
    base: Base = adapters[groups[0].outputs].base
    network.basis.fit([(g.theta.flatten(0, 1), s) for g, s in zip(groups, spaces, strict=True)])
    network.encoder.fit(torch.cat([g.features.flatten(0, 1) for g in groups]))
    number = 0
    for g in groups:
        features = network.encoder.project(g.features)
        for task in g.task.unique().tolist():
            of = g.task == task
            known = facts(features[of], g.targets[of], g.outputs, g.text[of])
            network.remember(number, known, labelled=bool(g.labelled[of].all()))
            number += 1
    largest = max(range(len(groups)), key=lambda i: len(groups[i]))
    normaliser = Normaliser.fit(
        network.basis.enter(groups[largest].theta, spaces[largest]),
        network.latent(groups[largest].outputs),
        centre=False,
    )
    objective = AdapterObjective(groups, spaces, network, normaliser, recipe)
    trainer = MetaTrainer(
        network,
        objective,
        objective.draw,
        recipe.meta,
        run={
            **asdict(recipe.diffusion),
            **asdict(recipe.network),
            "rank": recipe.rank,
            "base": base.fingerprint,
            "runs": [len(g) for g in groups],
        },
        team=team,
    )
    trainer.fit(out / CHECKPOINT if out else None, progress=progress, log=log)
    return Trained(network, normaliser, recipe)


__all__ = [
    "AdapterRecipe",
    "Solved",
    "Trained",
    "empty_network",
    "named_recipe",
    "train_network",
]
