"""Methods of the llm track: how each makes an adapter for a task from what it may see of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.collect import validation
from ltdi.adapters.host import LanguageHost, Refined
from ltdi.adapters.kept import Kept
from ltdi.adapters.peers import average, complete, full_model, nearest, task_adapters
from ltdi.adapters.search import choose
from ltdi.adapters.source import Source
from ltdi.adapters.support import support_rows
from ltdi.adapters.training import (
    Solved,
    adapter_parts,
    empty_network,
    named_recipe,
    train_network,
)
from ltdi.collect import Preparation
from ltdi.engine import Runtime
from ltdi.files import digest
from ltdi.generator import AdapterGenerator, TextSupport
from ltdi.lora import fit_adapter
from ltdi.progress import Progress
from ltdi.recipe import Sampling
from ltdi.tracks.llm_presets import Preset, Setting
from ltdi.weights import Normaliser
from ltdi.zoo import Zoo

GENERATED = ("lt-di", "mv-di", "tw-di", "mv-di-matched", "anchored-regression", "hypernetwork")
MADE = ("base", "soup", "nearest", "zoo-search")
FITTED = ("lora", "lora-support", "full-finetune")
METHODS = (*GENERATED, *MADE, *FITTED)
KINDS = {
    "lt-di": "ours",
    "hypernetwork": "peer",
    **dict.fromkeys(("mv-di", "tw-di", "mv-di-matched", "anchored-regression"), "control"),
    **dict.fromkeys(("base", "zoo-search"), "control"),
}
NOTES = {
    "lt-di": "trajectory diffusion over adapters, from support rows and a description",
    "hypernetwork": "direct regression of weights on a task's description, as text-to-LoRA does "
    "(re-implemented; same basis and network as ours)",
    "base": "the frozen base with a head fitted to the support",
    "soup": "average of the zoo's adapters, with a head fitted to the support",
    "nearest": "adapter of the known task whose rows are most alike",
    "zoo-search": "what lt-di tries for an unseen task, with the zoo's own adapters: of each known "
    "task, with labels or without, their average and the base, each with a fitted head; held-out "
    "support rows choose alike",
    "lora": "LoRA fitted to all training rows",
    "lora-support": "LoRA fitted to the support rows alone",
    "full-finetune": "all weights but word embeddings, fitted to all training rows",
}


@dataclass
class Made:
    """Weights of one method for one setting and seed.

    Attributes:
        seconds: From support rows, or training rows, to weights.
        full: Whether they are weights of the whole model.
    """

    theta: Tensor
    seconds: float
    full: bool = False


@dataclass
class Bench:
    """What the methods of one run share."""

    host: LanguageHost
    sources: Sequence[Source]
    descriptions: Sequence[str]
    groups: list[Solved]
    zoo: Zoo
    p: Preset
    kept: Kept
    seed: int
    progress: Progress
    sampling: dict[str, Sampling] = field(default_factory=dict)
    heads: dict[str, dict[int, str]] = field(default_factory=dict)
    train_s: dict[str, list[float]] = field(default_factory=dict)
    generators: dict[Any, AdapterGenerator] = field(default_factory=dict)

    @cached_property
    def mark(self) -> str:
        """Names what has learnt from these runs: with others it is another."""
        return digest({str(i): g.theta for i, g in enumerate(self.groups)})[:8]

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """Numbers of the tasks that are measured; the others are made of texts alone."""
        return tuple(t for t, s in enumerate(self.sources) if not s.origin)

    def trunk(self, task: int, number: int) -> tuple[Tensor, float]:
        """Local targets [k, n] of a long run, and its seconds."""
        entry = self.zoo.entry(f"{self.sources[task].name}-trunk-{number}")
        theta = self.zoo.columns(entry)["theta"][0].clone()
        return theta, float(entry["mean"]["seconds"])

    def known(self, tasks: Sequence[int]) -> list[Solved]:
        """Runs of some tasks."""
        wanted = torch.tensor(tasks)
        kept = [g.keep(torch.isin(g.task, wanted)) for g in self.groups]
        return [g for g in kept if len(g)]

    def spaces(self, groups: Sequence[Solved]) -> list[Any]:
        """Weight space of each group."""
        return [self.host.adapter(g.outputs).space for g in groups]

    def support_of(self, setting: Setting, seed: int) -> TextSupport:
        """Support rows of a setting; all methods see the same."""
        rng = torch.Generator().manual_seed(self.seed + 7919 * seed + setting.task)
        rows = support_rows(setting.source, setting.pool, self.p.support, rng)
        texts = setting.source.train.select(rows)
        return TextSupport(texts, self.descriptions[setting.task])

    def generator(self, name: str, known: tuple[int, ...], seed: int) -> AdapterGenerator:
        """A generator of a recipe that has learnt from some tasks.

        Without all measured tasks there is one network, and a seed varies support rows and noise
        alone.
        """
        seed = seed if known == self.labelled else 0
        key = (name, known, seed)
        if key in self.generators:
            return self.generators[key]
        recipe = named_recipe(name, self.p.recipe)
        recipe = replace(recipe, meta=replace(recipe.meta, seed=self.seed + seed))
        groups = self.known(known)
        label = f"{name} on {len(known)} tasks, seed {seed}"

        def moved(stage: str, i: int, n: int, text: str) -> None:
            self.progress(label, i, n, text)

        def make() -> dict[str, Tensor]:
            found = train_network(groups, self.host, recipe, runtime=Runtime(progress=moved))
            state = {f"network.{n}": t for n, t in found.network.state_dict().items()}
            return {**state, "mean": found.normaliser.mean, "std": found.normaliser.std}

        piece = f"network/{self.mark}-{name}-{'.'.join(map(str, known))}-{seed}"
        state = self.kept(piece, make)
        network = empty_network(groups, self.host, recipe)
        network.load_state_dict(
            {n.removeprefix("network."): t for n, t in state.items() if n.startswith("network.")}
        )
        self.train_s.setdefault(name, []).append(self.kept.seconds[piece])
        normaliser, data = Normaliser(state["mean"], state["std"]), self.data(known)
        parts = adapter_parts(network, normaliser, self.host, recipe, data)
        if name in self.sampling:
            parts = replace(parts, sampling=self.sampling[name])
        gen = AdapterGenerator(parts)
        self.generators[key] = gen
        return gen

    def data(self, known: Sequence[int]) -> str:
        """For a generator's card."""
        return ", ".join(self.sources[t].name for t in known)

    def make(self, method: str, setting: Setting, seed: int) -> Made:
        """Weights of one method."""
        if method == "lora":
            theta, seconds = self.trunk(setting.task, seed)
            return Made(theta[-1], seconds)
        if method == "full-finetune":
            return self._full(setting, seed)
        if method == "lora-support":
            return self._few(setting, self.support_of(setting, seed), seed)

        def make() -> dict[str, Tensor]:
            theta, seconds = self.weights(method, setting, seed)
            return {"theta": theta, "seconds": torch.tensor(seconds)}

        learnt = f"{self.mark}-" if method != "base" else ""
        piece = self.kept(f"weights/{learnt}{setting.piece}-{method}-{seed}", make)
        return Made(piece["theta"], float(piece["seconds"]))

    def weights(self, method: str, setting: Setting, seed: int) -> tuple[Tensor, float]:
        """From support rows alone: weights [n], and seconds."""
        support = self.support_of(setting, seed)
        if setting.task in setting.known:
            head = self.heads.get(method, {}).get(setting.task, support.head)
            support = replace(support, head=head)
        host, outputs = self.host, setting.source.outputs
        adapter = host.adapter(outputs)
        host.adapter(host.base.width)  # a template, made once in the life of a host
        if method in GENERATED:
            gen = self.generator(method, setting.known, seed)
            start = time.perf_counter()
            return gen.theta(support, seed=seed), time.perf_counter() - start
        known = self.known(setting.known)
        spaces = self.spaces(known)
        start = time.perf_counter()
        inputs, targets = host.inputs(support.texts.texts), support.texts.targets

        def refined(weights: dict[str, Tensor], head: str) -> Refined:
            return host.refine(
                complete(adapter, weights), adapter.space, inputs, targets, head=head
            )

        others: list[Refined] = []
        if method == "nearest":
            features = host.features(support.texts.texts)
            near, _ = nearest(known, spaces, features, targets, outputs)
            plain = [refined(near, support.head)]
        else:
            plain = [refined({}, "fitted")] if method != "soup" else []
            if method != "base":
                plain.append(refined(average(known, spaces), "fitted"))
        if method == "zoo-search":
            for task, weights in task_adapters(known, spaces, outputs).items():
                if task in self.labelled:
                    others.append(refined(weights, support.head))
                else:
                    plain.append(refined(weights, "fitted"))
        return choose(plain, others).theta, time.perf_counter() - start

    def _few(self, setting: Setting, support: TextSupport, seed: int) -> Made:
        name = f"few-{setting.piece}-{seed}"
        prepare = self.p.recipe.preparation(setting.source.name)
        preparation = replace(prepare, steps=self.p.few_steps, segments=1)

        def make() -> dict[str, Tensor]:
            rng = torch.Generator().manual_seed(self.seed + seed)
            inputs = self.host.inputs(support.texts.texts)
            adapter = self.host.adapter(setting.source.outputs)
            found = fit_adapter(adapter, inputs, support.texts.targets, preparation, rng)
            return {"theta": found.theta[-1]}

        theta = self.kept(name, make)["theta"]
        return Made(theta, self.kept.seconds[name])

    def full_runs(self, setting: Setting, seed: int) -> dict[float, dict[str, Tensor]]:
        """Full fine-tuning with each rate: final weights [n], "valid" metric [k], "seconds"."""
        source, rows = setting.source, setting.pool
        out = {}
        for rate in self.p.full_rates:
            p = replace(self.p.full, lr=rate)

            def make(p: Preparation = p) -> dict[str, Tensor]:
                rng = torch.Generator().manual_seed(self.seed + seed)
                model = full_model(self.host.base, source.outputs)
                found = fit_adapter(model, source.inputs[rows], source.train.targets[rows], p, rng)
                valid = [validation(self.host, source, t, model) for t in found.theta]
                return {
                    "theta": found.theta[-1].half(),
                    "valid": torch.tensor(valid),
                    "seconds": torch.tensor(found.seconds),
                }

            out[rate] = self.kept(f"full-{source.name}-{p.steps}-{rate:g}-{seed}", make)
        return out

    def _full(self, setting: Setting, seed: int) -> Made:
        """The rate whose end is best on validation rows; the seconds of that run alone."""
        runs = self.full_runs(setting, seed).values()
        best = max(runs, key=lambda run: float(run["valid"][-1]))
        return Made(best["theta"].float(), float(best["seconds"]), full=True)

    def again(
        self,
        setting: Setting,
        start: str,
        seed: int,
        preparation: Preparation,
        rows: Tensor,
    ) -> dict[str, Tensor]:
        """A short run of LoRA.

        Args:
            setting: The task.
            start: "lt-di" starts it at our generated adapter, "scratch" at θ_0, with the same
                batches.
            seed: Of batches, and of what is generated.
            preparation: Of the run.
            rows: Of the source, that it is fitted to.

        Returns:
            Its "start" [n] and its snapshots "theta" [k, n].
        """
        source = setting.source

        def make() -> dict[str, Tensor]:
            rng = torch.Generator().manual_seed(self.seed + 31 * seed + 1)
            adapter = self.host.adapter(source.outputs)
            first = adapter.theta_0 if start == "scratch" else self.make(start, setting, seed).theta
            inputs, targets = source.inputs[rows], source.train.targets[rows]
            found = fit_adapter(adapter, inputs, targets, preparation, rng, start=first)
            return {"theta": found.theta, "start": first}

        learnt = "" if start == "scratch" else f"{self.mark}-"
        how = f"{preparation.steps}-{preparation.lr:g}"
        return self.kept(f"again/{learnt}{setting.piece}-{start}-{how}-{seed}", make)
