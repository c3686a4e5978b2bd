"""What a user loads: one interface, one file for each kind of weights."""

from ltdi.generator.base import CARD, KINDS, Generator, View, Weights
from ltdi.generator.heads import HeadGenerator
from ltdi.generator.images import ImageGenerator

# A new kind of weights is one line here.
KINDS[HeadGenerator.kind] = HeadGenerator

__all__ = ["CARD", "KINDS", "Generator", "HeadGenerator", "ImageGenerator", "View", "Weights"]
