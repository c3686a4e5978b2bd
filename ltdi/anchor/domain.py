"""Domains: what the classes of other domains tell about those of a new one.

A class looks alike in all domains, not the same. Its mean in a domain is drawn around its mean over
domains, and a new domain's classes start from there: the labelled samples of a task move its own
classes, and unlabelled samples of the domain move all of them (expectation maximisation with the
prior in it). What is shared by all images of a domain is gone before: a domain is seen from the
mean of its own unlabelled samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.anchor.anchor import Anchor, masked_mean
from ltdi.anchor.frame import Frame
from ltdi.errors import InputError, unknown
from ltdi.tasks import FeatureBank
from ltdi.weights import WeightSpace, prototype_head

# No probability, without the NaN that two infinities give.
_NEVER = -1e4
# Samples of the pool that are shared out among classes; the mean is that of all.
_MOST = 256


@dataclass(frozen=True)
class Scene:
    """What is known of B tasks besides their support, in the coordinates of the support.

    Attributes:
        pool: [B, P, D] unlabelled samples of the domain.
        prior: [B, way, D] means that other domains lead to expect of the task's classes.
        others: [B, C, D + 1] rows of the classes known, as they are in this domain; where the
            task's are named, of all others.
        absent: [B, C] logarithm of how likely each of them is none of the task's.
        lean: [B, way, D] what the source head has added to the weights.
        scale: [B] inverse temperature of the anchor's heads.
    """

    pool: Tensor
    prior: Tensor
    others: Tensor
    absent: Tensor
    lean: Tensor
    scale: Tensor

    def repeat(self, copies: int) -> Scene:
        """The batch several times over."""
        if copies == 1:
            return self
        return Scene(*(v.repeat(copies, *[1] * (v.ndim - 1)) for v in vars(self).values()))


class DomainAnchor(Anchor):
    """The Bayes head of a task in a new domain, from its support, other domains and a pool.

    In the basis the spread within a class and domain is the identity. A class's mean in a new
    domain is drawn from N(prior, drift); n labelled samples count n, a sample of the pool counts
    `trust` times its responsibility, the prior 1 / drift. To the Gaussian logits those of a softmax
    head of the source domains are added, `blend` times: it knows what the class means do not, and
    the means follow a new domain where it cannot.

    Args:
        features: D.
        classes: Names of the C classes that all source domains have.
    """

    name = "domain"

    def __init__(self, features: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.basis = nn.Buffer(torch.eye(features))
        self.between = nn.Buffer(torch.ones(features))
        self.prior = nn.Buffer(torch.zeros(len(self.classes), features))
        self.rows = nn.Buffer(torch.zeros(len(self.classes), features + 1))
        self.blend = nn.Buffer(torch.tensor(0.0))
        self.drift = nn.Buffer(torch.tensor(1.0))
        # For tasks of few shots, and for those of more.
        self.trust = nn.Buffer(torch.zeros(2))
        self.heat = nn.Buffer(torch.ones(2))
        self.scale = nn.Buffer(torch.tensor(0.5))
        self.rounds = nn.Buffer(torch.tensor(5.0))

    @torch.no_grad()
    def fit(
        self, domains: Sequence[FeatureBank], ridge: float, head: Tensor | None = None
    ) -> DomainAnchor:
        """Estimate all but trust, heat, blend and scale on source domains.

        Args:
            domains: Features of at least two domains with the same classes.
            ridge: Isotropic part added to the spread within, as a share of its mean variance.
            head: [C, D + 1] of `source_head`; none leaves the logits Gaussian.
        """
        means, within = [], torch.zeros(len(self.basis), len(self.basis), dtype=torch.double)
        for bank in domains:
            x = bank.features.double() - bank.features.double().mean(0)
            label = bank.labels
            mean = torch.stack([x[label == c].mean(0) for c in range(len(self.classes))])
            rest = x - mean[label]
            within += rest.T @ rest
            means.append(mean)
        stacked = torch.stack(means)
        within /= sum(len(bank.features) for bank in domains) - stacked.shape[0] * stacked.shape[1]
        one = torch.eye(len(within), dtype=torch.double)
        within = within + ridge * within.diagonal().mean() * one
        lower = torch.linalg.cholesky(within)
        white = torch.linalg.solve_triangular(lower, one, upper=False).mT
        prior = stacked.mean(0)
        centred = (prior - prior.mean(0)) @ white
        value, vector = torch.linalg.eigh(centred.mT @ centred / max(1, len(centred) - 1))
        basis = white @ vector
        # Unbiased, and for a mean that is itself known from so many domains only.
        many = len(domains)
        spread = ((stacked - prior) @ basis).square().sum() / stacked[0].numel()
        drift = spread / max(1, many - 1) * (1 + 1 / many)
        self.basis.copy_(basis)
        self.prior.copy_(prior @ basis)
        self.drift.copy_(drift.clamp(min=1e-6))
        self.between.copy_(value.clamp(min=0) + drift)
        if head is not None:
            weight = torch.linalg.solve(basis, head[:, :-1].double().mT).mT
            self.rows.copy_(torch.cat([weight, head[:, -1:].double()], -1))
        return self

    def changed(self, level: int | None = None, **values: float) -> DomainAnchor:
        """The anchor with some of its numbers changed, at one level of shots or at both."""
        other = DomainAnchor(len(self.basis), self.classes)
        other.load_state_dict(self.state_dict())
        for name, value in values.items():
            held = getattr(other, name)
            (held if level is None else held[level]).fill_(value)
        return other

    def numbers(self, names: Sequence[str]) -> Tensor:
        """[way] the numbers of classes by name.

        Raises:
            InputError: If a name is not known, with the nearest one that is.
        """
        for name in names:
            if name not in self.classes:
                raise unknown("class name", name, self.classes, where="support.classes")
        return torch.tensor([self.classes.index(name) for name in names])

    def at(self, pool: Tensor, names: Tensor | None = None) -> DomainView:
        """The anchor in a domain.

        The pool [P, D] are unlabelled features of the domain; names [B, way] the numbers of the
        classes of the tasks to come, where they are known.

        Raises:
            InputError: If the pool is empty.
        """
        if not len(pool):
            raise InputError(
                "a domain without a single unlabelled image cannot be seen",
                where="support.unlabelled",
                fix="give some images of the domain, of any of its classes",
            )
        return DomainView(self, pool, names)


class DomainView(Anchor):
    """A `DomainAnchor` in a domain, and for tasks with names, if they have any.

    Args:
        anchor: Of all domains.
        pool: [P, D] unlabelled features of this one.
        names: [B, way] numbers of the tasks' classes; None where they are not told.
    """

    name = DomainAnchor.name

    def __init__(self, anchor: DomainAnchor, pool: Tensor, names: Tensor | None) -> None:
        super().__init__()
        self.whole, self.names = anchor, names
        self.origin = pool.mean(0)
        self.pool = self.frame(pool.shape[1]).enter(pool[:_MOST])

    def told(self, names: Tensor | None) -> DomainView:
        """The same domain for tasks with other names [B, way], or with none."""
        other = copy.copy(self)
        other.names = names
        return other

    def frame(self, width: int) -> Frame:
        """See `Anchor.frame`: the origin is the domain's own mean."""
        return Frame(self.origin, self.whole.basis, self.whole.between)

    def local(self, z: Tensor, mask: Tensor, space: WeightSpace) -> Tensor:
        """See `Anchor.local`."""
        return self.look(z, mask, space)[0]

    def look(self, z: Tensor, mask: Tensor, space: WeightSpace) -> tuple[Tensor, Scene]:
        """The heads [B, n] of tasks, and what they were made from.

        Args:
            z: [B, way, shot, D] support in the coordinates of the frame.
            mask: [B, way, shot].
            space: Of the heads.
        """
        w, way = self.whole, z.shape[1]
        mean, count = masked_mean(z, mask), mask.sum(-1)
        level = level_of(float(count.mean()))
        trust, heat = w.trust[level], w.heat[level]
        known = torch.cat([w.prior, w.blend * w.rows], -1)
        if self.names is None:
            likely = self._identity(mean, count, heat)
            absent = (1 - likely.sum(1)).clamp(min=0).log().clamp(min=_NEVER)
            own, rest = likely @ known, known.expand(len(z), -1, -1)
        else:
            names = self.names.expand(len(z), -1)
            own, rest = known[names], known[_others(names, len(known))]
            absent = torch.zeros_like(rest[..., 0])
        # The task's classes, then all others that are known.
        many = rest.shape[1]
        prior, lean = torch.cat([own, rest], 1).split([w.prior.shape[1], w.rows.shape[1]], -1)
        base = prior / w.drift + F.pad(mean * count.unsqueeze(-1), (0, 0, 0, many))
        precision = (1 / w.drift + F.pad(count, (0, many))).unsqueeze(-1)
        pool = self.pool.expand(len(z), -1, -1)
        means = base / precision
        if float(trust) > 0:
            bias = F.pad(absent, (way, 0)).unsqueeze(-1)
            if float(w.blend):
                bias = bias + heat * (lean[..., :-1] @ pool.mT + lean[..., -1:])
            counted = F.pad(pool, (0, 1), value=1.0)
            for _ in range(int(w.rounds)):
                share = responsibilities(pool, means, heat, bias)
                # Sums of the pool, and in the last column how much of it there is.
                seen = trust * torch.bmm(share, counted)
                means = (base + seen[..., :-1]) / (precision + seen[..., -1:])
        if self.names is not None:
            # Heads are centred on all classes known, however many of them are looked for.
            means = torch.cat([means, prior[:, :way]], 1)
        head = prototype_head(means, w.scale)
        head = {name: value[:, : way + many] for name, value in head.items()}
        lean = w.scale * lean
        rows = torch.cat([head["weight"], head["bias"].unsqueeze(-1)], -1) + lean
        expected = prior[:, :way]
        scene = Scene(
            pool, expected, rows[:, way:], absent, lean[:, :way, :-1], w.scale.expand(len(z))
        )
        return rows[:, :way].flatten(1), scene

    def _identity(self, mean: Tensor, count: Tensor, heat: Tensor) -> Tensor:
        """[B, way, C] how likely each class of a task is each class known, going by its support."""
        w = self.whole
        distance = torch.cdist(mean, w.prior.expand(len(mean), -1, -1)).square()
        # Of a Gaussian around the prior; the same temperature as for the pool.
        score = -0.5 * heat * distance / (w.drift + 1 / count).unsqueeze(-1)
        score = score + heat * w.blend * (mean @ w.rows[:, :-1].mT + w.rows[:, -1])
        for _ in range(10):  # a class known is at most one of the task's
            score = score - score.logsumexp(-1, keepdim=True)
            score = score - score.logsumexp(1, keepdim=True).clamp(min=0)
        return score.exp()


def source_head(domains: Sequence[FeatureBank], origins: Sequence[Tensor], decay: float) -> Tensor:
    """A softmax head of all classes on source domains, each seen from its own origin.

    It is fitted in units in which features have length one on average; see `softmax_head`.

    Origins are [D] of each; `decay` is the strength of the penalty.

    Returns:
        [C, D + 1] weights for features seen from the origin, and bias.
    """
    x = torch.cat([d.features - origin for d, origin in zip(domains, origins, strict=True)])
    unit = float(x.square().sum(-1).mean().sqrt()) or 1.0
    found = softmax_head(domains, x / unit, decay, 60)
    return torch.cat([found[:, :-1] / unit, found[:, -1:]], -1)


def softmax_head(
    domains: Sequence[FeatureBank], features: Tensor, decay: float, iterations: int
) -> Tensor:
    """Minimises the mean cross entropy + decay |weight|^2 by L-BFGS, every domain counting alike.

    The features [n, D] are theirs, one domain after the other, as the head is to see them.

    Returns:
        [C, D + 1] weights and bias.
    """
    y = torch.cat([d.labels for d in domains])
    counts = torch.tensor([float(len(d.features)) for d in domains])
    share = (1 / counts / len(domains)).repeat_interleave(counts.long())
    theta = torch.zeros(len(domains[0].classes), features.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = features @ theta[:, :-1].T + theta[:, -1]
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = (share * losses).sum() + decay * theta[:, :-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return theta.detach()


def level_of(shots: float) -> int:
    """Which of an anchor's two numbers holds for tasks of so many shots: 1 is few, 5 is not."""
    return int(shots >= 3)


def _others(names: Tensor, classes: int) -> Tensor:
    """[B, classes - way] the numbers that are not among names [B, way]."""
    free = torch.ones(len(names), classes, dtype=torch.bool).scatter(1, names, False)
    return free.nonzero()[:, 1].view(len(names), -1)


def responsibilities(pool: Tensor, means: Tensor, heat: Tensor, bias: Tensor) -> Tensor:
    """[B, classes, P] of samples [B, P, D] under means [B, classes, D]; bias broadcasts to that."""
    apart = bias - 0.5 * heat * means.square().sum(-1, keepdim=True)
    return torch.baddbmm(apart, means, pool.mT, alpha=float(heat)).softmax(1)
