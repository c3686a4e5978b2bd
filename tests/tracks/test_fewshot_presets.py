"""`ltdi.tracks.fewshot_presets`: a preset of every name for each data set, or a backbone given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ltdi.backbone import ClassifierTraining, ProtoTraining
from ltdi.recipe import named_recipe
from ltdi.tracks.fewshot_presets import NAMES, PHOTOS, PRESETS, STROKES, TRAINED, preset_of


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_has_it(name: str):
    assert preset_of("omniglot", name) is STROKES[name]
    assert preset_of("cifar-fs", name) is preset_of("fc100", name)
    assert replace(preset_of("fc100", name), side=None) == PHOTOS[name]
    assert preset_of("tiny-imagenet", name) is TRAINED[name]
    assert preset_of("a/folder/of/drawings", name) is STROKES[name]
    assert {dataset for dataset in PRESETS if preset_of(dataset, name).channels == 1} == {
        "glyphs",
        "omniglot",
    }


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
    small, middle, large = (kind[name] for name in ("smoke", "standard", "paper"))
    for a, b in ((small, middle), (middle, large)):
        assert a.recipe.meta.iterations < b.recipe.meta.iterations
        assert a.recipe.tasks.per_setting < b.recipe.tasks.per_setting
        assert a.episodes < b.episodes and a.peer_iterations < b.peer_iterations


def test_no_backbone_of_imagenet_is_tried_on_its_own_classes():
    assert all(isinstance(p.backbone, ClassifierTraining) for p in TRAINED.values())
    assert all(isinstance(p.backbone, ProtoTraining) for p in STROKES.values())
    assert not any("imagenet" in name and kind is PHOTOS for name, kind in PRESETS.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_budget_is_the_papers(name: str):
    """Its recipe has no frame and no fold, whatever the preset."""
    recipe = named_recipe("mc-di-paper", STROKES[name].recipe)
    assert recipe.tasks.folds == 0 and recipe.anchor == "none"
    assert STROKES["paper"].recipe.meta.iterations == 6000
