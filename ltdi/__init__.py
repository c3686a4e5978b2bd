"""Generate neural-network weights for unseen tasks by trajectory diffusion."""

from ltdi.backbone import Backbone, InputTransform, train_backbone
from ltdi.errors import DamagedFileError, InputError, LtdiError, MismatchError
from ltdi.generator import Generator
from ltdi.recipe import Recipe, named_recipe
from ltdi.tasks import Episodes, FeatureBank, Support, sample_episodes
from ltdi.weights import Normaliser, WeightSpace
from ltdi.zoo import Zoo

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "DamagedFileError",
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
    "WeightSpace",
    "Zoo",
    "named_recipe",
    "sample_episodes",
    "train_backbone",
]
