"""What all generators of linear classifiers have in common."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ltdi.backbone import Backbone
from ltdi.generator.base import Generator, Weights


class LinearHeads(Generator):
    """Generates linear classifiers on a backbone: "weight" [way, D] and "bias" [way]."""

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The feature extractor that the heads sit on."""

    @property
    def width(self) -> int:
        """D, size of a feature."""
        return self.parts.space.layers[0].row - 1

    def classify(self, head: Weights, images: Tensor) -> Tensor:
        """Class probabilities [n, way] of images under a generated head."""
        self.check(head)
        logits = self.backbone.features(images) @ head["weight"].float().T + head["bias"].float()
        return logits.softmax(-1)

    def architecture(self, weights: Weights) -> str:
        """See `Generator.architecture`."""
        way, features = weights["weight"].shape
        return f"linear head, {features} features, {way} classes"
