"""How much the few-shot benchmark spends, for each kind of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ltdi.backbone import ClassifierTraining, FeatureMapping, ProtoTraining
from ltdi.collect import Preparation
from ltdi.meta import MetaConfig
from ltdi.recipe import Diffusion, Network, Recipe, Tasks


@dataclass(frozen=True)
class Preset:
    """What is spent, and on what.

    Attributes:
        backbone: Training of a backbone, or the name of a pretrained one.
        side: Side in pixels that a pretrained backbone sees; its own by default.
        size: Side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        mapping: What is done to features (`FeatureMapping`); None leaves them as they are.
        held_out: Share of the training classes that a trained backbone does not see and that the
            generator and the meta-learned peers are trained on (design section 3, point 9).
        wiggle: Whether features of a backbone trained here are means over slightly changed views;
            see `InputTransform`.
        flip: Likewise, over an image and its mirror image.
        rotations: Whether rotated characters are classes of their own.
        recipe: Of `lt-di`; controls change one idea of it.
        peer_iterations: Outer iterations of meta-trained peers.
        episodes: Test episodes.
        valid_episodes: Episodes of validation classes that a peer makes its choices on.
    """

    backbone: ProtoTraining | ClassifierTraining | str
    recipe: Recipe
    peer_iterations: int
    episodes: int
    side: int | None = None
    size: int = 28
    channels: int = 1
    mapping: FeatureMapping | None = None
    held_out: float = 0.3
    wiggle: bool = False
    flip: bool = False
    rotations: bool = False
    valid_episodes: int = 200


_FOLDS = Tasks(ways=(5,), per_setting=1024, folds=16)
_PREPARE = Preparation(lr=0.05, steps=24, segments=4)
_META = MetaConfig(iterations=300, tasks=6, meta_lr=2e-3, warmup=20, ema=0.97)
_STANDARD = Recipe(tasks=_FOLDS, prepare=_PREPARE, meta=_META)
# The anchor is refined where validation classes say so, and training dwells on the step that a
# chain of one step consists of.
_REFINED = replace(
    _STANDARD,
    tasks=replace(_FOLDS, folds=8),
    diffusion=Diffusion(first=0.5),
    refine=(120, 240),
)
_SMOKE = replace(
    _STANDARD,
    tasks=replace(_FOLDS, per_setting=160, folds=4),
    network=Network(width=32, depth=1),
    meta=replace(_META, iterations=30, warmup=5, ema=0.9),
)
_PAPER = replace(
    _REFINED,
    tasks=replace(_FOLDS, per_setting=20_000, folds=64),
    network=Network(width=128, depth=3),
    meta=replace(_META, iterations=6000, tasks=32, ema=0.99),
)


def _both_ways(recipe: Recipe) -> Recipe:
    return replace(recipe, tasks=replace(recipe.tasks, ways=(5, 20), folds=8))


NAMES = ("smoke", "standard", "paper")
# Iterations of peers, test episodes and validation episodes; the last has the paper's meta-training
# budget, for a GPU, or a night.
_SPENT = ((15, 600, 40), (1500, 1000, 200), (6000, 10_000, 200))


def _presets(
    backbones: Sequence[ProtoTraining | ClassifierTraining | str],
    recipes: Sequence[Recipe],
    **about: Any,
) -> dict[str, Preset]:
    """One of each name."""
    return {
        name: Preset(backbone, recipe, peers, tests, valid_episodes=valid, **about)
        for name, backbone, recipe, (peers, tests, valid) in zip(
            NAMES, backbones, recipes, _SPENT, strict=True
        )
    }


# Drawn characters: a small conv net, trained here.
STROKES = _presets(
    (
        ProtoTraining(iterations=110, classes=48),
        ProtoTraining(iterations=8000, classes=128, images=2),
        ProtoTraining(iterations=20_000, classes=128, images=2),
    ),
    (_SMOKE, _both_ways(_STANDARD), _both_ways(_PAPER)),
)
_MORE: dict[str, Any] = {"held_out": 0.15, "wiggle": True, "rotations": True}
STROKES = {n: p if n == "smoke" else replace(p, **_MORE) for n, p in STROKES.items()}

# Photographs: a backbone pretrained on ImageNet.
PHOTOS = _presets(
    ("efficientnet-lite0",) * 3,
    (_SMOKE, _REFINED, _PAPER),
    size=32,
    channels=3,
    mapping=FeatureMapping(),
)

# The same, seen at the size that the backbone was trained at: four times the time for features.
LARGE = {n: p if n == "smoke" else replace(p, side=224) for n, p in PHOTOS.items()}

# Photographs of classes that ImageNet has: only a backbone trained here is honest. A handful of
# classes is too few to refine the standard anchor on.
TRAINED = _presets(
    tuple(ClassifierTraining(epochs=n) for n in (1, 40, 200)),
    (_SMOKE, replace(_REFINED, refine=()), _PAPER),
    size=64,
    channels=3,
    mapping=FeatureMapping(power=0.7),
    flip=True,
)

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "glyphs": STROKES,
    "omniglot": STROKES,
    "cifar-fs": LARGE,
    "fc100": LARGE,
    "tiny-imagenet": TRAINED,
}


def preset_of(dataset: str, name: str, backbone: str | None = None) -> Preset:
    """The preset called `name` for a data set; folders of a user count as drawn characters.

    Args:
        dataset: A named data set, or a path.
        name: One of `NAMES`.
        backbone: A pretrained backbone to take instead; its images are photographs.
    """
    if backbone is not None:
        return replace(PHOTOS[name], backbone=backbone)
    return PRESETS.get(dataset, STROKES)[name]
