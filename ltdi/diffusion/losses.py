"""How the distance between a predicted and a target weight is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.errors import InputError, unknown
from ltdi.weights import head_logits


@dataclass(frozen=True)
class Probe:
    """What a function-space loss needs to know about B tasks.

    Attributes:
        features: [B, P, ...] query features, or whatever the weights are applied to.
        anchor: [B, n] weights that residuals are added to.
        scale: [n] size of a normalised unit.
        predict: Logits [B, P, way] of weights [B, n] on those; linear heads by default.
        wanted: [B, P, way] probabilities that are asked for in the place of the target's own.
    """

    features: Tensor
    anchor: Tensor
    scale: Tensor
    predict: Callable[[Tensor, Tensor], Tensor] = head_logits
    wanted: Tensor | None = None

    def logits(self, theta: Tensor) -> Tensor:
        """Logits centred over classes: softmax does not see the mean."""
        logits = self.predict(theta, self.features)
        return logits - logits.mean(-1, keepdim=True)


# (prediction [B, n], target [B, n], weight [B], probe) -> mean over tasks; prediction and target
# are what the chain predicts, normalised, and `weight` is how much a task's noise level counts.
Loss = Callable[[Tensor, Tensor, Tensor, Probe], Tensor]


def weight_loss(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
    """Mean squared error of normalised weights, as in the paper."""
    return (weight[:, None] * (prediction - target).square()).mean()


def function_loss(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
    """Squared difference of logits on query features: the Gauss-Newton metric of a head."""
    error = probe.logits((prediction - target) * probe.scale)
    return 0.1 * (weight[:, None, None] * error.square()).mean()


def predictive_loss(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
    """KL(wanted predictions || prediction's predictions) on query features.

    Wanted are the target's, unless the probe says otherwise. Its second-order expansion is the
    Fisher metric: logits that cannot change a decision cost nothing. Needs x0-prediction, because
    it evaluates both weights.
    """
    given = probe.logits(probe.anchor + prediction * probe.scale).log_softmax(-1)
    if probe.wanted is None:
        wanted = probe.logits(probe.anchor + target * probe.scale).log_softmax(-1)
        divergence = (wanted.exp() * (wanted - given)).sum(-1)
    else:
        divergence = (torch.xlogy(probe.wanted, probe.wanted) - probe.wanted * given).sum(-1)
    return (weight[:, None] * divergence).mean()


LOSSES: dict[str, Loss] = {
    "weight": weight_loss,
    "function": function_loss,
    "predictive": predictive_loss,
}


def loss_of(name: str, plus_weight: float = 0.0) -> Loss:
    """A loss by name, with so much of the loss in weight space added to it.

    Raises:
        KeyError: If the name is unknown; a recipe refuses it first.
    """
    chosen = LOSSES[name]
    if not plus_weight:
        return chosen

    def both(prediction: Tensor, target: Tensor, weight: Tensor, probe: Probe) -> Tensor:
        apart = weight_loss(prediction, target, weight, probe)
        return chosen(prediction, target, weight, probe) + plus_weight * apart

    return both


def check_loss(name: str, prediction: str) -> None:
    """Refuse an unknown loss, or one that does not fit the kind of prediction.

    Raises:
        InputError: In both cases.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES, where="recipe.loss")
    if name == "predictive" and prediction != "x0":
        raise unknown("prediction for the predictive loss", prediction, ("x0",))


def check_net_loss(name: str) -> None:
    """Refuse the loss that only linear heads have.

    Raises:
        InputError: For "function".
    """
    if name == "function":
        raise InputError(
            "the loss 'function' is that of linear heads",
            where="diffusion.loss",
            fix='choose "predictive" or "weight" for whole networks',
        )
