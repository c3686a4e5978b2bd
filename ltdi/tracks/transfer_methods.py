"""Heads without a label, as methods beside their peers: generated, the prior alone, the ceiling."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ltdi.anchor.prior import NamePrior
from ltdi.backbone import Backbone
from ltdi.baselines.unseen import UNSEEN_PEERS, Adapted, UnseenMethod
from ltdi.baselines.unseen.method import Coordinates, NamedBanks, UnseenBudget
from ltdi.generator import UnseenGenerator
from ltdi.lora.names import NameEncoder
from ltdi.progress import Progress, Step, staged
from ltdi.recipe import VARIANTS, variant
from ltdi.tracks.world import Once
from ltdi.unseen import (
    NamedBank,
    TaskBatch,
    UnseenRecipe,
    choose_prior,
    choose_steps,
    prepare_zoo,
    refit,
    train_unseen,
)
from ltdi.unseen.choice import prior_heads
from ltdi.unseen.training import options_of
from ltdi.weights import head_logits
from ltdi.zoo import Zoo

CEILING, ANCHOR = "supervised", "anchor"


@dataclass
class TransferWorld:
    """Everything that the methods of one run share.

    Attributes:
        whole: Those of `valid` too, which every method learns once more when all is chosen.
        valid: Tasks of source classes held out: every choice is made on them.
        recipe: Of `lt-di`.
        thorough: Whether the prior's settings are searched.
        directory: Where zoos are kept during the run.
    """

    backbone: Backbone
    encoder: NameEncoder
    train: NamedBank
    whole: NamedBank
    valid: list[TaskBatch]
    recipe: UnseenRecipe
    thorough: bool
    directory: Path
    priors: Once[NamePrior] = field(default_factory=Once)
    zoos: Once[Zoo] = field(default_factory=Once)

    def prior(self, progress: Step | None = None) -> NamePrior:
        """The start of the chain, which all our methods share."""
        told = progress or (lambda i, n, text: None)
        return self.priors.once(
            "prior",
            lambda: choose_prior(self.train, self.valid, thorough=self.thorough, progress=told),
        )[0]

    def zoo(self, progress: Progress | None = None) -> Zoo:
        """The solved tasks, which all our methods share."""
        prior, place = self.prior(), self.directory / "zoo"
        return self.zoos.once(
            "zoo", lambda: prepare_zoo(place, self.train, prior, self.recipe, progress=progress)
        )[0]

    @property
    def prepare_s(self) -> float:
        """Seconds that the prior and the zoo took."""
        return sum(s for made in (self.priors, self.zoos) for _, s in made.values())


class GeneratedUnseen(UnseenMethod):
    """A generator as a method without labels."""

    note = "generated heads"

    def __init__(self, name: str, world: TransferWorld) -> None:
        self.name = name
        self.kind = "ours" if name == "lt-di" else "control"
        self.world, self.recipe = world, variant(name, world.recipe)
        self.generator: UnseenGenerator | None = None
        self.steps: dict[str, tuple[float, float]] = {}

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        world = self.world
        prior, zoo = world.prior(progress), world.zoo(staged(progress))
        self.prepare_s = world.prepare_s
        start = time.perf_counter()
        generator = train_unseen(
            zoo, prior, world.backbone, world.encoder, self.recipe, progress=staged(progress)
        )

        def heads(batch: TaskBatch, **options: float) -> Tensor:
            steps = int(options["steps"])
            return generator.weights(
                batch.text, batch.pool, batch.mask, steps=steps, strength=options["strength"]
            )

        chosen, self.steps = choose_steps(heads, banks.valid, options_of(self.recipe))
        parts = generator.parts
        sampling = replace(parts.sampling, steps=int(chosen["steps"]), strength=chosen["strength"])
        self.generator = UnseenGenerator(replace(parts, sampling=sampling))
        self.train_s = time.perf_counter() - start

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        assert self.generator is not None
        self.generator = self.generator.starting_from(refit(self.generator.prior, source))

    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        assert self.generator is not None
        return head_logits(self.generator.weights(batch.text, batch.pool, batch.mask), images)


class PriorOnly(UnseenMethod):
    """The start of the chain with nothing generated: what names and plain EM do alone."""

    name = ANCHOR
    kind = "control"
    note = "the start of lt-di's chain, without a generator"

    def __init__(self, world: TransferWorld) -> None:
        self.world = world

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        self.heads = prior_heads(self.world.prior(progress))

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        self.heads = prior_heads(refit(self.world.prior(), source))

    @torch.no_grad()
    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        # The prior reads the width of a feature from the query.
        shaped = TaskBatch(batch.text, batch.pool, batch.mask, images.unsqueeze(1))
        return head_logits(self.heads(shaped), images)


class Supervised:
    """The ceiling: class means of the pool with its labels, in whitened coordinates."""

    name = CEILING

    def __init__(self, source: NamedBank) -> None:
        self.coordinates = Coordinates.fit(source, whiten=True)

    def logits(self, batch: TaskBatch, labels: Tensor, images: Tensor) -> Tensor:
        """Logits [E, P, way], from the labels [E, n] of the pool."""
        enter = self.coordinates.frame.enter
        one = torch.nn.functional.one_hot(labels, batch.way) * batch.mask.unsqueeze(-1)
        mean = one.mT @ enter(batch.pool) / one.sum(1).unsqueeze(-1).clamp(min=1)
        return 2 * enter(images) @ mean.mT - mean.square().sum(-1).unsqueeze(1)


def make_method(name: str, world: TransferWorld, fitted: dict[str, UnseenMethod]) -> UnseenMethod:
    """The method called `name`, unfitted; an adapted peer shares the plain one if it is fitted."""
    if name in VARIANTS:
        return GeneratedUnseen(name, world)
    if name == ANCHOR:
        return PriorOnly(world)
    base = name.removesuffix("+em")
    if base != name:
        known = fitted.get(base)
        return Adapted(known or UNSEEN_PEERS[base](), own=known is None)
    return UNSEEN_PEERS[name]()
