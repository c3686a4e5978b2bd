"""The corridor: a bank of features becomes a zoo, a zoo becomes a generator."""

from __future__ import annotations

import functools
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from ltdi.anchor import Anchor, fit_anchor, make_empty_anchor
from ltdi.backbone import Backbone
from ltdi.checkpoint import NAME as CHECKPOINT
from ltdi.choice import choose_sampling
from ltdi.collect import head_predictor, optimise
from ltdi.crossfit import Fold, crossfit, hold_out, likeness
from ltdi.denoiser import EquivariantDenoiser, Guide
from ltdi.diffusion import draw, make_schedule
from ltdi.engine import Arrivals, Collection, Engine, plan_of, recipe_of, settings_of
from ltdi.errors import MismatchError, unknown
from ltdi.files import plain, read_metadata, read_tensors, write_tensors
from ltdi.frame import Frame
from ltdi.generator import HeadGenerator, ImageGenerator
from ltdi.losses import LOSSES, Probe
from ltdi.meta import Batch, MetaTrainer, Params
from ltdi.parts import Parts, build_network, check_sampling
from ltdi.progress import Log, Progress
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank, sample_episodes
from ltdi.team import ALONE, Team
from ltdi.weights import Normaliser, WeightSpace, centre_classes, head_space
from ltdi.zoo import Group, SolvedTasks, Zoo

# Bytes of features that are kept in every frame.
FRAMED = 1 << 28


def make_anchor(recipe: Recipe, train: FeatureBank, valid: FeatureBank) -> Anchor:
    """The recipe's anchor, fitted on the training classes and calibrated on the validation ones."""
    return fit_anchor(
        recipe.anchor,
        train,
        valid,
        way=recipe.tasks.ways[0],
        shots=recipe.tasks.shots,
        seed=recipe.meta.seed,
        refine=recipe.refine,
    )


def make_folds(recipe: Recipe, anchor: Anchor, bank: FeatureBank) -> list[Fold]:
    """The recipe's cross-fitting: which classes are solved against which anchor.

    Where `alike` is to be chosen, it is that of the folds whose tasks look to their anchor most
    as validation tasks look to the anchor itself.
    """
    t, seed = recipe.tasks, recipe.meta.seed

    def folds(alike: float, most: int = t.folds) -> list[Fold]:
        return crossfit(
            anchor,
            bank,
            folds=min(t.folds, most),
            share=t.held_out,
            alike=alike,
            least=max(t.ways),
            seed=seed,
        )

    if t.folds == 0 or t.alike >= 0:
        return folds(max(0.0, t.alike))

    def distance(alike: float) -> float:
        return likeness(folds(alike, 6), bank, way=t.ways[0], shots=t.shots, seed=seed)

    return folds(min((0.0, 0.5, 1.0), key=distance))


def solve(
    bank: FeatureBank,
    fold: Fold,
    recipe: Recipe,
    *,
    way: int,
    shot: int,
    tasks: int,
    seed: int,
    number: int = 0,
) -> tuple[SolvedTasks, Tensor]:
    """Solve head tasks: many samples per class for the target, only the shots for the condition.

    Everything takes place in the coordinates of the fold's frame, whose number is `number`.

    Returns:
        The solved tasks and [tasks] whether each is finite.
    """
    t, space = recipe.tasks, head_space(bank.width, way)
    rng = torch.Generator().manual_seed(seed)
    episodes = sample_episodes(
        bank.offsets,
        way=way,
        shot=shot,
        query=fold.queries(bank, shot, t.query + t.probe),
        episodes=tasks,
        seed=seed,
        among=fold.classes,
    )
    kept = min(t.query, max(1, episodes.query.shape[-1] - t.probe))
    solved_on, probe = episodes.query[..., :kept], episodes.query[..., kept:]
    support = fold.frame.enter(bank.features[episodes.support])
    query = fold.frame.enter(bank.features[solved_on])
    start = fold.seen(episodes.classes).local(support, torch.ones(support.shape[:3]), space)
    theta_0 = start
    if recipe.start == "gaussian":
        theta_0 = recipe.start_std * torch.randn(start.shape, generator=rng)
    samples = torch.cat([support, query], 2)
    labels = torch.arange(way).repeat_interleave(samples.shape[2])
    path = optimise(
        head_predictor(space), theta_0, samples.flatten(1, 2), labels, recipe.prepare, rng=rng
    )
    theta = space.flatten(centre_classes(space.unflatten(path.theta)))
    frame = torch.full((tasks,), number)
    judged_on = probe if probe.shape[-1] else solved_on
    solved = SolvedTasks(theta, start, episodes.support, judged_on, frame, path.loss, path.accuracy)
    return solved, path.finite


def check_start(recipe: Recipe) -> None:
    """Refuse an unknown theta_0.

    Raises:
        InputError: With the nearest known name.
    """
    if recipe.start not in ("anchor", "gaussian"):
        raise unknown("start", recipe.start, ("anchor", "gaussian"), where="start")


class HeadCollection(Collection):
    """A zoo of heads that has been started.

    Args:
        zoo: Started by `begin_zoo`.
    """

    def __init__(self, zoo: Zoo) -> None:
        self.recipe, self.frames = recipe_of(zoo), zoo.frames()
        self.bank, self.anchor = zoo.bank(), load_anchor(zoo)
        self._folds: dict[int, Fold] = {}
        super().__init__(zoo, plan_of(self.recipe.tasks, len(self.frames)))

    @classmethod
    def open(cls, zoo: Zoo) -> HeadCollection:
        """See `Collection.open`."""
        return HeadCollection(zoo)

    def fold(self, number: int) -> Fold:
        """A fold, its anchor fitted again on the classes that were chosen once."""
        if number not in self._folds:
            classes = torch.tensor(self.zoo.held[number])
            fold = hold_out(self.anchor, self.bank, classes)
            self._folds[number] = replace(fold, frame=self.frames[number])
        return self._folds[number]

    def make(self, number: int) -> None:
        """Solve one shard."""
        piece = self.plan[number]
        solved, finite = solve(
            self.bank,
            self.fold(piece.fold),
            self.recipe,
            way=piece.way,
            shot=piece.shot,
            tasks=piece.tasks,
            seed=self.seed(number),
            number=piece.fold,
        )
        self.zoo.append(piece.name, vars(solved), finite, setting=solved.setting)


def start_zoo(
    path: Path | str,
    bank: FeatureBank,
    recipe: Recipe,
    backbone: Backbone,
    about: dict[str, Any] | None = None,
) -> Zoo:
    """A zoo with the settings and the bank of heads, and nothing else; see `begin_zoo`."""
    check_start(recipe)
    settings = {
        **settings_of(recipe),
        "anchor": recipe.anchor,
        "start": recipe.start,
        "start_std": recipe.start_std,
        "refine": recipe.refine,
        "backbone": backbone.fingerprint,
        **(about or {}),
    }
    zoo = Zoo.create(path, head_space(bank.width, recipe.tasks.ways[0]), plain(settings))
    zoo.keep_bank(bank)
    return zoo


def begin_zoo(
    path: Path | str,
    bank: FeatureBank,
    anchor: Anchor,
    recipe: Recipe,
    backbone: Backbone,
    *,
    about: dict[str, Any] | None = None,
) -> HeadCollection:
    """Start a zoo of heads, or take up the one there: all but the shards.

    What was stored first stays: another rounding must not choose anew.

    Raises:
        InputError: If the directory is not ours, or the bank is too small for the tasks.
        MismatchError: If the zoo there was made with other settings.
    """
    zoo = start_zoo(path, bank, recipe, backbone, about)
    zoo.keep("anchor", anchor.state_dict(), {"name": anchor.name})
    if not (zoo.held and zoo.file("frames.safetensors").is_file()):
        classes = [torch.tensor(c) for c in zoo.held]
        folds = [hold_out(anchor, bank, c) for c in classes] or make_folds(recipe, anchor, bank)
        zoo.keep_frames([f.frame for f in folds], [f.classes.tolist() for f in folds])
    return HeadCollection(zoo)


def prepare_zoo(
    path: Path | str,
    bank: FeatureBank,
    anchor: Anchor,
    recipe: Recipe,
    backbone: Backbone,
    *,
    about: dict[str, Any] | None = None,
    engine: Engine = Engine(),
    progress: Progress | None = None,
) -> Zoo:
    """Solve all tasks of a recipe into a zoo on disk; finished shards are kept.

    A zoo collected in two runs, or by several workers, equals one of one run. See `begin_zoo` for
    the errors.
    """
    collection = begin_zoo(path, bank, anchor, recipe, backbone, about=about)
    collection.fill(engine, progress)
    return collection.zoo


@dataclass(frozen=True)
class Shared:
    """What a zoo's directory keeps besides the zoo: all that training needs."""

    anchor: Anchor
    backbone: Backbone
    valid: FeatureBank


def save_shared(path: Path, backbone: Backbone, valid: FeatureBank) -> None:
    """Write backbone and validation features beside a zoo; the anchor is in it."""
    if not (path / "backbone" / "backbone.json").is_file():
        backbone.save(path / "backbone")
    write_tensors(
        path / "valid.safetensors",
        {"features": valid.features, "offsets": valid.offsets},
        {"classes": json.dumps(list(valid.classes))},
    )


def load_anchor(zoo: Zoo) -> Anchor:
    """The anchor that a zoo of heads was made with.

    Raises:
        InputError: If its file is missing.
        DamagedFileError: If it is truncated or altered.
    """
    tensors = zoo.shared("anchor")
    anchor = make_empty_anchor(zoo.note("anchor")["name"], zoo.space.layers[0].row - 1)
    anchor.load_state_dict(tensors)
    return anchor


def load_shared(zoo: Zoo) -> Shared:
    """What lies in a zoo and beside it, for training.

    Raises:
        InputError: If a file is missing.
        DamagedFileError: If one is truncated or altered.
        MismatchError: If the backbone is not the one that the zoo was collected on.
    """
    backbone = Backbone.load(zoo.file("backbone"))
    if backbone.fingerprint != zoo.about["backbone"]:
        raise MismatchError(
            "the backbone beside the zoo is not the one that it was collected on",
            where=str(zoo.file("backbone")),
            fix="restore it from a copy, or collect the zoo anew",
        )
    file = zoo.file("valid.safetensors")
    held = read_tensors(file)  # verified before its metadata are believed
    names = json.loads(read_metadata(file)["classes"])
    valid = FeatureBank(held["features"], held["offsets"], tuple(names))
    return Shared(load_anchor(zoo), backbone, valid)


@dataclass(frozen=True)
class TrainingSet:
    """What meta-training reads: solved tasks by way, shot and frame, and their features.

    The tasks stay on disk; a batch reads its own rows. Where there are `arrivals`, `groups` are
    those that are visible at first.
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
        self.probes = recipe.diffusion.loss != "weight"
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
        loss = LOSSES[self.recipe.diffusion.loss]
        return loss(output, batch["target"], batch["weight"], probe)


def train_generator(
    data: TrainingSet,
    anchor: Anchor,
    backbone: Backbone,
    recipe: Recipe,
    *,
    out: Path | None = None,
    valid: FeatureBank | None = None,
    judged: Sequence[tuple[int, int]] = (),
    about: dict[str, Any] | None = None,
    objective: type[HeadObjective] = HeadObjective,
    progress: Progress | None = None,
    log: Log | None = None,
    team: Team = ALONE,
) -> HeadGenerator:
    """Meta-train a generator.

    Args:
        data: Solved tasks of a zoo.
        anchor: The anchor that the zoo was made with.
        backbone: The backbone that the features came from.
        recipe: Chain, network, meta-training.
        out: Directory for the checkpoint; none is written without it.
        valid: Features of validation classes, to choose the sampling on; without them the
            recipe's is kept.
        judged: Pairs of way and shot that it is chosen for; those of the training tasks with the
            first way by default.
        about: Data and settings for the model card.
        objective: What is minimised.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        team: Device and processes of meta-training.

    Raises:
        InputError: If the network or the sampling cannot be, or the zoo is empty.
        DivergedError: If the loss leaves the finite numbers.
    """
    d = recipe.diffusion
    check_sampling(recipe.sampling, d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.meta.seed)
        network = build_network(data.space, data.bank.width, recipe.network, d)
    network.standardise(data.frames[0].enter(data.bank.features))
    normaliser = _fit_normaliser(data)
    if isinstance(network, EquivariantDenoiser):
        network.unit.copy_(normaliser.std)
    meta_train(
        network,
        objective(data, network, normaliser, recipe),
        recipe,
        backbone.fingerprint,
        data.space,
        out,
        progress,
        log,
        data.arrivals,
        team,
    )
    parts = Parts(
        data.space,
        network,
        anchor,
        normaliser,
        d,
        recipe.network,
        recipe.sampling,
        backbone,
        plain({"recipe": asdict(recipe), **(about or {})}),
    )
    generator = HeadGenerator(parts)
    return generator if valid is None else tuned(generator, valid, recipe, judged, log)


G = TypeVar("G", bound=ImageGenerator)


def tuned(
    generator: G,
    valid: FeatureBank,
    recipe: Recipe,
    judged: Sequence[tuple[int, int]] = (),
    log: Log | None = None,
) -> G:
    """The generator with the sampling that suits validation classes; see `choose_sampling`.

    A recipe that samples at a temperature above 0 keeps its own sampling.
    """
    if recipe.sampling.temperature > 0:
        return generator
    sampling, scores = choose_sampling(generator, valid, recipe, judged)
    if log:
        log({"event": "sampling", "chosen": asdict(sampling), "validation NLL": scores})
    parts = generator.parts
    about = {**parts.about, "validation NLL": scores}
    return type(generator)(replace(parts, sampling=sampling, about=about))


class Objective(Protocol):
    """What meta-training needs to know of a kind of weights: how batches are drawn and scored."""

    def see(self, groups: list[Group]) -> None:
        """Draw from these tasks from now on."""

    def draw(self, rng: torch.Generator, tasks: int) -> Batch:
        """Noised targets; every tensor [tasks, ...]."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Loss of one base learner."""


def meta_train(
    network: torch.nn.Module,
    objective: Objective,
    recipe: Recipe,
    host: str,
    space: WeightSpace,
    out: Path | None,
    progress: Progress | None,
    log: Log | None,
    arrivals: Arrivals | None = None,
    team: Team = ALONE,
) -> None:
    """Meta-train a network, with a checkpoint in `out` where there is one.

    Args:
        network: Initialised; afterwards it holds the average of its weights.
        objective: The training loss.
        recipe: Chain, network, meta-training.
        host: Fingerprint of what the weights live in; a resumed run must share it.
        space: Likewise.
        out: Directory for the checkpoint.
        progress: Called as progress(stage, done, total, text).
        log: Called with JSON-able records.
        arrivals: Where the zoo is being filled: what is seen of it at which iteration.
        team: Device and processes.
    """
    network.to(team.device)
    run = {**asdict(recipe.diffusion), **asdict(recipe.network)}
    run |= arrivals.settings if arrivals else {}
    trainer = MetaTrainer(
        network,
        objective,
        objective.draw,
        recipe.meta,
        run=plain({**run, "space": space.fingerprint, "backbone": host}),
        before=functools.partial(_see_arrivals, arrivals, objective, progress, log),
        team=team,
    )
    with _ctrl_c_between_iterations() as interrupt:

        def finished(i: int, n: int, loss: float) -> None:
            if progress:
                progress("meta-training", i, n, f"loss {loss:.4f}")
            interrupt()

        trainer.fit(out / CHECKPOINT if out else None, progress=finished, log=log)
    network.to("cpu")
    if arrivals:
        arrivals.end()


def _see_arrivals(
    arrivals: Arrivals | None,
    objective: Objective,
    progress: Progress | None,
    log: Log | None,
    step: int,
) -> None:
    """Before an iteration: draw from the tasks that are visible at it."""
    groups = arrivals.at(step) if arrivals else None
    if arrivals and groups is not None:
        objective.see(groups)
        if progress:
            progress("shards", arrivals.visible, len(arrivals.plan), "visible to training")
        if log:
            log({"event": "arrivals", "step": step, "shards": arrivals.visible})


@contextmanager
def _ctrl_c_between_iterations() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called, or the block ends.

    In the middle of an iteration the random generator and the weights may have moved on while the
    step has not: a checkpoint of that state would not resume exactly.
    """
    pending: list[int] = []

    def interrupt() -> None:
        if pending:
            pending.clear()
            raise KeyboardInterrupt

    # Only the main thread receives signals, and only it may say how.
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    interrupt()


def _fit_normaliser(data: TrainingSet) -> Normaliser:
    """Fitted on residuals at the zoo's own way; the statistics do not depend on the way."""
    group = data.groups[0]
    some = torch.arange(min(len(group), 4096))
    held = group.read(some, ("theta", "anchor"))
    return Normaliser.fit(held["theta"] - held["anchor"].unsqueeze(1), group.space, centre=False)
