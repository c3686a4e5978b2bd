"""Does the paper's bound hold, is the loss linear in lambda, and does SAM lower lambda?

    python benchmarks/convergence.py --json convergence.json

1. Strongly convex heads, for which every constant can be computed: how often each form of the
   bound holds, and how tight it is.
2. The same heads with a generator's error of fixed size: log-log slope of the excess loss over
   lambda.
3. Glyphs; a backbone per seed, a zoo and a generator per radius of sharpness-aware minimisation:
   lambda, accuracy of solved and of generated heads, on classes that nothing was trained on.

`ltdi.analysis` has the derivations. `--quick` runs everything at a size that proves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

# Before torch is loaded; see ltdi.__main__.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import grad, hessian, vmap

from ltdi.analysis import (
    classification_loss,
    convergence_bound,
    curvature_within,
    lanczos,
    largest_eigenvalue,
    softmax_smoothness,
)
from ltdi.anchor import Anchor
from ltdi.anchor.crossfit import Fold
from ltdi.anchor.frame import Frame
from ltdi.backbone import ProtoTraining
from ltdi.collect import HeadPredictor
from ltdi.evaluate import Summary, accuracy, paired
from ltdi.meta import MetaConfig
from ltdi.pipeline import begin_zoo, make_anchor, solve, train_generator
from ltdi.recipe import Recipe
from ltdi.tracks.episodes import check_counts, load_parts, one_thread
from ltdi.tracks.fewshot import build_world
from ltdi.tracks.fewshot_methods import World
from ltdi.tracks.fewshot_presets import STROKES, Preset
from ltdi.weights import head_space, query_logits

Row = dict[str, Any]
Map = Callable[[Tensor], Tensor]
WAY, WIDTH, PER_CLASS = 5, 10, 16
SPACE = head_space(WIDTH, WAY)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
STEPS = (0, 1, 10, 100, 1000)
ERRORS = (1e-4, 1e-2, 1.0, 100.0)
FORMS = ("triangle", "unbiased", "product")
LAMBDAS = ("everywhere (l)", "within reach", "at theta*")
HELD_OUT = 9
RADII = (0.0, 0.02, 0.05, 0.1, 0.2)
_SMOKE = STROKES["smoke"]
# Glyphs have 20 images per class: 1 for support, 10 more to solve on, the rest held out.
_TASKS = replace(_SMOKE.recipe.tasks, query=10)
FULL = replace(_SMOKE, recipe=replace(_SMOKE.recipe, tasks=_TASKS))
QUICK = replace(
    FULL,
    backbone=ProtoTraining(iterations=10, classes=20, width=16),
    recipe=replace(
        FULL.recipe,
        tasks=replace(_TASKS, per_setting=20),
        meta=MetaConfig(iterations=3, tasks=4),
    ),
)


@dataclass(frozen=True)
class Heads:
    """B regularised heads on Gaussian classes of several scales, solved exactly, in doubles.

    Attributes:
        decay: mu, the L2 penalty.
        loss: Training loss [B] of theta [B, n].
        slope: Its gradient [B, n].
        features: [B, P, D].
        best: [B, n] theta*.
        least: [B] L(theta*).
        curvature: [B] lambda, the largest eigenvalue at theta*.
        sharpest: [B, n] its unit eigenvector.
        mean_curvature: [B] mean eigenvalue at theta*.
        smoothness: [B] l.
    """

    decay: float
    loss: Map
    slope: Map
    features: Tensor
    best: Tensor
    least: Tensor
    curvature: Tensor
    sharpest: Tensor
    mean_curvature: Tensor
    smoothness: Tensor

    @classmethod
    def draw(cls, decay: float, tasks: int, rng: torch.Generator) -> Heads:
        """`tasks` tasks of each of `SCALES`, whose classes overlap a little."""
        scale = torch.tensor(SCALES, dtype=torch.double).repeat_interleave(tasks)[:, None, None]
        labels = torch.arange(WAY).repeat_interleave(PER_CLASS)
        centres = torch.randn(len(scale), WAY, WIDTH, generator=rng, dtype=torch.double)
        noise = torch.randn(len(scale), len(labels), WIDTH, generator=rng, dtype=torch.double)
        x, y = scale * (centres[:, labels] + noise), labels.expand(len(scale), -1)
        of_one = classification_loss(HeadPredictor(SPACE), decay)
        best = newton(of_one, torch.zeros(len(x), SPACE.size, dtype=torch.double), x, y)
        spectrum = lanczos(of_one, best, x, y, iterations=SPACE.size, rng=rng)
        return cls(
            decay,
            lambda theta: vmap(of_one)(theta, x, y),
            lambda theta: vmap(grad(of_one))(theta, x, y),
            x,
            best,
            vmap(of_one)(best, x, y),
            spectrum.values[:, -1],
            spectrum.vectors[:, -1],
            spectrum.values.mean(-1),
            softmax_smoothness(x, decay),
        )

    def excess(self, theta: Tensor) -> Tensor:
        """L(theta) - L(theta*), [B]."""
        return self.loss(theta) - self.least

    def descend(self) -> Iterator[tuple[int, Tensor]]:
        """(M, theta_M) of gradient descent with rate 1/l from zero."""
        theta = torch.zeros_like(self.best)
        for step in range(max(STEPS) + 1):
            if step in STEPS:
                yield step, theta
            theta = theta - self.slope(theta) / self.smoothness[:, None]


def newton(loss: Any, theta: Tensor, *data: Tensor) -> Tensor:
    """Minimise B strongly convex losses; a step is halved until it descends (Armijo)."""
    value, slope, curvature = vmap(loss), vmap(grad(loss)), vmap(hessian(loss))
    for _ in range(60):
        g = slope(theta, *data)
        if float(g.norm(dim=-1).max()) < 1e-12:
            break
        step = torch.linalg.solve(curvature(theta, *data), g)
        now, promise, rate = value(theta, *data), (g * step).sum(-1), torch.ones(len(theta), 1)
        for _ in range(30):
            reached = value(theta - rate * step, *data)
            # Near the minimum rounding would decide; there the whole step is right.
            short = (reached > now - 0.1 * rate.squeeze(1) * promise) & (promise > 1e-12)
            if not bool(short.any()):
                break
            rate = torch.where(short.unsqueeze(1), rate / 2, rate)
        theta = theta - rate * step
    return theta


def random_unit(like: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform directions [B, n]."""
    return F.normalize(torch.randn(like.shape, generator=rng, dtype=like.dtype), dim=-1)


def bound_ratios(heads: Heads, rng: torch.Generator) -> Iterator[tuple[str, str, int, Tensor]]:
    """(form, lambda, M, excess / bound [B]) for every M, size and direction of the error."""
    one = torch.ones_like(heads.least)
    constants = {
        "gap": heads.excess(torch.zeros_like(heads.best)),
        "mu": heads.decay * one,
        "smoothness": heads.smoothness,
    }
    for (steps, theta), size in product(heads.descend(), ERRORS):
        constants |= {"error": size * one}
        reach = (2 * convergence_bound(curvature=one, steps=steps, **constants).triangle).sqrt()
        within = curvature_within(heads.curvature, heads.features, reach)
        curvatures = (heads.smoothness, within.minimum(heads.smoothness), heads.curvature)
        bounds = [convergence_bound(curvature=c, steps=steps, **constants) for c in curvatures]
        # The last has both errors in one direction, the worst that the triangle allows.
        along = F.normalize(theta - heads.best, dim=-1, eps=1e-300)
        for direction in (random_unit(theta, rng), heads.sharpest, along):
            excess = heads.excess(theta + size**0.5 * direction)
            for (name, bound), form in product(zip(LAMBDAS, bounds, strict=True), FORMS):
                # Both may be zero up to rounding.
                yield form, name, steps, excess / (getattr(bound, form) + 1e-12)


def bound_rows(worlds: list[Heads], rng: torch.Generator) -> list[Row]:
    """How often each form of the bound holds: by lambda, then by M at the largest lambda."""
    found = [entry for heads in worlds for entry in bound_ratios(heads, rng)]
    rows = []
    for form, (name, steps) in product(
        FORMS, [*((name, None) for name in LAMBDAS), *((LAMBDAS[0], m) for m in STEPS)]
    ):
        ratio = torch.cat(
            [r for f, n, m, r in found if (f, n) == (form, name) and steps in (None, m)]
        )
        rows.append(
            {
                "form": form,
                "lambda": name,
                "M": "all" if steps is None else steps,
                "cases": len(ratio),
                "holds": float((ratio <= 1 + 1e-9).double().mean()),
                "median excess / bound": float(ratio.median()),
                "largest": float(ratio.max()),
            }
        )
    return rows


def slope_rows(worlds: list[Heads], rng: torch.Generator) -> list[Row]:
    """Log excess of theta* + error over log curvature."""
    lam = torch.cat([heads.curvature for heads in worlds])
    mean = torch.cat([heads.mean_curvature for heads in worlds])
    rows = []
    for name, size in product(("sharpest", "random"), ERRORS):
        excess = torch.cat([_mean_excess(heads, name, size, rng) for heads in worlds])
        over = {"lambda": lam} if name == "sharpest" else {"lambda": lam, "mean eigenvalue": mean}
        for quantity, value in over.items():
            slope = slope_of(value.log(), excess.log())
            rows.append(
                {
                    "direction": name,
                    "c": size,
                    "over": quantity,
                    "tasks": len(value),
                    "slope": [slope.mean, slope.ci95],
                    "median excess / (this c / 2)": float((2 * excess / (value * size)).median()),
                }
            )
    return rows


def slope_of(x: Tensor, y: Tensor) -> Summary:
    """Least-squares slope of y [N] over x [N], with its interval."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / x.square().sum()
    variance = (y - slope * x).square().sum() / (len(x) - 2) / x.square().sum()
    return Summary(float(slope), 1.96 * float(variance.sqrt()), len(x))


def _mean_excess(heads: Heads, name: str, size: float, rng: torch.Generator) -> Tensor:
    """[B], over both signs of the sharpest direction or over 16 random ones."""
    directions = [heads.sharpest, -heads.sharpest]
    if name == "random":
        directions = [random_unit(heads.best, rng) for _ in range(16)]
    losses = [heads.excess(heads.best + size**0.5 * d) for d in directions]
    return torch.stack(losses).mean(0)


def sam_scores(
    world: World, anchor: Anchor, recipe: Recipe, tasks: int, directory: Path
) -> dict[str, Tensor]:
    """Scores [tasks] of solved and generated 5-way 1-shot heads on test classes.

    lambda and c are those of the coordinates in which heads are solved and generated.
    """
    data = begin_zoo(directory, world.train, anchor, recipe, world.backbone).fill()
    generator = train_generator(data, world.backbone, recipe, valid=world.valid)
    shape = {"way": WAY, "shot": 1, "seed": 77_000 + recipe.meta.seed}
    width = world.test.width
    fold = Fold(anchor.frame(width), anchor, torch.arange(len(world.test.classes)))
    solved, _ = solve(world.test, fold, recipe, tasks=tasks, **shape)
    # The same episodes with more queries: those beyond the first were not solved on.
    wide = world.test.episodes(query=recipe.tasks.query + HELD_OUT, episodes=tasks, **shape)
    features, theta = world.test.features, solved["theta"][:, -1]
    held = features[wide.query[..., recipe.tasks.query :]]
    samples = features[torch.cat([solved["support"], solved["query"]], -1)].flatten(1, 2)
    support = features[solved["support"]]
    z = fold.frame.enter(support)
    origin = anchor.task_mean(z, torch.ones(z.shape[:3]), fold.frame)
    samples = fold.frame.enter(samples) - origin.unsqueeze(1)
    labels = torch.arange(WAY).repeat_interleave(samples.shape[1] // WAY).expand(tasks, -1)
    loss = classification_loss(HeadPredictor(head_space(width, WAY)))
    rng = torch.Generator().manual_seed(recipe.meta.seed)
    lam = largest_eigenvalue(loss, theta, samples, labels, iterations=20, rng=rng)
    generated, full = generator.weights(support), generator.weights(support, strength=1.0)
    inside = enter(fold.frame, generated, origin)
    error = (inside - theta).square().sum(-1)
    return {
        "lambda": lam,
        "training loss": solved["loss"],
        "lambda / training loss": lam / solved["loss"],
        "solved accuracy": accuracy(query_logits(fold.frame.leave(theta, origin), held)),
        "generated accuracy": accuracy(query_logits(generated, held)),
        "accuracy at strength 1": accuracy(query_logits(full, held)),
        "strength": torch.full_like(lam, generator.sampling().strength),
        "c": error,
        "lambda c / 2": lam * error / 2,
        "excess of generated": vmap(loss)(inside, samples, labels) - solved["loss"],
    }


def enter(frame: Frame, theta: Tensor, origin: Tensor) -> Tensor:
    """Heads [B, n] on features, as seen from `origin` in a frame: the inverse of `Frame.leave`."""
    rows = theta.unflatten(-1, (WAY, -1))
    bias = rows[..., -1] + rows[..., :-1] @ frame.mean
    weight = torch.linalg.solve(frame.basis.mT, rows[..., :-1], left=False)
    bias = bias + (weight @ origin.unsqueeze(-1)).squeeze(-1)
    return torch.cat([weight, bias.unsqueeze(-1)], -1).flatten(-2)


def sam_rows(preset: Preset, radii: Sequence[float], tasks: int, seeds: int) -> list[Row]:
    """Medians over tasks, and mean accuracies with their paired difference to no SAM."""
    parts = load_parts("glyphs", None, size=28, channels=1, rotations=False, split=None, seed=0)
    base = preset.recipe.prepare
    variants = {f"rho = {radius:g}": replace(base, sam_rho=radius) for radius in radii}
    # SAM takes two gradients per step: the control of equal cost takes twice the steps.
    variants["rho = 0, twice the steps"] = replace(base, steps=2 * base.steps)
    scores: dict[str, list[dict[str, Tensor]]] = {name: [] for name in variants}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="ltdi-convergence-") as scratch:
            path = Path(scratch)
            world = build_world(parts, preset, seed=seed, directory=path, progress=lambda *_: None)
            recipe = replace(preset.recipe, meta=replace(preset.recipe.meta, seed=seed))
            anchor = make_anchor(recipe, world.train, world.valid)
            for number, (name, prepare) in enumerate(variants.items()):
                varied = replace(recipe, prepare=prepare)
                scores[name].append(
                    sam_scores(world, anchor, varied, tasks, path / f"zoo-{number}")
                )
    first = next(iter(scores.values()))
    plain = {key: torch.cat([s[key] for s in first]) for key in first[0]}
    return [_sam_row(name, of_seeds, plain) for name, of_seeds in scores.items()]


def _sam_row(name: str, of_seeds: list[dict[str, Tensor]], plain: dict[str, Tensor]) -> Row:
    row: Row = {"preparation": name, "tasks": len(plain["lambda"])}
    for key in plain:
        values = torch.cat([s[key] for s in of_seeds])
        if "accuracy" in key:
            difference = paired(values, plain[key])
            row[key] = float(values.mean())
            row[f"{key}, minus rho = 0"] = [difference.mean, difference.ci95]
        else:
            row[key] = float(values.median())
    return row


def show(title: str, rows: list[Row]) -> None:
    """Print rows as a table; a list is a mean and its interval."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console(width=200).print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:+.4f} ± {value[1]:.4f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of the third part")
    parser.add_argument("--quick", action="store_true", help="a run that proves nothing")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(arguments)
    check_counts(seeds=given.seeds)
    start, rng = time.perf_counter(), torch.Generator().manual_seed(0)
    preset = QUICK if given.quick else FULL
    radii, decays = (RADII[::4], DECAYS[2:]) if given.quick else (RADII, DECAYS)
    repeats, tasks, seeds = (1, 20, 1) if given.quick else (10, 100, given.seeds)
    with one_thread():
        worlds = [Heads.draw(decay, repeats, rng) for decay in decays]
        bounds = bound_rows(worlds, rng)
        show("Share of cases in which the bound holds", bounds)
        slopes = slope_rows(worlds, rng)
        show("log excess loss over log curvature", slopes)
        sam = sam_rows(preset, radii, tasks, seeds)
        show("Preparation with SAM, 5-way 1-shot, unseen classes", sam)
    if given.json:
        out = {"bound": bounds, "slope": slopes, "sam": sam}
        settings = {"quick": given.quick, "seeds": seeds, "preset": asdict(preset)}
        settings["seconds"] = round(time.perf_counter() - start, 1)
        given.json.write_text(json.dumps({"settings": settings, **out}, indent=2))


if __name__ == "__main__":
    main()
