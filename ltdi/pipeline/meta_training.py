"""Meta-training of a generator's parts, and the sampling that suits validation classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from ltdi.engine import Objective, Runtime, meta_train
from ltdi.generator import ImageGenerator
from ltdi.parts import Parts
from ltdi.pipeline.choice import choose_sampling
from ltdi.progress import Log
from ltdi.recipe import Recipe, Varied
from ltdi.tasks import FeatureBank


def train_parts(
    parts: Parts, objective: Objective, recipe: Varied, runtime: Runtime = Runtime()
) -> Parts:
    """Meta-train the network of a generator's parts; see `ltdi.engine.meta_train`."""
    about = {"space": parts.space.fingerprint, "backbone": parts.host.fingerprint}
    meta_train(parts.network, objective, recipe, about, runtime)
    return parts


G = TypeVar("G", bound=ImageGenerator)


def tuned(
    generator: G,
    valid: FeatureBank | None,
    recipe: Recipe,
    judged: Sequence[tuple[int, int]] = (),
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
        log: Called with what was chosen, and the validation loss of every candidate.

    Raises:
        InputError: If validation classes have too few samples for the shots.
    """
    if valid is None or recipe.sampling.temperature > 0:
        return generator
    sampling, scores = choose_sampling(generator, valid, recipe, judged)
    if log:
        log({"event": "sampling", "chosen": asdict(sampling), "validation NLL": scores})
    parts = generator.parts
    about = {**parts.about, "validation NLL": scores}
    return type(generator)(replace(parts, sampling=sampling, about=about))
