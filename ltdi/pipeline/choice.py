"""The sampling that suits unseen tasks, chosen on validation classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ltdi.evaluate import calibrate, negative_log_likelihood
from ltdi.generator import ImageGenerator
from ltdi.parts import EQUIVARIANT, chain_end
from ltdi.progress import Log
from ltdi.recipe import Recipe, Sampling
from ltdi.tasks import FeatureBank

# Of validation classes, for each pair of way and shot.
EPISODES = 200
_ANY = (0.25, 0.5, 0.75, 1.0)
# Between a shared initialisation and a generated net there is nothing to be had.
_STRENGTHS = {"equivariant": _ANY, "domain": _ANY, "transformer": _ANY, "unet": _ANY}
# Weights by option, and the logits of the queries under them.
Trial = tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]
_SHARPNESS = tuple(round(1.08**i, 4) for i in range(-6, 7))


def choose_sampling(
    generator: ImageGenerator,
    valid: FeatureBank,
    recipe: Recipe,
    judged: Sequence[tuple[int, int]] = (),
    many: int = EPISODES,
) -> tuple[Sampling, dict[str, float]]:
    """End, steps, strength and sharpness that suit episodes of validation classes.

    The fewest steps whose NLL lies within the 95 % interval of the lowest; see `choose_among`.

    Returns:
        The recipe's sampling with all four set, and the mean NLL of each candidate.

    Raises:
        InputError: If the validation classes have too few samples.
    """
    settings = judged or [(recipe.tasks.ways[0], shot) for shot in recipe.tasks.shots]
    trials: list[Trial] = []
    for way, shot in settings:
        way = min(way, len(valid.classes))
        query = valid.queries_left(shot, 15)
        episodes = valid.episodes(way=way, shot=shot, query=query, episodes=many, seed=12_345)
        support, q = valid.features[episodes.support], valid.features[episodes.query]
        trials.append((partial(generator.weights, support), partial(_judge, generator, q)))
    return choose_among(trials, recipe)


def choose_among(trials: Sequence[Trial], recipe: Recipe) -> tuple[Sampling, dict[str, float]]:
    """The same on any tasks.

    Validation tasks are few, and of ten steps and one the better is often a matter of chance. So
    steps have to pay: of the candidates whose mean NLL is above the lowest by no more than the 95 %
    interval of the paired difference, the one of the fewest steps with the lowest NLL is taken.

    Args:
        trials: For each setting the weights [E, n] of its tasks as a function of the options of
            `generate`, and the logits [E, way, Q, way] of their queries under such weights.
        recipe: For the candidates.
    """
    scores: dict[tuple[float, int, float, float], float] = {}
    each: dict[tuple[float, int, float, float], list[Tensor]] = {}
    for weights, judge in trials:
        start = weights(strength=0.0, sharpness=1.0)
        for end, steps in _chains(recipe):
            chain: dict[str, Any] = {"end": end, "steps": steps, "strength": 1.0, "sharpness": 1.0}
            change = weights(**chain) - start
            for strength in _STRENGTHS.get(recipe.network.kind, (1.0,)):
                logits = judge(start + strength * change)
                for sharpness in _SHARPNESS:
                    key = (end, steps, strength, sharpness)
                    found = negative_log_likelihood(sharpness * logits)
                    each.setdefault(key, []).append(found)
                    scores[key] = scores.get(key, 0.0) + float(found.mean()) / len(trials)
    lowest = torch.cat(each[min(scores, key=lambda key: scores[key])])
    near = [key for key, found in each.items() if _level(torch.cat(found) - lowest)]
    fewest = min(steps for _, steps, _, _ in near)
    best = min((k for k in near if k[1] == fewest), key=lambda key: scores[key])
    named: dict[str, float] = {}
    for (end, steps, strength, _), nll in scores.items():
        name = f"end {end:.2f}, {steps} steps, strength {strength}"
        named[name] = min(round(nll, 6), named.get(name, math.inf))
    end, steps, strength, _ = best
    plain: dict[str, Any] = {"end": end, "steps": steps, "strength": strength, "sharpness": 1.0}
    # Candidates are compared on a grid; the temperature of the best is exact, like the peers'.
    sharpness = calibrate(*(judge(weights(**plain)) for weights, judge in trials))
    chosen = replace(recipe.sampling, end=end, steps=steps, strength=strength, sharpness=sharpness)
    return chosen, named


def _level(difference: Tensor) -> bool:
    """Whether the mean of [E] is no further above zero than its 95 % interval."""
    error = float(difference.std()) / float(len(difference)) ** 0.5
    return bool(float(difference.mean()) <= 1.96 * error)


def _judge(generator: ImageGenerator, query: Tensor, theta: Tensor) -> Tensor:
    logits: Tensor = generator.query_logits(theta, query)
    return logits


def _chains(recipe: Recipe) -> list[tuple[float, int]]:
    """Ends and numbers of steps to choose from: every local target that the network knows."""
    d, k = recipe.diffusion, recipe.prepare.segments
    told = d.objective == "trajectory" and recipe.network.kind in (*EQUIVARIANT, "rows")
    ends = [i / k for i in range(1, k + 1)] if told else [1.0]
    # For whole networks every further step costs a gradient: the recipe says how many.
    steps = (recipe.sampling.steps,) if recipe.network.kind == "rows" else (1, 2, 5, 10)
    return [(end, s) for end in ends for s in steps if s <= chain_end(end, d)]


G = TypeVar("G", bound=ImageGenerator)


def tuned(
    generator: G,
    valid: FeatureBank | None,
    recipe: Recipe,
    judged: Sequence[tuple[int, int]] = (),
    many: int = EPISODES,
    log: Log | None = None,
) -> G:
    """The generator with the sampling that suits validation classes; see `choose_sampling`.

    A recipe that samples at a temperature above 0 keeps its own sampling.

    Args:
        generator: Trained.
        valid: Features, or images, of validation classes; without them nothing is chosen.
        recipe: Of its training.
        judged: Pairs of way and shot that the sampling is chosen for; those of the training tasks
            with the first way by default.
        many: Episodes of each.
        log: Called with what was chosen, and the validation loss of every candidate.

    Raises:
        InputError: If validation classes have too few samples for the shots.
    """
    if valid is None or recipe.sampling.temperature > 0:
        return generator
    sampling, scores = choose_sampling(generator, valid, recipe, judged, many)
    if log:
        log({"event": "sampling", "chosen": asdict(sampling), "validation NLL": scores})
    parts = generator.parts
    about = {**parts.about, "validation NLL": scores}
    return type(generator)(replace(parts, sampling=sampling, about=about))
