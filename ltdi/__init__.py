"""Generate neural-network weights for unseen tasks by trajectory diffusion."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltdi.backbone import Backbone, InputTransform, train_backbone
    from ltdi.errors import DamagedFileError, DivergedError, InputError, LtdiError, MismatchError
    from ltdi.generator import Generator, TextSupport
    from ltdi.recipe import Recipe, named_recipe
    from ltdi.tasks import Episodes, FeatureBank, Support, Unseen, sample_episodes
    from ltdi.weights import Normaliser, WeightSpace
    from ltdi.zoo import Zoo

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "DamagedFileError",
    "DivergedError",
    "Episodes",
    "FeatureBank",
    "Generator",
    "InputError",
    "InputTransform",
    "LtdiError",
    "MismatchError",
    "Normaliser",
    "Recipe",
    "Support",
    "TextSupport",
    "Unseen",
    "WeightSpace",
    "Zoo",
    "named_recipe",
    "sample_episodes",
    "train_backbone",
]
_ROOMS = {
    "backbone": ("Backbone", "InputTransform", "train_backbone"),
    "errors": ("DamagedFileError", "DivergedError", "InputError", "LtdiError", "MismatchError"),
    "generator": ("Generator", "TextSupport"),
    "recipe": ("Recipe", "named_recipe"),
    "tasks": ("Episodes", "FeatureBank", "Support", "Unseen", "sample_episodes"),
    "weights": ("Normaliser", "WeightSpace"),
    "zoo": ("Zoo",),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: `import ltdi` alone does not load torch."""
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"ltdi.{room}"), name)
    raise AttributeError(f"module 'ltdi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
