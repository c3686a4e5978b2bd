"""From source classes to a generator of heads for classes that only have names.

Tasks are solved as in `ltdi.pipeline`: the supervised head of a task is found by Adam from the
prior's head, and the k local targets on that path are kept. The classes of a task are held out from
the prior that it starts from. In meta-training the noised weight is made of the network's own
estimate, not of the target: at generation it will see nothing else, and the errors of its own
estimates (a cluster with the wrong name) are not Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltdi.anchor.prior import NamePrior
from ltdi.backbone import Backbone
from ltdi.collect import HeadPredictor, Preparation, optimise
from ltdi.denoiser import Guide, NamedCode, NamingDenoiser
from ltdi.diffusion.losses import Probe
from ltdi.engine import Objective, Runtime, meta_train
from ltdi.files import plain
from ltdi.generator import NamedHost, UnseenGenerator
from ltdi.lora.names import NameEncoder
from ltdi.meta import Batch, MetaConfig, Params
from ltdi.parts import Parts
from ltdi.progress import Progress
from ltdi.recipe import Diffusion, Network, Sampling
from ltdi.seeding import seeded
from ltdi.unseen.choice import refit
from ltdi.unseen.tasks import NamedBank, sample_tasks
from ltdi.weights import Normaliser, centre_classes, head_space
from ltdi.zoo import Zoo

# Images per class that targets are solved on where there is no pool.
_LABELLED = (10, 20)


@dataclass(frozen=True)
class UnseenRecipe:
    """Everything between source classes and a generator.

    Attributes:
        ways: Classes per training task.
        pool: Fewest and most unlabelled images per class; (0, 0) for names alone.
        query: Labelled images per class that only the loss sees.
        tasks: Solved tasks for each way.
        folds: How often classes are held out from the prior.
        held_out: Share of the concepts in a fold.
        own: Whether noised weights are made of the network's own estimate.
    """

    ways: tuple[int, ...] = (5, 10, 20)
    pool: tuple[int, int] = (10, 40)
    query: int = 10
    tasks: int = 640
    folds: int = 16
    held_out: float = 0.25
    own: bool = True
    prepare: Preparation = field(default_factory=lambda: Preparation(lr=0.05, steps=24, segments=4))
    diffusion: Diffusion = field(default_factory=lambda: Diffusion(steps=8))
    network: Network = field(default_factory=lambda: Network(kind="naming"))
    meta: MetaConfig = field(
        default_factory=lambda: MetaConfig(
            iterations=300, meta_batch=4, inner_steps=3, tasks=3, meta_lr=2e-3, warmup=20, ema=0.97
        )
    )

    @property
    def sampling(self) -> Sampling:
        """All steps without noise; validation may choose fewer."""
        return Sampling(steps=self.diffusion.steps, temperature=0.0)


def held_out(source: NamedBank, recipe: UnseenRecipe) -> list[list[int]]:
    """The classes of every fold; classes of one concept stay together."""
    numbers = source.concepts
    kinds = sorted(set(numbers))
    rng = torch.Generator().manual_seed(recipe.meta.seed + 5)
    # Whole partitions, one after the other, so that every class is held out equally often.
    parts = max(1, round(1 / recipe.held_out))
    folds: list[list[int]] = []
    while len(folds) < recipe.folds:
        order = torch.randperm(len(kinds), generator=rng).tolist()
        for part in range(parts):
            chosen = {kinds[i] for i in order[part::parts]}
            folds.append([i for i, n in enumerate(numbers) if n in chosen])
    return folds[: recipe.folds]


def prepare_zoo(
    path: Path,
    source: NamedBank,
    prior: NamePrior,
    recipe: UnseenRecipe,
    *,
    progress: Progress | None = None,
) -> Zoo:
    """Solve all tasks of a recipe into a zoo on disk; finished shards are kept.

    Args:
        path: Directory of the zoo: new, empty, or that of such a zoo.
        source: Source classes, with names and features.
        prior: Of all source classes; a fold's is fitted without its own, with the same settings.
        recipe: Which tasks, and how they are solved.
        progress: Called as progress(stage, done, total, text).

    Raises:
        InputError: If there are too few classes or images for the tasks.
        MismatchError: If the zoo there was made with other settings.
    """
    width = source.bank.width
    about = {
        "recipe": asdict(replace(recipe, meta=MetaConfig(), diffusion=Diffusion())),
        "prior": asdict(prior.settings),
        "seed": recipe.meta.seed,
    }
    zoo = Zoo.create(path, head_space(width, recipe.ways[0]), plain(about))
    zoo.keep_bank(source.bank)
    folds = held_out(source, recipe)
    each = max(1, -(-recipe.tasks // len(folds)))
    frames, done = [], 0
    for number, classes in enumerate(folds):
        rest = [i for i in range(len(source.names)) if i not in set(classes)]
        fold = refit(prior, source.select(rest))
        frames.append(fold.frame(width))
        for way in recipe.ways:
            name = f"shard-{number:04d}-{way:03d}"
            size = min(way, len(classes))
            if not zoo.has(name) and size >= 2:
                seed = (recipe.meta.seed + 1) * 1_000_003 + 101 * number + way
                columns, finite = _solve(
                    source, fold, recipe, torch.tensor(classes), size, each, seed
                )
                zoo.append(name, columns, finite, setting={"way": size, "frame": number})
            done += 1
            if progress:
                progress("solving tasks", done, len(folds) * len(recipe.ways), "")
    zoo.keep_frames(frames, folds)
    return zoo


def _solve(
    source: NamedBank,
    prior: NamePrior,
    recipe: UnseenRecipe,
    among: Tensor,
    way: int,
    tasks: int,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Columns of solved tasks in the frame of a fold's prior, and [tasks] whether each is sound."""
    # The target is solved on images even where the generator goes by names alone.
    low, high = recipe.pool if recipe.pool[1] else _LABELLED
    drawn = sample_tasks(
        source,
        way=way,
        pool=(low, high),
        query=recipe.query,
        tasks=tasks,
        seed=seed,
        among=among,
    )
    batch, width = drawn.view(source), source.bank.width
    frame, space = prior.frame(width), head_space(width, way)
    pool, query = frame.enter(batch.pool), frame.enter(batch.query)
    if recipe.pool[1] == 0:
        task = prior.named(batch.text, pool[:, :0], batch.mask[:, :0])
    else:
        task = prior.named(batch.text, pool, batch.mask)
    start = prior.start(task, space)
    # What is masked is replaced by the class's first image: it counts twice, and nothing breaks.
    grid = pool.unflatten(1, (way, high))
    real = batch.mask.unflatten(1, (way, high)).unsqueeze(-1)
    grid = torch.where(real > 0, grid, grid[:, :, :1])
    samples = torch.cat([grid, query], 2)
    labels = torch.arange(way).repeat_interleave(samples.shape[2])
    path = optimise(HeadPredictor(space), start, samples.flatten(1, 2), labels, recipe.prepare)
    theta = space.flatten(centre_classes(space.unflatten(path.theta)))
    empty = recipe.pool[1] == 0
    columns = {
        "theta": theta,
        "anchor": start,
        "mean": task.mean,
        "certainty": task.certainty,
        "pool": drawn.pool[:, :0] if empty else drawn.pool,
        "mask": drawn.mask[:, :0] if empty else drawn.mask,
        "query": drawn.query,
        "loss": path.loss,
        "accuracy": path.accuracy,
    }
    return columns, path.finite


class UnseenObjective(Objective):
    """The training loss: draws batches of solved tasks and scores a network on them."""

    def __init__(
        self, zoo: Zoo, network: nn.Module, normaliser: Normaliser, recipe: UnseenRecipe
    ) -> None:
        super().__init__(recipe.diffusion)
        self.network, self.normaliser, self.recipe = network, normaliser, recipe
        self.frames, self.bank = zoo.frames(), zoo.bank()
        self.see(zoo.groups())

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """See `Objective.draw`."""
        g, pick = self.pick(rng, tasks)
        held = g.read(pick)
        anchor = held["anchor"]
        residual = self.normaliser.normalise(held["theta"] - anchor.unsqueeze(1), g.space)
        noised = self.noised(residual, rng)
        frame = self.frames[int(g.setting["frame"])]
        half = noised.t // 2
        # The signal that the chain has at half the time, for the network's own estimate.
        end = (noised.stage * self.schedule.steps).round().long().clamp(min=1)
        if self.diffusion.objective != "trajectory":
            end = torch.full_like(end, self.schedule.steps)
        heat = torch.rand(tasks, generator=rng) * (torch.rand(tasks, generator=rng) < 0.5)
        return {
            **vars(noised),
            "eps": heat[:, None] * (noised.x_t - noised.signal[:, None] * noised.target),
            "half": half,
            "half_signal": self.schedule.alpha_bar_local(half, end).sqrt(),
            "anchor": anchor,
            "between": frame.between.expand(tasks, -1),
            "mean": held["mean"],
            "certainty": held["certainty"],
            "mask": held["mask"],
            "pool": frame.enter(self.bank.features[held["pool"]]),
            "query": frame.enter(self.bank.features[held["query"]]).flatten(1, 2),
        }

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner."""
        way, width = batch["mean"].shape[1:]
        space = head_space(width, way)
        code = NamedCode(batch["mean"], batch["certainty"], batch["pool"], batch["mask"])

        def denoise(x: Tensor, t: Tensor, signal: Tensor) -> Tensor:
            guide = Guide(batch["anchor"], batch["between"], signal, batch["stage"])
            out: Tensor = functional_call(self.network, params, (x, t, code, space, guide))
            return out

        x = batch["x_t"]
        if self.recipe.own and self.diffusion.steps > 1:
            none = torch.zeros_like(batch["half"])
            first = denoise(torch.zeros_like(x), none, torch.zeros_like(batch["signal"])).detach()
            signal = batch["half_signal"]
            second = denoise(signal[:, None] * first, batch["half"], signal).detach()
            # At the first step the chain has no estimate, whatever the objective's signal is.
            known = (batch["t"] > 0).to(x)[:, None]
            x = known * batch["signal"][:, None] * second + batch["eps"]
        output = denoise(x, batch["t"], batch["signal"])
        probe = Probe(batch["query"], batch["anchor"], self.normaliser.scale(space))
        return self.loss(output, batch["target"], batch["weight"], probe)


def train_unseen(
    zoo: Zoo,
    prior: NamePrior,
    backbone: Backbone,
    encoder: NameEncoder,
    recipe: UnseenRecipe,
    *,
    progress: Progress | None = None,
) -> UnseenGenerator:
    """Meta-train a generator; it takes all steps without noise, validation may choose fewer.

    Raises:
        DivergedError: If the loss leaves the finite numbers.
    """
    shape = recipe.network
    with seeded(recipe.meta.seed):
        network = NamingDenoiser(
            steps=recipe.diffusion.steps, width=shape.width, depth=shape.depth, heads=shape.heads
        )
    group = zoo.groups()[0]
    held = group.read(columns=("theta", "anchor"))
    normaliser = Normaliser.fit(
        held["theta"] - held["anchor"].unsqueeze(1), group.space, centre=False
    )
    network.unit.copy_(normaliser.std)
    # Logits of the start are `scale` times those of expectation maximisation.
    network.hardness.copy_(prior.settings.hardness / prior.scale)
    host = NamedHost(backbone, encoder, prior.about, pooled=recipe.pool[1] > 0)
    parts = meta_train(
        Parts.of(recipe, zoo.space, network, prior, normaliser, host),
        UnseenObjective(zoo, network, normaliser, recipe),
        recipe,
        Runtime(progress=progress),
    )
    return UnseenGenerator(parts)


def options_of(recipe: UnseenRecipe) -> Sequence[dict[str, float]]:
    """The samplings that validation classes choose from, cheapest first: the start alone is one."""
    total = recipe.diffusion.steps
    steps = [s for s in (1, 2, 4, 8, 16) if s <= total]
    generated = [{"steps": s, "strength": x} for s in steps for x in (0.25, 0.5, 1.0)]
    return [{"steps": 1, "strength": 0.0}, *generated]
