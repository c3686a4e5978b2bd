"""What is chosen on validation classes: the prior, and the sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from ltdi.anchor.prior import NamePrior, PriorSettings
from ltdi.progress import Step
from ltdi.unseen.tasks import NamedBank, TaskBatch
from ltdi.weights import head_logits, head_space, prototype_head

# Accuracies of settings on one set of validation classes differ by this much by chance.
_NOISE = 0.01

Heads = Callable[[TaskBatch], Tensor]


@torch.no_grad()
def scores(heads: Heads, tasks: Sequence[TaskBatch]) -> tuple[list[Tensor], float]:
    """Accuracy of every task, way by way, and the mean negative log-likelihood.

    Args:
        heads: Weights [E, n] of tasks.
        tasks: One batch for each way; every way counts the same.
    """
    accuracy, nll = [], []
    for batch in tasks:
        logits = head_logits(heads(batch), batch.query.flatten(1, 2))
        label = torch.arange(batch.way).repeat_interleave(batch.query.shape[2])
        accuracy.append((logits.argmax(-1) == label).float().mean(-1))
        picked = logits.log_softmax(-1).gather(-1, label.expand(len(batch), -1).unsqueeze(-1))
        nll.append(float(-picked.mean()))
    return accuracy, sum(nll) / len(nll)


def mean_of(ways: Sequence[Tensor]) -> tuple[float, float]:
    """Mean over ways of a number for each task, and its 95 % interval."""
    mean = sum(float(x.mean()) for x in ways) / len(ways)
    variance = sum(float(x.var()) / len(x) for x in ways if len(x) > 1)
    return mean, 1.96 * float(variance) ** 0.5 / len(ways)


def prior_heads(prior: NamePrior) -> Heads:
    """The heads of the prior alone, on features."""

    def heads(batch: TaskBatch) -> Tensor:
        frame = prior.frame(batch.query.shape[-1])
        task = prior.named(batch.text, frame.enter(batch.pool), batch.mask)
        return frame.leave(prior.start(task, head_space(batch.query.shape[-1], batch.way)))

    return heads


def choose_prior(
    train: NamedBank,
    valid: Sequence[TaskBatch],
    *,
    thorough: bool = True,
    progress: Step = lambda i, n, text: None,
) -> NamePrior:
    """Fit the prior on source classes, and choose on validation tasks how names are read.

    One set of validation classes tells settings apart no better than `_NOISE`, so the defaults,
    which were found on six, stay unless another setting is better by more. What the pool adds is
    left as it is; last comes the scale of the logits, by likelihood.

    Args:
        train: Source classes.
        valid: Tasks of validation classes, one batch for each way.
        thorough: Whether to try all candidates, or to take the defaults.
        progress: Called with candidates done, candidates in all, and a text.
    """
    base, known = PriorSettings(), train.centred()
    alone = [batch.named_only() for batch in valid]

    def accuracy(settings: PriorSettings) -> float:
        heads = prior_heads(NamePrior.fit(known.bank, known.text, settings))
        return mean_of(scores(heads, alone)[0])[0]

    if thorough:
        grid = [
            replace(base, ridge=ridge, sharpness=sharp, noise=noise, power=power)
            for ridge, sharp, noise, power in product(
                (0.1, 0.3), (0.5, 1.5, 4.0), (0.2, 1.0), (0.5, 1.0)
            )
        ]
        least, found = accuracy(base) + _NOISE, base
        for number, settings in enumerate(grid):
            score = accuracy(settings)
            if score > least:
                least, found = score, settings
            progress(number + 1, len(grid), f"names alone {score:.4f}")
        base = found
    prior = NamePrior.fit(known.bank, known.text, base)
    # On average what is divided out is put back, whatever the power.
    explained = torch.cat([prior.believe(batch.text)[1].flatten() for batch in valid])
    prior.settings = replace(base, strength=float((explained**base.power).mean()))
    prior.scale.copy_(_best_scale(prior, valid))
    return prior


def refit(prior: NamePrior, source: NamedBank) -> NamePrior:
    """A prior of other source classes, with everything chosen as in `prior`."""
    known = source.centred()
    out = NamePrior.fit(known.bank, known.text, prior.settings)
    out.scale.copy_(prior.scale)
    return out


def _best_scale(prior: NamePrior, valid: Sequence[TaskBatch]) -> Tensor:
    """The inverse temperature with the lowest negative log-likelihood."""
    space_of = head_space
    means = []
    for batch in valid:
        frame = prior.frame(batch.query.shape[-1])
        means.append(prior.refine(prior.named(batch.text, frame.enter(batch.pool), batch.mask)))

    def nll(scale: float) -> float:
        held = iter(means)

        def heads(batch: TaskBatch) -> Tensor:
            frame = prior.frame(batch.query.shape[-1])
            space = space_of(batch.query.shape[-1], batch.way)
            return frame.leave(space.flatten(prototype_head(next(held), scale)))

        return scores(heads, valid)[1]

    return torch.tensor(min((0.01 * 1.3**i for i in range(16)), key=nll))


def choose_steps(
    heads: Callable[..., Tensor], valid: Sequence[TaskBatch], options: Sequence[dict[str, float]]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The cheapest sampling that is level with the best one.

    Level is what is below the highest validation accuracy by no more than the 95 % interval of the
    paired difference: what is generated, and every further step, has to pay.

    Args:
        heads: `heads(batch, **option)`.
        valid: Tasks of validation classes.
        options: Cheapest first.

    Returns:
        The option, and accuracy and likelihood of every one by its description.
    """
    each: list[list[Tensor]] = []
    found = {}
    for option in options:
        label = ", ".join(f"{k} {v:g}" for k, v in option.items())
        accuracy, nll = scores(lambda batch, o=option: heads(batch, **o), valid)  # type: ignore[misc]
        each.append(accuracy)
        found[label] = mean_of(accuracy)[0], nll
    best = max(each, key=lambda ways: mean_of(ways)[0])

    def level(ways: list[Tensor]) -> bool:
        behind, interval = mean_of([b - a for a, b in zip(ways, best, strict=True)])
        return behind <= interval

    chosen = next(o for o, ways in zip(options, each, strict=True) if level(ways))
    return dict(chosen), found
