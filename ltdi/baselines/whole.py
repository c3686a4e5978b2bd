"""Peers of generated whole networks: gradient descent from a meta-learned initialisation.

All of them start their meta-training from the initialisation that the generator has, so that none
is less trained; what they add to it is their own.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from ltdi.anchor import SharedAnchor
from ltdi.baselines.method import Banks, Budget, Method, fitted
from ltdi.baselines.tuning import Batch, choose, draw, validation_episodes
from ltdi.evaluate import accuracy, calibrate
from ltdi.nets import Initial, NetHost
from ltdi.progress import Step
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, prototype_head

STEPS = (1, 5, 20)
# Judged and meta-trained by this many steps.
_STEPS = 5
_CHECKS = 5
_AT_ONCE = 32
# Step sizes to choose from: of the head, as a share of the initialisation's own; of the layers
# below, as a share of the head's.
# Several steps are stable only far below the one step of the initialisation: features have a
# common mean.
_HEAD = (0.003, 0.01, 0.03, 0.1, 1.0)
_BELOW = (0.003, 0.1)


@dataclass(frozen=True)
class Plan:
    """Gradient descent on a support.

    Attributes:
        theta_0: [n - class rows] where it starts; class rows start at zero.
        rates: [layers] step sizes, the loss in units of one sample per class.
        steps: How many.
    """

    theta_0: Tensor
    rates: Tensor
    steps: int = 1


def walk(plan: Plan, host: NetHost, support: Tensor) -> list[Tensor]:
    """Weights [E, n] after each step of E tasks with support [E, way, shot, ...]."""
    space, mask = host.space(support.shape[1]), torch.ones(support.shape[:3])
    theta = SharedAnchor(plan.theta_0).local(support, mask, space)
    out, rates = [], plan.rates[space.layer_of]
    for _ in range(plan.steps):
        theta = theta - rates * host.gradient(theta, support, mask, space, alone=True)
        out.append(theta)
    return out


class NetMethod(Method):
    """A method that gives every task the weights of a whole net."""

    def __init__(self, host: NetHost) -> None:
        self.host, self.scale = host, 1.0

    @abstractmethod
    def adapt(self, support: Tensor) -> Tensor:
        """Weights [E, n] of tasks with support images [E, way, shot, channels, size, size]."""

    @torch.no_grad()
    def predict(self, support: Tensor, query: Tensor) -> Tensor:
        """See `Method.predict`; images take the place of features."""
        parts = zip(support.split(_AT_ONCE), query.split(_AT_ONCE), strict=True)
        logits = [self.host.query_logits(self.adapt(s), q) for s, q in parts]
        return self.scale * torch.cat(logits)


class Prototypes(NetMethod):
    """Nearest class mean (Snell et al., 2017) of what the head of the initialisation sees."""

    note = "nearest class mean on the features of the generator's initialisation"

    def __init__(self, host: NetHost, initial: Initial) -> None:
        super().__init__(host)
        self.initial = initial

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """See `Method.fit`: its confidence is that of validation episodes."""
        self.scale = 1.0
        self.scale = calibrate(self.predict(*validation_episodes(banks.valid, budget)))

    @torch.no_grad()
    def adapt(self, support: Tensor) -> Tensor:
        """See `NetMethod.adapt`."""
        space = self.host.space(support.shape[1])
        mask = torch.ones(support.shape[:3])
        theta = SharedAnchor(self.initial.theta_0).local(support, mask, space)
        z = self.host.features(theta[0], support.flatten(0, 2), space)
        head = prototype_head(z.unflatten(0, support.shape[:3]).mean(2), self.initial.rate / 2)
        named = space.unflatten(theta)
        return space.flatten({**named, **{f"head.{n}": value for n, value in head.items()}})


class Tuned(NetMethod):
    """Some steps of descent, whose start and step sizes are chosen on validation episodes."""

    def __init__(self, host: NetHost, learner: Learner, steps: int) -> None:
        super().__init__(host)
        self.learner, self.steps, self.note = learner, steps, learner.note
        self.plan: Plan | None = None

    def fit(self, banks: Banks, budget: Budget, progress: Step | None = None) -> None:
        """See `Method.fit`; what all numbers of steps share is done once."""
        tried = self.learner.tried(self.host, banks, budget, progress)
        best = choose(tried, lambda entry: float(accuracy(entry[1][self.steps]).mean()))
        self.plan, self.scale = replace(best[0], steps=self.steps), calibrate(best[1][self.steps])

    def adapt(self, support: Tensor) -> Tensor:
        """See `NetMethod.adapt`."""
        return walk(fitted(self.plan, self), self.host, support)[-1]


def after(plan: Plan, host: NetHost, support: Tensor, query: Tensor) -> dict[int, Tensor]:
    """Logits [E, way, Q, way] after 1, 5 and 20 steps, as far as the plan goes; one walk."""
    found: dict[int, list[Tensor]] = {}
    for s, q in zip(support.split(_AT_ONCE), query.split(_AT_ONCE), strict=True):
        path = walk(plan, host, s)
        for steps in STEPS:
            if steps <= plan.steps:
                found.setdefault(steps, []).append(host.query_logits(path[steps - 1], q))
    return {steps: torch.cat(parts) for steps, parts in found.items()}


def tunings(start: Plan) -> list[Plan]:
    """A start with the step sizes that it brings, and with each pair of the grid."""
    out, head = [replace(start, steps=max(STEPS))], start.rates[-1]
    for share, below in itertools.product(_HEAD, _BELOW):
        rates = torch.full_like(start.rates, float(share * below * head))
        rates[-1] = share * head
        out.append(Plan(start.theta_0, rates, max(STEPS)))
    return out


# Plans, and their logits on validation episodes by number of steps.
Known = dict[Budget, list[tuple[Plan, dict[int, Tensor]]]]


class Learner:
    """A meta-training whose result is shared by all numbers of steps.

    What is known of the common start itself may be shared by learners (`common`).
    """

    note: str

    def __init__(self, initial: Initial, common: Known | None = None) -> None:
        self.initial = initial
        self.common: Known = {} if common is None else common
        self._known: Known = {}

    def tried(
        self,
        host: NetHost,
        banks: Banks,
        budget: Budget,
        progress: Step | None,
    ) -> list[tuple[Plan, dict[int, Tensor]]]:
        """Plans with their logits on validation episodes, by number of steps.

        They start from the common initialisation and from the best validated state of the
        meta-training.
        """
        if budget not in self._known:
            plain = Plan(self.initial.theta_0, self.rates(host), _STEPS)
            support, query = validation_episodes(banks.valid, budget)

            def score(plan: Plan) -> float:
                return float(accuracy(after(plan, host, support, query)[_STEPS]).mean())

            def judged(start: Plan) -> list[tuple[Plan, dict[int, Tensor]]]:
                return [(p, after(p, host, support, query)) for p in tunings(start)]

            if budget not in self.common:
                self.common[budget] = judged(plain)
            trained = self.train(plain, host, banks.train, budget, score, progress)
            # Where no state was better than the start, there is one start.
            own = [] if trained is plain else judged(trained)
            self._known[budget] = self.common[budget] + own
        return self._known[budget]

    def rates(self, host: NetHost) -> Tensor:
        """Step sizes to start from: the initialisation's own, and less below the head."""
        rates = torch.full((len(host.space(2).layers),), 0.03 * self.initial.rate)
        rates[-1] = self.initial.rate
        return rates

    def train(
        self,
        plan: Plan,
        host: NetHost,
        train: FeatureBank,
        budget: Budget,
        score: Callable[[Plan], float],
        progress: Step | None,
    ) -> Plan:
        """Meta-train from a plan; the best of some states by `score`, the plan among them."""
        batches = (
            draw(train, budget, episodes=8, seed=budget.seed * 1_000_003 + done)
            for done in range(1, budget.iterations + 1)
        )
        best, every = (score(plan), plan), max(1, budget.iterations // _CHECKS)
        for done, state in enumerate(self.states(plan, host, batches, budget.iterations), 1):
            if done % every == 0:
                best = max(best, (score(state), state), key=lambda pair: pair[0])
                if progress:
                    progress(done, budget.iterations, f"validation accuracy {best[0]:.4f}")
        return best[1]

    @abstractmethod
    def states(
        self, plan: Plan, host: NetHost, batches: Iterator[Batch], iterations: int
    ) -> Iterator[Plan]:
        """The plan after each iteration of a meta-training on batches of tasks."""


class ReptileLearner(Learner):
    """First-order meta-learning of theta_0 (Nichol et al., 2018)."""

    note = (
        "Reptile on all layers below the head, from the generator's initialisation or that itself"
    )

    def states(
        self, plan: Plan, host: NetHost, batches: Iterator[Batch], iterations: int
    ) -> Iterator[Plan]:
        """See `Learner.states`; inner steps see all samples of a task, a different part each."""
        theta = plan.theta_0
        for done, batch in enumerate(batches):
            data = torch.cat(batch, 2)
            space = host.space(data.shape[1])
            parts = torch.chunk(data, _STEPS, 2)
            start = SharedAnchor(theta).local(data, torch.ones(data.shape[:3]), space)
            moved, rates = start, plan.rates[space.layer_of]
            for step in range(_STEPS):
                part = parts[step % len(parts)]
                mask = torch.ones(part.shape[:3])
                moved = moved - rates * host.gradient(moved, part, mask, space)
            outer = 0.5 * (1 - done / iterations)
            theta = theta + outer * (moved - start).mean(0)[: len(theta)]
            yield replace(plan, theta_0=theta)


class MamlLearner(Learner):
    """Second-order meta-learning of theta_0 and of a step size for each layer."""

    note = (
        "second-order MAML through 3 steps with learnt step sizes of layers, from the generator's "
        "initialisation or that itself"
    )

    def states(
        self, plan: Plan, host: NetHost, batches: Iterator[Batch], iterations: int
    ) -> Iterator[Plan]:
        """See `Learner.states`."""
        theta = plan.theta_0.clone().requires_grad_()
        log_rates = plan.rates.log().requires_grad_()
        optimiser = torch.optim.Adam(
            [{"params": [theta], "lr": 3e-4}, {"params": [log_rates], "lr": 3e-3}]
        )
        for batch in batches:
            space = host.space(batch.support.shape[1])
            loss = _after_steps(host, space, theta, log_rates.exp(), batch.support, batch.query)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield Plan(theta.detach().clone(), log_rates.detach().exp(), _STEPS)


def _after_steps(
    host: NetHost, space: WeightSpace, theta: Tensor, rates: Tensor, support: Tensor, query: Tensor
) -> Tensor:
    """Query loss after three inner steps, differentiable in theta_0 and rates."""
    way = support.shape[1]

    def error(t: Tensor, images: Tensor) -> Tensor:
        label = torch.arange(way).repeat_interleave(len(images) // way)
        return F.cross_entropy(host.predict(t, images, space), label)

    def one(x: Tensor, q: Tensor) -> Tensor:
        moved = F.pad(theta, (0, space.size - len(theta)))
        for _ in range(3):
            moved = moved - way * rates[space.layer_of] * grad(error)(moved, x)
        return error(moved, q)

    return vmap(one)(support.flatten(1, 2), query.flatten(1, 2)).mean()
