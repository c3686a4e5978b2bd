"""Nets of a seen task whose trajectories over-fit; the study `overfit` of `ablation.py`.

A zoo has the trajectories of several trainings on few images, or on wrong labels. The last local
target has learned them by heart, an earlier one has not yet. `lt-di` ends its chain at the local
target whose nets are best on validation images; its matched control has seen theta_M alone.
`single-waypoint` is `mv-di` that was given that one local target in the place of theta_M: what it
reaches is owed to the waypoint, not to the diffusion of a trajectory. `nets` are those of the zoo,
`average-run` is the mean of a training's branches, and `-waypoint` means at that local target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ltdi.data import ImageSet
from ltdi.evaluate import summarise
from ltdi.generator import SampleGenerator
from ltdi.recipe import Recipe, named_recipe
from ltdi.samples import (
    Checkpoints,
    Trainings,
    chosen_sampler,
    collect_checkpoints,
    predictions,
    standing,
    train_sampler,
    transformed,
)
from ltdi.tracks.checkpoints import PRESETS

PLAIN = ("nets", "nets-waypoint", "average-run", "average-run-waypoint")
METHODS = ("lt-di", "mv-di-matched", "mv-di", "anchored-regression", "single-waypoint", *PLAIN)
_IMAGES, _SEGMENTS, _DRAWN, _TESTS = 500, 5, 64, 2000
# Percent of wrong labels, steps and number of branches, by axis and value.
VALUES: Mapping[str, Mapping[int, tuple[int, int, int]]] = {
    "percent of wrong labels": {0: (0, 200, 12), 20: (20, 200, 12), 40: (40, 200, 12)},
    "steps": {800: (0, 800, 6)},
}


def trainings(axis: str, value: int) -> Trainings:
    """Four trainings, each of which parts into branches after 40 steps, or five epochs."""
    wrong, steps, branches = VALUES[axis][value]
    net = PRESETS["standard"].trainings.net
    return Trainings(net, 4, 40, branches, steps, _IMAGES, wrong / 100)


def recipe(axis: str, value: int) -> Recipe:
    """That of the track with five local targets, lean, and told of weights alone."""
    base = PRESETS["standard"].recipe
    steps = trainings(axis, value).branch_steps
    return replace(
        base,
        diffusion=replace(base.diffusion, loss="weight", plus_weight=0.0),
        prepare=replace(base.prepare, steps=steps, segments=_SEGMENTS),
        meta=replace(base.meta, iterations=60, tasks=32, warmup=10, inner_lr=0.05),
    )


@dataclass
class Nets:
    """The zoo of one value and one seed, which all methods share.

    Attributes:
        zoo: Trajectories.
        best: Number of the local target whose nets are best on validation images.
        images: Transformed test images.
        labels: Of these.
    """

    zoo: Checkpoints
    best: int
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, parts: dict[str, ImageSet], axis: str, value: int, seed: int) -> Nets:
        """Train them."""
        plan = recipe(axis, value)
        made = collect_checkpoints(
            parts, trainings(axis, value), plan, seed=seed, progress=lambda *_: None
        )
        found = standing(made)
        best = max(range(_SEGMENTS), key=lambda i: list(found.values())[i]) + 1
        return cls(made, best, *transformed(parts["test"], made.host, _TESTS, seed))

    def right(self, theta: Tensor) -> Tensor:
        """[images] share of nets [E, n] that are right on each."""
        guess = predictions(theta, self.zoo, self.images)
        return (guess == self.labels).float().mean(0)


def measure(nets: Nets, method: str, base: Recipe, seed: int) -> list[dict[str, Any]]:
    """Nets of one method, judged on test images: as varied as may be, and the most accurate.

    The first are drawn at the highest temperature at which they are as good as the nets that they
    imitate (`chosen_sampler`), in 4, 8 or 20 steps, or all to an earlier end, as validation says;
    the second in one step, without noise.
    """
    zoo, waypoint = nets.zoo, nets.zoo.at(nets.best)
    about: dict[str, Any] = {"best": nets.best}
    if method in PLAIN:
        of = waypoint if method.endswith("-waypoint") else zoo
        theta = of.centres() if method.startswith("average") else of.last
        return [{**about, "steps": 0, **judged(nets, theta)}]
    if method == "single-waypoint":
        zoo, method = waypoint, "mv-di"
    plan = named_recipe(method, replace(base, meta=replace(base.meta, seed=seed)))
    made = train_sampler(zoo, plan, lambda *_: None)
    rows = []
    if plan.sampling.temperature > 0:
        made = in_few_steps(made, zoo)
        chosen = made.parts.sampling
        drawn = made.draws(_DRAWN, seed=seed)
        told = {"temperature": chosen.temperature, "end": chosen.end, "steps": chosen.steps}
        spread = float((drawn - drawn.mean(0)).norm(dim=1).mean())
        rows.append({**about, **told, "spread": round(spread, 3), **judged(nets, drawn)})
    end = made.parts.sampling.end
    sharp = made.draws(len(zoo.centres()), seed=seed, steps=1, temperature=0.0, end=end)
    return [*rows, {**about, "end": end, "steps": 1, **judged(nets, sharp)}]


def in_few_steps(made: SampleGenerator, zoo: Checkpoints) -> SampleGenerator:
    """The sampling of `chosen_sampler`, in the number of steps whose nets it finds the best."""
    found: dict[int, tuple[float, SampleGenerator]] = {}
    for steps in (4, 8, 20):
        sampling = replace(made.parts.sampling, steps=steps)
        tried, scores = chosen_sampler(
            SampleGenerator(replace(made.parts, sampling=sampling)), zoo, None
        )
        s = tried.parts.sampling
        found.setdefault(s.steps, (scores[f"{s.sampler}, temperature {s.temperature}"], tried))
    return max(found.values(), key=lambda pair: pair[0])[1]


def judged(nets: Nets, theta: Tensor) -> dict[str, Any]:
    """Accuracy of nets [E, n], and of each image the share of nets that are right."""
    right = nets.right(theta)
    found = summarise(right)
    return {
        "mean": found.mean,
        "ci95": found.ci95,
        "accuracy": [round(float(a), 4) for a in right],
    }
