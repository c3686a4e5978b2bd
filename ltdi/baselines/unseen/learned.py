"""Peers that are trained on tasks: a hypernetwork, and diffusion in a latent space of weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.baselines.unseen.method import (
    Coordinates,
    NamedBanks,
    UnseenBudget,
    UnseenMethod,
    mean_accuracy,
)
from ltdi.denoiser.transformer import Block, time_features
from ltdi.diffusion import make_schedule, sample
from ltdi.progress import Step
from ltdi.seeding import seeded
from ltdi.unseen.tasks import NamedBank, TaskBatch, sample_tasks

_WIDTH = 128


class TaskEncoder(nn.Module):
    """Embeds a task without labels, class by class: its names, and its images as a set.

    A class attends to the images by its name (compare the set transformer that D2NWG embeds data
    sets with), and classes attend to each other.

    Args:
        text: W.
        features: D.
    """

    def __init__(self, text: int, features: int) -> None:
        super().__init__()
        self.name = nn.Linear(text, _WIDTH)
        self.key, self.value = nn.Linear(features, _WIDTH), nn.Linear(features, _WIDTH)
        self.whole = nn.Linear(features, _WIDTH)
        self.blocks = nn.ModuleList(Block(_WIDTH, 4) for _ in range(2))

    def forward(self, text: Tensor, pool: Tensor, mask: Tensor) -> Tensor:
        """Names [B, way, W] and images [B, n, D] with mask [B, n] -> [B, way, width]."""
        h = self.name(text)
        context = h.new_zeros(len(h), _WIDTH)
        if pool.shape[1]:
            weight = h @ self.key(pool).mT / _WIDTH**0.5
            weight = weight + (mask.unsqueeze(1) - 1) * 1e9
            h = h + weight.softmax(-1) @ self.value(pool)
            mean = (pool * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            context = self.whole(mean)
        for block in self.blocks:
            h = block(h, context)
        out: Tensor = F.layer_norm(h, h.shape[-1:])
        return out


class _Trained(UnseenMethod):
    """What both have in common: whitened coordinates, names, and tasks to train on."""

    def __init__(self) -> None:
        self.coordinates: Coordinates
        self.centre: Tensor
        self.spread = 1.0
        self.stop = 0

    def _begin(self, train: NamedBank) -> None:
        self.coordinates = Coordinates.fit(train, whiten=True)
        self.centre = train.text.mean(0)
        self.spread = float(self.coordinates.means.std())

    def _names(self, text: Tensor) -> Tensor:
        out: Tensor = F.normalize(text - self.centre, dim=-1) * float(text.shape[-1]) ** 0.5
        return out

    def _draw(self, train: NamedBank, budget: UnseenBudget, step: int) -> TaskBatch:
        ways = [w for w in budget.ways if w <= len(train.names)]
        way = ways[step % len(ways)]
        tasks = sample_tasks(
            train,
            way=way,
            pool=budget.pool,
            query=10,
            tasks=max(2, 80 // way),
            seed=budget.seed * 1_000_003 + step,
        )
        batch = tasks.view(train)
        enter = self.coordinates.frame.enter
        return TaskBatch(batch.text, enter(batch.pool), batch.mask, enter(batch.query))

    def _descend(
        self,
        net: nn.Module,
        loss: Callable[[TaskBatch], Tensor],
        banks: NamedBanks,
        budget: UnseenBudget,
        checks: int,
        progress: Step | None,
    ) -> None:
        """Train a network on drawn tasks; it ends in the state with the best validation accuracy.

        Args:
            net: All that is trained.
            loss: Of a batch of tasks.
            banks: Source classes that tasks are drawn from, and tasks that states are judged on;
                without any, the number of iterations is the one chosen before.
            budget: Iterations and the shape of tasks.
            checks: How often the state is judged.
            progress: Called as progress(iteration, iterations, text).
        """
        train, valid = banks
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
        best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})
        for step in range(budget.iterations if valid else self.stop):
            value = loss(self._draw(train, budget, step))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            if valid and (step + 1) % max(1, budget.iterations // checks) == 0:
                score = mean_accuracy(self.logits, valid)
                if score > best[0]:
                    state = {k: v.clone() for k, v in net.state_dict().items()}
                    best = (score, step + 1, state)
                if progress:
                    progress(step + 1, budget.iterations, f"validation {score:.4f}")
        if valid:
            self.stop = best[1]
            net.load_state_dict(best[2])

    def _learn(self, source: NamedBank, budget: UnseenBudget) -> None:
        self._train(NamedBanks(source, ()), budget, None)

    @abstractmethod
    def _train(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None) -> None:
        """Make new networks and train them; see `_descend`."""

    @abstractmethod
    def _rows(self, batch: TaskBatch) -> Tensor:
        """Class means [E, way, D] of a task in the coordinates, from its names and images."""

    def logits(self, batch: TaskBatch, images: Tensor) -> Tensor:
        """See `UnseenMethod.logits`."""
        with torch.no_grad():
            enter = self.coordinates.frame.enter
            seen = TaskBatch(batch.text, enter(batch.pool), batch.mask, batch.query)
            return self.coordinates.cosine(images, self._rows(seen))


class Hypernetwork(_Trained):
    """A network that writes the head in one pass, trained by the loss of what it writes."""

    name = "hypernetwork"
    note = (
        "a set transformer over names and unlabelled images writes all class rows (Ha et al., "
        "2017); trained by cross entropy of cosine scores; stopped on validation"
    )

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.ModuleDict

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        self._train(banks, budget, progress)

    def _train(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None) -> None:
        train = banks.train
        self._begin(train)
        with seeded(budget.seed):
            encoder = TaskEncoder(train.text.shape[1], train.bank.width)
            self.net = nn.ModuleDict(
                {"encoder": encoder, "write": nn.Linear(_WIDTH, train.bank.width)}
            )
            self._descend(self.net, self._loss, banks, budget, 10, progress)

    def _loss(self, batch: TaskBatch) -> Tensor:
        """Cross entropy of the query images."""
        z = F.normalize(batch.query.flatten(1, 2), dim=-1)
        logits = 10 * z @ F.normalize(self._rows(batch), dim=-1).mT
        label = torch.arange(batch.way).repeat_interleave(batch.query.shape[2])
        return F.cross_entropy(logits.flatten(0, 1), label.repeat(len(batch)))

    def _rows(self, batch: TaskBatch) -> Tensor:
        h = self.net["encoder"](self._names(batch.text), batch.pool, batch.mask)
        out: Tensor = self.net["write"](h)
        return out


class _Denoiser(nn.Module):
    """eps-prediction of the latents of all class rows of a task."""

    def __init__(self, latent: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.read, self.write = nn.Linear(latent, _WIDTH), nn.Linear(_WIDTH, latent)
        self.blocks = nn.ModuleList(Block(_WIDTH, 4) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        h = self.read(x) + condition
        context = time_features(t, self.steps, _WIDTH).to(h)
        for block in self.blocks:
            h = block(h, context)
        out: Tensor = self.write(F.layer_norm(h, h.shape[-1:]))
        return out


class D2nwg(_Trained):
    """Soro et al., 2025 (D2NWG): an autoencoder of weights, and diffusion over its latents."""

    name = "d2nwg"
    note = (
        "re-implemented for heads: a variational autoencoder of class rows, and single-level "
        "diffusion of their latents conditioned on names and on the unlabelled images as a set; "
        "steps, temperature and number of samples chosen on validation"
    )
    latent: ClassVar[int] = 64
    steps: ClassVar[int] = 100

    def __init__(self) -> None:
        super().__init__()
        self.coder: nn.ModuleDict
        self.net: nn.ModuleDict
        self.schedule = make_schedule("linear", self.steps)
        self.unit = torch.ones(())
        self.chosen = (20, 1.0, 1)

    def fit(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None = None) -> None:
        """See `UnseenMethod.fit`."""
        few = [batch[:6] for batch in banks.valid]
        self._train(NamedBanks(banks.train, few), budget, progress)
        found = []
        for option in product((10, 20, 50), (0.0, 0.5, 1.0), (1, 5)):
            if option[1] > 0 or option[2] == 1:
                self.chosen = option
                found.append((mean_accuracy(self.logits, few), -option[0] * option[2], option))
        self.chosen = max(found)[2]

    def _train(self, banks: NamedBanks, budget: UnseenBudget, progress: Step | None) -> None:
        train = banks.train
        self._begin(train)
        with seeded(budget.seed):
            self._fit_coder(train, budget)
            self.net = nn.ModuleDict(
                {
                    "encoder": TaskEncoder(train.text.shape[1], train.bank.width),
                    "denoiser": _Denoiser(self.latent, self.steps),
                }
            )
            rng = torch.Generator().manual_seed(budget.seed)
            loss = partial(self._loss, rng=rng)
            self._descend(self.net, loss, banks, budget, 5, progress)

    def _loss(self, batch: TaskBatch, rng: torch.Generator) -> Tensor:
        """Squared error of the noise in the latents of the query's class means."""
        with torch.no_grad():
            latent = self.coder["mean"](batch.query.mean(2) / self.spread) / self.unit
        t = torch.randint(self.steps, (len(batch),), generator=rng)
        signal = self.schedule.alpha_bar[t].float()[:, None, None]
        eps = torch.randn(latent.shape, generator=rng)
        x = signal.sqrt() * latent + (1 - signal).sqrt() * eps
        error = self.net["denoiser"](x, t, self._condition(batch)) - eps
        out: Tensor = error.square().mean()
        return out

    def _fit_coder(self, train: NamedBank, budget: UnseenBudget) -> None:
        """The autoencoder, on means of few images of a class: rows as tasks have them."""
        width = train.bank.width
        self.coder = nn.ModuleDict(
            {
                "mean": nn.Linear(width, self.latent),
                "spread": nn.Linear(width, self.latent),
                "back": nn.Sequential(
                    nn.Linear(self.latent, 256), nn.GELU(), nn.Linear(256, width)
                ),
            }
        )
        optimiser = torch.optim.AdamW(self.coder.parameters(), lr=2e-3)
        for step in range(budget.iterations):
            rows = self._draw(train, budget, step + 500_000).query.mean(2) / self.spread
            mean, spread = self.coder["mean"](rows), self.coder["spread"](rows).clamp(-8, 4)
            latent = mean + (0.5 * spread).exp() * torch.randn(mean.shape)
            apart = 1e-3 * (mean.square() + spread.exp() - spread - 1).mean()
            loss = (self.coder["back"](latent) - rows).square().mean() + apart
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            self.unit = self.coder["mean"](self.coordinates.means / self.spread).std()

    def _condition(self, batch: TaskBatch) -> Tensor:
        out: Tensor = self.net["encoder"](self._names(batch.text), batch.pool, batch.mask)
        return out

    def _rows(self, batch: TaskBatch) -> Tensor:
        steps, temperature, samples = self.chosen
        condition = self._condition(batch).repeat(samples, 1, 1)
        shape = (samples * len(batch), batch.way, self.latent)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).flatten(1)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.net["denoiser"](x.unflatten(1, shape[1:]), t, condition)
            return out.flatten(1)

        latent = sample(
            denoise,
            noise,
            self.schedule,
            prediction="eps",
            steps=steps,
            temperature=temperature,
        )
        rows = self.coder["back"](latent.unflatten(1, shape[1:]) * self.unit)
        out: Tensor = rows.unflatten(0, (samples, -1)).mean(0)
        return out
