"""What generated adapters are compared with, and how every task is adapted to from a support."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.adapters.condition import facts
from ltdi.adapters.training import Solved
from ltdi.lora import Adapter, Base, LoraSpec
from ltdi.lora.adapter import POOLINGS, TextClassifier
from ltdi.weights import WeightSpace

# Word embeddings stay: most rows of the table never meet a gradient, and all of it would be moved.
_FROZEN = "*word_embeddings*"


def full_model(base: Base, outputs: int) -> Adapter:
    """Full fine-tuning as a kind of adapter: every weight but the word embeddings, and the head.

    `ltdi.lora.fit_adapter` fits it from `theta_0`, the pretrained weights and a head of zeros.
    """
    model, _ = base.build(POOLINGS["mean"][0], outputs)
    net = TextClassifier(model).eval().requires_grad_(False)
    weights = {n: p.detach() for n, p in net.named_parameters()}
    head = [n for n in weights if n.startswith("model.classifier.")]
    space = WeightSpace.from_module(net, exclude=_FROZEN, per_class=head)
    chosen = {p.name: weights[p.name].clone() for p in space.params}
    for name in head:
        chosen[name].zero_()
    return Adapter(base, LoraSpec(), net, space, space.flatten(chosen))


def task_adapters(
    groups: Sequence[Solved], spaces: Sequence[WeightSpace], outputs: int = 0
) -> dict[int, dict[str, Tensor]]:
    """The adapter of each known task, averaged over its runs; one of `outputs` keeps its head.

    Returns:
        State dicts by number of the task.
    """
    found = {}
    for group, space in zip(groups, spaces, strict=True):
        lost = () if group.outputs == outputs else [p.name for p in space.class_params]
        for task in group.task.unique().tolist():
            weights = space.unflatten(group.theta[group.task == task, -1].mean(0))
            found[task] = {n: w for n, w in weights.items() if n not in lost}
    return found


def average(groups: Sequence[Solved], spaces: Sequence[WeightSpace]) -> dict[str, Tensor]:
    """The soup: factors averaged over tasks, each task's over its runs; heads are not averaged.

    Returns:
        State dict without the head.
    """
    means = list(task_adapters(groups, spaces).values())
    return {name: torch.stack([m[name] for m in means]).mean(0) for name in means[0]}


def nearest(
    groups: Sequence[Solved],
    spaces: Sequence[WeightSpace],
    features: Tensor,
    targets: Tensor,
    outputs: int,
) -> tuple[dict[str, Tensor], int]:
    """The known task whose rows are most like a support's [rows, F], and the average of its runs.

    Returns:
        State dict, with the head if it has as many outputs, and the number of the task.
    """
    best, number = -2.0, -1
    known = [facts(g.features, g.targets, g.outputs, g.text).task for g in groups]
    centre = torch.cat(known).mean(0)
    text = groups[0].text.new_zeros(1, groups[0].text.shape[1])
    own = facts(features[None], targets[None], outputs, text).task[0]
    for group, task in zip(groups, known, strict=True):
        for which in group.task.unique().tolist():
            of = task[group.task == which].mean(0)
            near = float(F.cosine_similarity(of - centre, own - centre, dim=0))
            if near > best:
                best, number = near, which
    return task_adapters(groups, spaces, outputs)[number], number


def complete(adapter: Adapter, weights: dict[str, Tensor]) -> Tensor:
    """Flat weights [n] of an adapter; what is not given, such as a head, is that of the start."""
    return adapter.space.flatten({**adapter.space.unflatten(adapter.theta_0), **weights})
