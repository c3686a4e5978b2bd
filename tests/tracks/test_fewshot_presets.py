"""`ltdi.tracks.fewshot_presets`: a preset of every name for each data set, or a backbone given."""

from __future__ import annotations

import pytest

from ltdi.backbone import ClassifierTraining, ProtoTraining
from ltdi.tracks.fewshot_presets import NAMES, PHOTOS, PRESETS, STROKES, TRAINED, preset_of


@pytest.mark.parametrize("name", NAMES)
def test_images_of_folders_are_drawings(name: str):
    assert preset_of("a/folder/of/drawings", name) is STROKES[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_backbone_makes_photographs_of_everything(name: str):
    for dataset in ("omniglot", "cifar-fs", "a/folder"):
        preset = preset_of(dataset, name, "timm:resnet18")
        assert preset.backbone == "timm:resnet18" and preset.channels == 3
        assert preset.mapping == PHOTOS[name].mapping and preset.recipe == PHOTOS[name].recipe
        # Each sees images of its own size.
        assert preset.side is None


@pytest.mark.parametrize("kind", [STROKES, PHOTOS, TRAINED])
def test_a_larger_preset_spends_more(kind):
    small, middle, large = kind.values()
    assert tuple(kind) == NAMES
    for a, b in ((small, middle), (middle, large)):
        assert a.recipe.meta.iterations < b.recipe.meta.iterations
        assert a.recipe.tasks.per_setting < b.recipe.tasks.per_setting
        assert a.episodes < b.episodes and a.peer_iterations < b.peer_iterations
    for recipe in (preset.recipe for preset in kind.values()):  # lt-di, by its definition
        assert recipe.prepare.segments >= 2 and recipe.meta.meta == "reptile"
        assert recipe.diffusion.objective == "trajectory"
        assert recipe.diffusion.steps % recipe.prepare.segments == 0


def test_no_backbone_of_imagenet_is_tried_on_its_own_classes():
    assert all(isinstance(p.backbone, ClassifierTraining) for p in TRAINED.values())
    assert all(isinstance(p.backbone, ProtoTraining) for p in STROKES.values())
    assert not any("imagenet" in name and kind is PHOTOS for name, kind in PRESETS.items())


def test_the_papers_budget_is_the_papers():
    assert STROKES["paper"].recipe.meta.iterations == 6000
