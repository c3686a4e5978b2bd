"""How the distance between a predicted and a target weight is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ltdi.errors import unknown
from ltdi.weights import head_logits


@dataclass(frozen=True)
class Probe:
    """What a function-space loss needs to know about B tasks.

    Attributes:
        features: [B, P, ...] query features, or whatever the weights are applied to.
        anchor: [B, n] weights that residuals are added to.
        scale: [n] size of a normalised unit.
        predict: Logits [B, P, way] of weights [B, n] on those; linear heads by default.
    """

    features: Tensor
    anchor: Tensor
    scale: Tensor
    predict: Callable[[Tensor, Tensor], Tensor] = head_logits

    def logits(self, theta: Tensor) -> Tensor:
        """Logits centred over classes: softmax does not see the mean."""
        logits = self.predict(theta, self.features)
        return logits - logits.mean(-1, keepdim=True)


def weight_loss(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
    """Mean squared error of normalised weights, as in the paper."""
    return (weight[:, None] * (prediction - target).square()).mean()


def function_loss(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
    """Squared difference of logits on query features: the Gauss-Newton metric of a head."""
    error = probe.logits((prediction - target) * probe.scale)
    return 0.1 * (weight[:, None, None] * error.square()).mean()


def predictive_loss(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
    """KL(target's predictions || prediction's predictions) on query features.

    Its second-order expansion is the Fisher metric: logits that cannot change a decision cost
    nothing. Needs x0-prediction, because it evaluates both heads.
    """
    wanted = probe.logits(probe.anchor + target * probe.scale).log_softmax(-1)
    given = probe.logits(probe.anchor + prediction * probe.scale).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - given)).sum(-1)
    return (weight[:, None] * divergence).mean()


LOSSES = {"weight": weight_loss, "function": function_loss, "predictive": predictive_loss}


def check_loss(name: str, prediction: str) -> None:
    """Refuse an unknown loss, or one that does not fit the kind of prediction.

    Raises:
        InputError: In both cases.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES, where="recipe.loss")
    if name == "predictive" and prediction != "x0":
        raise unknown("prediction for the predictive loss", prediction, ("x0",))
