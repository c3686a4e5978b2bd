"""Meta-training shared by the trained peers: episodes in, the state best on validation out."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ltdi.baselines.method import Banks, Budget, Method, fitted
from ltdi.baselines.scaling import Reduction
from ltdi.baselines.tuning import Batch, choose, draw, score, validation_episodes
from ltdi.errors import DivergedError
from ltdi.evaluate import calibrate, negative_log_likelihood
from ltdi.progress import Step
from ltdi.seeding import seeded
from ltdi.tasks import FeatureBank

_CHECKS = 20
# Share of the iterations over which the rate rises, and the largest norm of a gradient.
_WARMUP, _CLIP = 0.05, 10.0


class EpisodeNet(nn.Module):
    """A network that classifies whole episodes, with an inverse temperature of its own.

    The temperature is calibrated before training, so that the body need not spend its freedom on
    confidence; it is learnt along, and calibrated again in the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    @abstractmethod
    def raw(self, support: Tensor, query: Tensor) -> Tensor:
        """Support [E, way, shot, D], query [E, way, Q, D] -> logits before the temperature."""

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Support [E, way, shot, D], query [E, way, Q, D] -> logits [E, way, Q, way]."""
        return self.log_scale.exp() * self.raw(support, query)

    def loss(self, batch: Batch) -> Tensor:
        """Scalar training loss: by default the cross entropy of the queries."""
        logits: Tensor = self(*batch)
        return negative_log_likelihood(logits).mean()

    @torch.no_grad()
    def calibrate(self, episodes: Batch) -> None:
        """Set the temperature by the likelihood of validation episodes."""
        self.log_scale.fill_(math.log(calibrate(self.raw(*episodes))))


Net = TypeVar("Net", bound=EpisodeNet)


@dataclass(frozen=True)
class Recipe:
    """How the outer loop steps.

    Attributes:
        rate: Peak learning rate.
        batch: Episodes per iteration.
        optimiser: Takes parameters and `lr`; Adam unless a method is published with another.
    """

    rate: float
    batch: int = 32
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam

    def factor(self, iteration: int, iterations: int) -> float:
        """Share of the peak rate at an iteration: a short rise, then a cosine."""
        rise = max(1, round(_WARMUP * iterations))
        if iteration < rise:
            return (iteration + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (iteration - rise) / max(1, iterations - rise)))


def meta_train(
    module: nn.Module,
    loss: Callable[[Batch], Tensor],
    score: Callable[[], float],
    train: FeatureBank,
    budget: Budget,
    recipe: Recipe,
    progress: Step | None = None,
) -> float:
    """Minimise a loss of training episodes and leave `module` in its best validated state.

    The untrained state is a candidate as well, so training can only help on validation.

    Returns:
        The best score.

    Raises:
        DivergedError: If the loss is not finite.
    """
    optimiser = recipe.optimiser(module.parameters(), lr=recipe.rate)
    every = max(1, budget.iterations // _CHECKS)
    best, state = score(), copy.deepcopy(module.state_dict())
    for done in range(1, budget.iterations + 1):
        seed = budget.seed * 1_000_003 + done - 1
        batch = draw(train, budget, episodes=recipe.batch, seed=seed)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * recipe.factor(done - 1, budget.iterations)
        optimiser.zero_grad()
        value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), _CLIP)
        optimiser.step()
        if done % every == 0 or done == budget.iterations:
            _check(float(value.detach()), done)
            now = score()
            if now > best:
                best, state = now, copy.deepcopy(module.state_dict())
            if progress:
                progress(done, budget.iterations, f"validation accuracy {now:.4f}")
    module.load_state_dict(state)
    return best


class TrainedMethod(Method, Generic[Net]):
    """A method that meta-trains an `EpisodeNet`: choose a start, train, refine, calibrate.

    Wide features are reduced to their principal axes first.

    Attributes:
        recipes: Ways for the outer loop to step; they share the iterations, and the state best on
            validation is kept.
        net: The trained network, None before `fit`.
    """

    recipes: ClassVar[tuple[Recipe, ...]] = (Recipe(rate=1e-3), Recipe(rate=3e-4))

    def __init__(self) -> None:
        self.net: Net | None = None
        self.reduction = Reduction(None)

    @abstractmethod
    def starts(self, train: FeatureBank, budget: Budget) -> Iterable[Callable[[], Net]]:
        """Make the untrained networks, of which the one best on validation is trained."""

    def candidates(self, train: FeatureBank, budget: Budget) -> Iterator[Net]:
        """These networks, all from the same seed."""
        for make in self.starts(train, budget):
            with seeded(budget.seed):
                net = make()
            yield net

    def refine(self, net: Net, episodes: Batch) -> None:
        """Choose what can be chosen after training, on validation episodes; by default nothing."""

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """Choose the start, meta-train, keep the state best on validation; see `Method.fit`."""
        train, valid = banks
        self.reduction = Reduction.fit(train.features)
        train, valid = self.reduction.bank(train), self.reduction.bank(valid)
        episodes = validation_episodes(valid, budget)

        def validate(net: Net) -> float:
            with torch.no_grad():
                return score(net(*episodes))

        net = choose(self.candidates(train, budget), validate)
        net.calibrate(episodes)
        start, outcomes, done = copy.deepcopy(net.state_dict()), [], 0
        for recipe, share in zip(self.recipes, _shares(budget, len(self.recipes)), strict=True):
            net.load_state_dict(start)
            told = _later(progress, done, budget.iterations)
            best = meta_train(net, net.loss, lambda: validate(net), train, share, recipe, told)
            outcomes.append((best, copy.deepcopy(net.state_dict())))
            done += share.iterations
        _, state = choose(outcomes, lambda outcome: outcome[0])
        net.load_state_dict(state)
        self.refine(net, episodes)
        net.calibrate(episodes)
        self.net = net

    @torch.no_grad()
    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`."""
        net = fitted(self.net, self)
        logits: Tensor = net(self.reduction(support), self.reduction(query))
        return logits


def _shares(budget: Budget, parts: int) -> list[Budget]:
    """The budget with its iterations split evenly; the last part takes the remainder."""
    each = budget.iterations // parts
    last = budget.iterations - each * (parts - 1)
    return [replace(budget, iterations=n) for n in (*[each] * (parts - 1), last)]


def _later(progress: Step | None, before: int, total: int) -> Step | None:
    """Progress of a part of the iterations, counted from the start of all."""
    return progress and (lambda done, _, text: progress(before + done, total, text))


def _check(value: float, iteration: int) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"the meta-training loss is {value} at iteration {iteration}",
            where="meta-training of a peer",
            fix="look for features that are not finite, or of extreme scale",
        )
