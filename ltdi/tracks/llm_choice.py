"""Choices of the llm track, on validation rows: the head of a known task, and steps of a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ltdi.adapters.collect import validation
from ltdi.adapters.training import named_recipe
from ltdi.generator import AdapterGenerator
from ltdi.tracks.llm_methods import Bench
from ltdi.tracks.llm_presets import Setting

# Seeds of the support that a head is chosen by.
_HEAD_SEEDS = 2


def choose_head(
    bench: Bench, name: str, settings: Sequence[Setting]
) -> dict[str, dict[str, float]]:
    """Whether a known task keeps the head that comes with its weights, by its validation rows.

    The other choice is "auto", which lets the support have a say. Every method has a choice of its
    own, for each task.

    Returns:
        Validation metric of each head, by task.
    """
    heads = ("auto", "generated")

    def make() -> dict[str, Tensor]:
        found = []
        for head in heads:
            bench.heads[name] = {s.task: head for s in settings}
            scores = [
                validation(bench.host, s.source, bench.weights(name, s, seed)[0])
                for s in settings
                for seed in range(_HEAD_SEEDS)
            ]
            found.append(scores)
        return {"scores": torch.tensor(found, dtype=torch.float64)}

    scores = bench.kept(f"head/{bench.mark}-{name}", make)["scores"]
    means = scores.unflatten(1, (len(settings), _HEAD_SEEDS)).mean(2).T.tolist()
    bench.heads[name] = {
        s.task: heads[generated >= auto]
        for s, (auto, generated) in zip(settings, means, strict=True)
    }
    return {
        s.name: dict(zip(heads, (round(x, 5) for x in each), strict=True))
        for s, each in zip(settings, means, strict=True)
    }


def choose_sampling(bench: Bench, name: str, settings: Sequence[Setting]) -> dict[str, float]:
    """Steps of a recipe's chain, by the mean metric on validation rows of tasks of the zoo."""
    recipe = named_recipe(name, bench.p.recipe)
    tried = sorted({s for s in (1, 4, 20) if s <= recipe.diffusion.steps})

    def make() -> dict[str, Tensor]:
        found = []
        for steps in tried:
            scores = []
            for setting in settings:
                gen = bench.generator(name, setting.known, 0)
                support = replace(bench.support_of(setting, 0), head="generated")
                theta = gen.theta(support, steps=steps)
                scores.append(validation(bench.host, setting.source, theta))
            found.append(sum(scores) / len(scores))
        return {"scores": torch.tensor(found, dtype=torch.float64)}

    if len(tried) == 1:
        bench.sampling[name] = replace(recipe.sampling, steps=1)
        return {}
    found = bench.kept(f"sampling/{bench.mark}-{name}", make)["scores"].tolist()
    scores = dict(zip(tried, found, strict=True))
    best = max(scores, key=lambda s: (round(scores[s], 4), -s))
    bench.sampling[name] = replace(recipe.sampling, steps=best)
    for key, gen in list(bench.generators.items()):
        if key[0] == name:
            parts = replace(gen.parts, sampling=bench.sampling[name])
            bench.generators[key] = AdapterGenerator(parts)
    return {str(k): round(v, 5) for k, v in scores.items()}
