"""`ltdi.errors`: what was wrong, where, what to do; and every class of settings asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from ltdi.backbone import Augmentation, ClassifierTraining, InputTransform
from ltdi.collect import Preparation
from ltdi.commands import Collecting
from ltdi.errors import InputError, LtdiError, unknown
from ltdi.meta import MetaConfig
from ltdi.recipe import Diffusion

NAN = float("nan")


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = LtdiError("x is 3", where="--x", fix="give 4")
    assert str(error) == "x is 3\n  where: --x\n  to do: give 4"
    assert str(LtdiError("x is 3")) == "x is 3"


def test_an_unknown_name_brings_the_nearest_and_all_others() -> None:
    error = unknown("preset", "smok", ("smoke", "paper"), where="--preset")
    assert "unknown preset 'smok'" in str(error) and "did you mean 'smoke'?" in error.fix
    assert error.fix.endswith("choose one of: paper, smoke")
    assert unknown("preset", "zzz", ("smoke",)).fix == "choose one of: smoke"


@pytest.mark.parametrize(
    ("settings", "where", "field", "value", "message"),
    [
        (Augmentation, "augmentation", "crop", 0.0, r"must lie in 0\.01\.\.1, got 0\.0"),
        (Augmentation, "augmentation", "crop", NAN, "must lie in"),
        (Augmentation, "augmentation", "jitter", -0.1, "must lie in"),
        (Augmentation, "augmentation", "cutout", 2.0, "must lie in"),
        (ClassifierTraining, "training", "optimiser", "sdg", "did you mean 'sgd'"),
        (ClassifierTraining, "training", "classifier", "cosin", "did you mean 'cosine'"),
        (ClassifierTraining, "training", "mix", "mixpu", "did you mean 'mixup'"),
        (ClassifierTraining, "training", "epochs", 0, "must be at least 1, got 0"),
        (ClassifierTraining, "training", "batch", 1, "must be at least 2"),
        (ClassifierTraining, "training", "rotation_weight", -1.0, "must be at least 0"),
        (ClassifierTraining, "training", "warmup", 1.1, "must lie in"),
        (ClassifierTraining, "training", "smoothing", NAN, "must lie in"),
        (Collecting, "collect", "target", "heads", "did you mean 'head'"),
        (Diffusion, "diffusion", "first", 1.5, "must lie in"),
        (Diffusion, "diffusion", "plus_weight", -1.0, "must be at least 0"),
        (InputTransform, "transform", "polarity", "kep", "did you mean 'keep'"),
        (InputTransform, "transform", "interpolation", "cubic", "did you mean 'bicubic'"),
        (InputTransform, "transform", "size", 0, "must be at least 1"),
        (MetaConfig, "meta", "meta", "reptil", "did you mean 'reptile'"),
        (MetaConfig, "meta", "outer", "adamm", "did you mean 'adam'"),
        (MetaConfig, "meta", "iterations", 0, "must be at least 1"),
        (MetaConfig, "meta", "checkpoint_every", -2, "must be at least 1"),
        (Preparation, "prepare", "optimiser", "adaw", "did you mean 'adamw'"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: Any, where: str, field: str, value: object, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        settings(**{field: value})
    assert caught.value.where == f"{where}.{field}"
