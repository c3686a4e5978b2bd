"""A bank of features becomes a zoo: anchor, folds, and tasks that are solved shard by shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.anchor import Anchor, fit_anchor, make_empty_anchor
from ltdi.anchor.crossfit import Fold, crossfit, hold_out, likeness
from ltdi.backbone import Backbone
from ltdi.collect import HeadPredictor, optimise
from ltdi.engine import Collection, Piece, plan_of, recipe_of, settings_of
from ltdi.errors import unknown
from ltdi.files import plain
from ltdi.recipe import Recipe
from ltdi.tasks import FeatureBank, sample_episodes
from ltdi.weights import centre_classes, head_space
from ltdi.zoo import Zoo


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
) -> tuple[dict[str, Tensor], Tensor]:
    """Solve head tasks: many samples per class for the target, only the shots for the condition.

    Everything takes place in the coordinates of the fold's frame, seen from the task's mean.

    Args:
        bank: Features that the episodes are drawn from.
        fold: Its classes, and the anchor that does not know them.
        recipe: How tasks are solved.
        way: Classes per task.
        shot: Support samples per class.
        tasks: E, how many tasks.
        seed: Of the episodes and the optimiser's batches.
        number: Of the fold's frame in the zoo.

    Returns:
        A zoo's columns: `theta` [E, k, n] local targets and `anchor` [E, n], in the fold's frame,
        `support` [E, way, shot] and `query` [E, way, query] items of the bank, the number of the
        `frame`, final training `loss` and `accuracy`; and [E] whether each task is finite.
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
    anchor, mask = fold.seen(episodes.classes), torch.ones(support.shape[:3])
    origin = anchor.task_mean(support, mask, fold.frame)[:, None, None]
    support, query = support - origin, query - origin
    start = anchor.local(support, mask, space)
    theta_0 = start
    if recipe.start == "gaussian":
        theta_0 = recipe.start_std * torch.randn(start.shape, generator=rng)
    samples = torch.cat([support, query], 2)
    labels = torch.arange(way).repeat_interleave(samples.shape[2])
    path = optimise(
        HeadPredictor(space), theta_0, samples.flatten(1, 2), labels, recipe.prepare, rng=rng
    )
    theta = space.flatten(centre_classes(space.unflatten(path.theta)))
    columns = {
        "theta": theta,
        "anchor": start,
        "support": episodes.support,
        "query": probe if probe.shape[-1] else solved_on,
        "frame": torch.full((tasks,), number),
        "loss": path.loss,
        "accuracy": path.accuracy,
    }
    return columns, path.finite


def check_start(recipe: Recipe) -> None:
    """Refuse an unknown theta_0.

    Raises:
        InputError: With the nearest known name.
    """
    if recipe.start not in ("anchor", "gaussian"):
        raise unknown("start", recipe.start, ("anchor", "gaussian"), where="start")


class HeadCollection(Collection[Piece]):
    """A zoo of heads that has been started: what solving and training read of it.

    Raises:
        InputError: If a file is missing.
        DamagedFileError: If one is truncated or altered.
    """

    def __init__(self, zoo: Zoo) -> None:
        self.recipe, self.frames, self.bank = recipe_of(zoo), zoo.frames(), zoo.bank()
        tensors, note = zoo.shared("anchor"), zoo.note("anchor")
        self.anchor = make_empty_anchor(note["name"], self.bank.width)
        self.anchor.own_mean = bool(note.get("own_mean"))
        self.anchor.load_state_dict(tensors)
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

    def origin(self, number: int, support: Tensor) -> Tensor:
        """Where tasks of a frame were solved, [B, 1, 1, D], from their support in that frame."""
        mask = torch.ones(support.shape[:3], device=support.device)
        return self.anchor.task_mean(support, mask, self.frames[number])[:, None, None]

    def make(self, number: int) -> None:
        """Solve one shard."""
        piece = self.plan[number]
        columns, finite = solve(
            self.bank,
            self.fold(piece.fold),
            self.recipe,
            way=piece.way,
            shot=piece.shot,
            tasks=piece.tasks,
            seed=self.seed(number),
            number=piece.fold,
        )
        setting = {"way": piece.way, "shot": piece.shot, "frame": piece.fold}
        self.zoo.append(piece.name, columns, finite, setting=setting)


def start_zoo(
    path: Path | str,
    bank: FeatureBank,
    recipe: Recipe,
    backbone: Backbone,
    about: dict[str, Any] | None = None,
) -> Zoo:
    """A zoo with the settings and the bank of heads, and nothing else; see `begin_zoo`.

    Raises:
        InputError: If `recipe.start` is unknown, or the directory is not ours.
        MismatchError: If the zoo there was made with other settings.
    """
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

    Args:
        path: Directory of the zoo: new, empty, or that of such a zoo.
        bank: Features by class.
        anchor: Of all classes; folds refit it without their own.
        recipe: Which tasks, and how they are solved.
        backbone: That the features came from; its fingerprint is kept.
        about: Further settings that a zoo must agree in to be taken up.

    Raises:
        InputError: If the directory is not ours, or the bank is too small for the tasks.
        MismatchError: If the zoo there was made with other settings.
    """
    zoo = start_zoo(path, bank, recipe, backbone, about)
    note = {"name": anchor.name, "own_mean": anchor.own_mean}
    zoo.keep("anchor", anchor.state_dict(), note)
    if not (zoo.held and zoo.file("frames.safetensors").is_file()):
        classes = [torch.tensor(c) for c in zoo.held]
        folds = [hold_out(anchor, bank, c) for c in classes] or make_folds(recipe, anchor, bank)
        zoo.keep_frames([f.frame for f in folds], [f.classes.tolist() for f in folds])
    return HeadCollection(zoo)
