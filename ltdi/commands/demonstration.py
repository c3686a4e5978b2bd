"""`ltdi demo`: the whole corridor on the embedded glyphs, in about two minutes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.backbone import ProtoTraining
from ltdi.collect import HeadPredictor, optimise
from ltdi.commands.common import OUT, run_in
from ltdi.generator import HeadGenerator
from ltdi.recipe import Recipe
from ltdi.report.figure import Chain, plot_chains
from ltdi.report.table import show
from ltdi.tasks import Episodes
from ltdi.tracks import fewshot
from ltdi.tracks.fewshot_methods import World
from ltdi.tracks.fewshot_presets import PHOTOS, STROKES
from ltdi.weights import centre_classes, head_space, query_logits

METHODS = ("lt-di", "anchor", "protonet", "simpleshot", "linear-probe", "finetune", "hypernetwork")
PRESET = replace(
    STROKES["standard"],
    backbone=ProtoTraining(iterations=500),
    held_out=0.3,
    rotations=False,
    wiggle=False,
    recipe=PHOTOS["standard"].recipe,
    peer_iterations=300,
)


def demo(out: str = "runs/demo", seed: int = 0, resolved: str = "") -> None:
    """Train a generator on the embedded glyphs and use it on scripts it has never seen.

    Args:
        out: Directory for the generator, generated weights, table and figure.
        seed: Fixes data, training and episodes.
        resolved: The command's options, saved beside the run.
    """
    with run_in(out, "demo", "demo.yaml", resolved) as (path, progress, log):
        outcome = fewshot.bench(
            "glyphs", methods=METHODS, preset=PRESET, seed=seed, progress=progress, log=log
        )
        result = replace(outcome.result, preset="demo")
        outcome.publish(path)
        generator = outcome.generators["generator"]
        assert isinstance(generator, HeadGenerator)
        tasks = outcome.world.test.episodes(way=5, shot=1, query=15, episodes=3, seed=seed + 1)
        save_weights(path / "weights", generator, outcome.world, tasks, seed)
        result.write_json(path / "result.json")
        recipe = outcome.methods["lt-di"].recipe
        plot_chains(path / "chains.png", chains(generator, outcome.world, tasks, recipe))
    show(result, OUT)
    made = shlex.quote(str(path / "generator"))
    OUT.print(
        f"\ngenerator   {path / 'generator'}\nweights     {path / 'weights'}\n"
        f"table       {path / 'result.json'}\nfigure      {path / 'chains.png'}\n\n"
        f"next: ltdi evaluate --generator {made} --data-dir FOLDER_OR_ZIP --way 5 --shot 1",
        soft_wrap=True,
    )


def save_weights(
    path: Path, generator: HeadGenerator, world: World, tasks: Episodes, seed: int
) -> None:
    """One safetensors file per task."""
    path.mkdir(exist_ok=True)
    theta = generator.weights(world.test.features[tasks.support])
    heads = generator.space(tasks.way).unflatten(theta)
    for i, classes in enumerate(tasks.classes.tolist()):
        head = {name: value[i] for name, value in heads.items()}
        names = tuple(world.test.classes[c] for c in classes)
        generator.save_weights(path / f"task-{i}.safetensors", head, classes=names, seed=seed)


def chains(generator: HeadGenerator, world: World, tasks: Episodes, recipe: Recipe) -> list[Chain]:
    """Inference chains at temperature 1 over all T steps, beside Adam's path on many samples."""
    bank, way = world.test, tasks.way
    space = head_space(bank.width, way)
    support, query = bank.features[tasks.support], bank.features[tasks.query]
    states: list[Tensor] = []
    generator.weights(
        support,
        steps=recipe.diffusion.steps,
        temperature=1.0,
        strength=1.0,  # the chain itself, before validation scales it down
        sharpness=1.0,
        end=1.0,
        callback=lambda t, theta, estimate: states.append(theta),
    )
    samples = torch.cat([support, query], 2).flatten(1, 2)
    labels = torch.arange(way).repeat_interleave(samples.shape[1] // way)
    rule, frame = generator.parts.anchor, generator.parts.anchor.frame(bank.width)
    z, mask = frame.enter(support), torch.ones(support.shape[:3])
    origin = rule.task_mean(z, mask, frame)
    start = rule.local(z - origin[:, None, None], mask, space)
    z = frame.enter(samples) - origin[:, None]
    path = optimise(HeadPredictor(space), start, z, labels, recipe.prepare)
    theta = space.flatten(centre_classes(space.unflatten(path.theta)))
    theta, anchor = frame.leave(theta, origin[:, None]), frame.leave(start, origin)

    def loss_of(x: Tensor) -> Callable[[Tensor], Tensor]:
        def loss(theta: Tensor) -> Tensor:
            logits = query_logits(theta, x.expand(len(theta), 1, -1, -1)).squeeze(1)
            return F.cross_entropy(logits.mT, labels.expand(len(theta), -1), reduction="none").mean(
                1
            )

        return loss

    return [
        Chain(
            torch.stack([s[i] for s in states]),
            torch.cat([anchor[i : i + 1], theta[i]]),
            loss_of(samples[i]),
            ", ".join(bank.classes[c].split("/")[0] for c in tasks.classes[i, :2].tolist())
            + ", ...",
        )
        for i in range(len(tasks))
    ]
