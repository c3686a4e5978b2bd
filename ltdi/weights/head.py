"""Linear classifier heads, the most common weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ltdi.weights.space import WeightSpace


def head_space(features: int, way: int) -> WeightSpace:
    """The weight space of a linear classifier head on `features` inputs."""
    return WeightSpace.from_shapes(
        {"weight": (way, features), "bias": (way,)}, per_class=("weight", "bias")
    )


def prototype_head(prototypes: Tensor, scale: Tensor | float) -> dict[str, Tensor]:
    """The linear head of class means [..., way, features] (Snell et al., 2017, section 2.4).

    Its logits differ from `-scale * |x - p_c|^2` by a number that is the same for all classes.
    The mean over classes is taken out of weight and bias, because softmax does not see it.

    Returns:
        `weight` [..., way, features] and `bias` [..., way].
    """
    weight = 2 * scale * prototypes
    bias = -scale * prototypes.square().sum(-1)
    return centre_classes({"weight": weight, "bias": bias})


def head_logits(theta: Tensor, features: Tensor) -> Tensor:
    """Logits of flat heads [..., n] on features [..., P, D] -> [..., P, way]."""
    rows = theta.unflatten(-1, (-1, features.shape[-1] + 1))
    logits: Tensor = features @ rows[..., :-1].mT + rows[..., -1].unsqueeze(-2)
    return logits


def query_logits(theta: Tensor, query: Tensor) -> Tensor:
    """Logits [E, way, Q, way] of flat heads [E, n] on query features [E, way, Q, D]."""
    way, count = query.shape[1:3]
    logits: Tensor = head_logits(theta, query.flatten(1, 2)).unflatten(1, (way, count))
    return logits


def centre_classes(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take softmax's shift freedom out of a head: subtract the mean over classes."""
    weight, bias = head["weight"], head["bias"]
    return {"weight": weight - weight.mean(-2, keepdim=True), "bias": bias - bias.mean(-1, True)}
