"""Which parameters are generated, and how they become vectors and tokens.

A `WeightSpace` is a description only: it holds names and shapes, never values. The same class
serves a classifier head, all weights of a small network and LoRA factors.
"""

from ltdi.weights.head import centre_classes, head_logits, head_space, prototype_head, query_logits
from ltdi.weights.normaliser import Normaliser
from ltdi.weights.space import Layer, Param, Tokens, WeightSpace

__all__ = [
    "Layer",
    "Normaliser",
    "Param",
    "Tokens",
    "WeightSpace",
    "centre_classes",
    "head_logits",
    "head_space",
    "prototype_head",
    "query_logits",
]
