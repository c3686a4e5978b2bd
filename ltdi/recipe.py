"""Recipes: every choice that makes a generator, in frozen dataclasses, and the named ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

from ltdi.collect import Preparation
from ltdi.diffusion.losses import check_loss
from ltdi.errors import InputError, check, unknown
from ltdi.meta import MetaConfig


@dataclass(frozen=True)
class Tasks:
    """Which tasks are solved for the zoo.

    Attributes:
        ways: Classes per task; a generator trained on some ways serves all from 2 to 50.
        shots: Support samples per class.
        query: Further samples per class that a task is solved on.
        probe: Further samples per class that it is not solved on, where the training loss compares
            predictions; with 0 it compares them on `query`, where a solved head is always right.
        per_setting: Solved tasks for each pair of way and shot, rounded up to equal folds.
        shard: Most tasks per shard of the zoo.
        folds: How often classes are held out from the anchor (`ltdi.anchor.crossfit`); 0 for never.
        held_out: Share of the classes in a fold.
        alike: Share of the folds made of classes that are alike; -1 chooses on validation.
    """

    ways: tuple[int, ...] = (5,)
    shots: tuple[int, ...] = (1, 5)
    query: int = 15
    probe: int = 0
    per_setting: int = 1000
    shard: int = 500
    folds: int = 16
    held_out: float = 0.25
    alike: float = -1.0


# More would be an error, or a file that means harm: a schedule has a number for each.
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Diffusion:
    """The chain.

    Attributes:
        steps: T.
        schedule: "cosine" or "linear".
        objective: "trajectory", "vanilla", "naive" or "matched".
        prediction: "x0", "eps" or "v".
        loss: "predictive", "function" or "weight".
        plus_weight: How much of the loss "weight" is added to another one, which by itself does not
            ask what weights differ by.
        first: Share of the training draws that are at t = 0, where every chain begins and a chain
            of one step ends; the others are those of the objective.
    """

    steps: int = 20
    schedule: str = "cosine"
    objective: str = "trajectory"
    prediction: str = "x0"
    loss: str = "predictive"
    plus_weight: float = 0.0
    first: float = 0.0

    def __post_init__(self) -> None:
        check_loss(self.loss, self.prediction)
        if self.steps > MOST_STEPS:
            raise InputError(
                f"a chain of {self.steps:,} steps is longer than {MOST_STEPS:,}",
                where="diffusion.steps",
            )
        check("diffusion", self, ranges={"first": (0, 1), "plus_weight": (0, math.inf)})


@dataclass(frozen=True)
class Network:
    """The denoiser and its encoder.

    Attributes:
        kind: "equivariant" (heads, x0-prediction), "transformer" or "unet"; "rows" for whole nets.
        width: Width of the network and of the condition; the U-Net has width / 8 channels.
        depth: Blocks of the transformer; halvings of the U-Net.
        heads: Attention heads.
    """

    kind: str = "equivariant"
    width: int = 64
    depth: int = 2
    heads: int = 4


@dataclass(frozen=True)
class Sampling:
    """Defaults of `Generator.generate`.

    Attributes:
        steps: Denoising steps, 1..T.
        sampler: "ddim" or "ddpm".
        temperature: Scale of all noise.
        samples: Weights drawn and averaged per task.
        segments: Local chains read at inference; 1 is the global schedule.
        strength: Factor of the generated residual; 0 returns the anchor.
        sharpness: Factor of the whole head, an inverse temperature of its predictions.
        end: Where the chain ends, as a share of the trajectory: i/k for the local target i.
    """

    steps: int = 1
    sampler: str = "ddim"
    temperature: float = 0.0
    samples: int = 1
    segments: int = 1
    strength: float = 1.0
    sharpness: float = 1.0
    end: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """Everything between a feature bank and a generator.

    Attributes:
        tasks: Which tasks are solved.
        prepare: How they are solved.
        diffusion: The chain.
        network: The denoiser.
        meta: Meta-training.
        sampling: What a generator samples with, where validation classes do not choose.
        anchor: "gaussian", "prototype" or "none".
        refine: Candidate numbers of iterations of the Gaussian anchor's refinement; validation
            classes choose among them and none.
        start: theta_0 of the solved tasks: "anchor", or "gaussian" noise as in the paper.
        start_std: Standard deviation of a Gaussian theta_0.
    """

    tasks: Tasks = field(default_factory=Tasks)
    prepare: Preparation = field(default_factory=lambda: Preparation(lr=0.05, steps=24, segments=4))
    diffusion: Diffusion = field(default_factory=Diffusion)
    network: Network = field(default_factory=Network)
    meta: MetaConfig = field(default_factory=MetaConfig)
    sampling: Sampling = field(default_factory=Sampling)
    anchor: str = "gaussian"
    refine: tuple[int, ...] = ()
    start: str = "anchor"
    start_std: float = 0.1


class Varied(Protocol):
    """A recipe for some kind of weights: a dataclass with chain, network and meta-training."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def diffusion(self) -> Diffusion:
        """The chain and its objective."""

    @property
    def network(self) -> Network:
        """The denoiser."""

    @property
    def meta(self) -> MetaConfig:
        """Meta-training."""

    @property
    def sampling(self) -> Sampling:
        """What a generator samples with, where nothing else is chosen."""


R = TypeVar("R", bound=Varied)
# `lt-di`, and its controls.
VARIANTS = ("lt-di", "mv-di", "tw-di", "mv-di-matched", "single-level", "anchored-regression")


def variant(name: str, base: R) -> R:
    """A recipe as it is (`lt-di`), or one of the controls, which change one idea of it.

    Anchored regression is our network, anchor and loss, trained by plain regression: no noise, no
    chain, one level. With T = 1 the only step is t = 0, where abar is nearly zero and x_t is noise
    alone; at temperature 0 one x0 step returns the network's regression of theta_M.

    Raises:
        InputError: If the name is unknown.
    """
    chain, single = base.diffusion, replace(base.meta, meta="none")
    changes: dict[str, dict[str, Any]] = {
        "lt-di": {},
        "mv-di": {"diffusion": replace(chain, objective="vanilla")},
        "tw-di": {"diffusion": replace(chain, objective="naive")},
        "mv-di-matched": {"diffusion": replace(chain, objective="matched")},
        "single-level": {"meta": single},
        "anchored-regression": {
            "diffusion": replace(chain, steps=1, objective="vanilla"),
            "meta": single,
            # Where it does not follow from the chain.
            **({"sampling": Sampling()} if "sampling" in vars(base) else {}),
        },
    }
    if name not in changes:
        raise unknown("recipe", name, VARIANTS)
    return replace(base, **changes[name])


def named_recipe(name: str, base: Recipe | None = None) -> Recipe:
    """The recipe of one of our methods: a `variant` of `base`, or the paper's own.

    Raises:
        InputError: If the name is unknown.
    """
    r = base or Recipe()
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return paper_recipe(r) if name == "mc-di-paper" else variant(name, r)


def paper_recipe(base: Recipe) -> Recipe:
    """Mc-Di to the letter (paper, section 5.1), at the budget of `base`.

    Gaussian theta_0, whole weights without an anchor, eps-prediction, T = 20, a 1-D U-Net, mean
    squared error of weights, REPTILE with eta = 0.005, zeta = 0.001, K = 3, one task per base
    learner, SAM in preparation, samples at temperature 1.
    """
    return replace(
        base,
        tasks=replace(base.tasks, folds=0),
        anchor="none",
        start="gaussian",
        prepare=replace(base.prepare, lr=0.05, sam_rho=0.05),
        diffusion=Diffusion(20, "linear", "trajectory", "eps", "weight"),
        network=Network("unet", base.network.width, base.network.depth + 1),
        meta=replace(
            base.meta,
            meta="reptile",
            inner_lr=0.005,
            inner_steps=3,
            tasks=1,
            outer="sgd",
            meta_lr=0.001,
        ),
        sampling=Sampling(steps=20, sampler="ddpm", temperature=1.0),
    )


RECIPES = (VARIANTS[0], "mc-di-paper", *VARIANTS[1:])

# What `lt-di` is for whole networks. Few iterations: the start is good, and more of them learn the
# training classes by heart (docs/lab-notes/choices.md).
NET_RECIPE = Recipe(
    tasks=Tasks(ways=(5,), query=9, probe=6, per_setting=320, shard=80, folds=0),
    prepare=Preparation(lr=0.005, steps=24, segments=4, batch=30),
    diffusion=Diffusion(first=0.5),
    network=Network("rows", width=64, depth=1),
    meta=MetaConfig(
        iterations=100,
        meta_batch=2,
        inner_steps=2,
        inner_lr=1e-4,
        tasks=4,
        meta_lr=5e-4,
        warmup=20,
        ema=0.97,
    ),
    anchor="shared",
)
