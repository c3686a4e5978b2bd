"""Meta-training of adapter generators: trajectory diffusion over coordinates of a basis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.adapters.condition import facts
from ltdi.adapters.host import LanguageHost
from ltdi.adapters.network import AdapterDenoiser
from ltdi.adapters.runs import Runs
from ltdi.anchor import Anchor
from ltdi.collect import Preparation
from ltdi.engine import Objective, Runtime, meta_train
from ltdi.errors import InputError, unknown
from ltdi.meta import Batch, MetaConfig, Params
from ltdi.parts import Parts
from ltdi.recipe import VARIANTS, Diffusion, Network, Sampling, variant
from ltdi.seeding import seeded
from ltdi.weights import Normaliser
from ltdi.zoo import Group


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


# The runs of a zoo that are to be learnt from.
Read = Callable[[Sequence[Group]], list[Solved]]


class AdapterObjective(Objective):
    """The training loss of coordinates of adapters."""

    def __init__(
        self,
        groups: Sequence[Solved],
        host: LanguageHost,
        network: AdapterDenoiser,
        normaliser: Normaliser,
        recipe: AdapterRecipe,
        read: Read | None = None,
    ) -> None:
        super().__init__(recipe.diffusion)
        self.host, self.network, self.normaliser, self.recipe = host, network, normaliser, recipe
        self.read = read
        self._take(groups)

    def see(self, groups: Sequence[Group]) -> None:
        """See `Objective.see`; basis and normaliser stay."""
        assert self.read is not None
        self._take(self.read(groups))

    def _take(self, groups: Sequence[Solved]) -> None:
        network, number = self.network, 0
        self.groups, self.z, self.features = list(groups), [], []
        for g in groups:
            z = network.basis.enter(g.theta, self.host.adapter(g.outputs).space)
            self.z.append(self.normaliser.normalise(z, network.latent(g.outputs)))
            self.features.append(network.encoder.project(g.features))
            for task in g.task.unique().tolist():
                of = g.task == task
                known = facts(self.features[-1][of], g.targets[of], g.outputs, g.text[of])
                network.remember(number, known, labelled=bool(g.labelled[of].all()))
                number += 1
        self.share = torch.tensor([float(len(g)) for g in groups])

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """See `Objective.draw`: coordinates of runs of as many outputs."""
        chosen = int(torch.multinomial(self.share, 1, generator=rng))
        g: Solved = self.groups[chosen]
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
        noised = self.noised(z, rng)
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


def empty_network(
    groups: Sequence[Solved], host: LanguageHost, recipe: AdapterRecipe
) -> AdapterDenoiser:
    """The network that `train_network` trains, as it is initialised.

    Raises:
        InputError: If there is no run.
    """
    if not groups:
        raise InputError("there is no run to learn from", where="zoo", fix="collect text tasks")
    adapter = host.adapter(groups[0].outputs)
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


def adapter_parts(
    network: AdapterDenoiser,
    normaliser: Normaliser,
    host: LanguageHost,
    recipe: AdapterRecipe,
    data: str,
) -> Parts:
    """What a generator is made of; `data` names the tasks of the runs in its card."""
    condition = {"rank": recipe.rank, "rows": recipe.rows, "text": recipe.text}
    about = {"data": data, "condition": condition}
    space = host.adapter(2).space
    return Parts.of(recipe, space, network, Anchor(), normaliser, host, about)


def train_network(
    groups: Sequence[Solved],
    host: LanguageHost,
    recipe: AdapterRecipe,
    data: str = "",
    *,
    runtime: Runtime = Runtime(),
    read: Read | None = None,
) -> Parts:
    """Meta-train the parts of an adapter generator.

    Args:
        groups: Runs, by number of outputs.
        host: The language model.
        recipe: Chain, network, meta-training.
        data: Names the tasks in the generator's card.
        runtime: Checkpoint, progress, processes that share the base learners, on the CPU. Where
            the zoo is being filled, basis and normaliser are those of the runs there at first.
        read: Takes runs out of such a zoo.

    Raises:
        InputError: If there is no run.
        DivergedError: If the loss leaves the finite numbers.
    """
    network = empty_network(groups, host, recipe)
    spaces = [host.adapter(g.outputs).space for g in groups]
    network.basis.fit([(g.theta.flatten(0, 1), s) for g, s in zip(groups, spaces, strict=True)])
    network.encoder.fit(torch.cat([g.features.flatten(0, 1) for g in groups]))
    largest = max(range(len(groups)), key=lambda i: len(groups[i]))
    normaliser = Normaliser.fit(
        network.basis.enter(groups[largest].theta, spaces[largest]),
        network.latent(groups[largest].outputs),
        centre=False,
    )
    objective = AdapterObjective(groups, host, network, normaliser, recipe, read)
    parts = adapter_parts(network, normaliser, host, recipe, data)
    runs = [len(g) for g in groups]
    return meta_train(parts, objective, recipe, runtime, rank=recipe.rank, runs=runs)
