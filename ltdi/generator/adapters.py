"""LoRA adapters of a language model, from labelled texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ltdi.adapters.card import generator_card
from ltdi.adapters.condition import Facts, describe, facts
from ltdi.adapters.host import HEADS, LanguageHost, Refined
from ltdi.adapters.network import AdapterDenoiser
from ltdi.adapters.search import choose
from ltdi.anchor import Anchor
from ltdi.data.text import TextSet
from ltdi.denoiser.condition import Condition
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.files import write_text
from ltdi.generator.base import CARD, Generator, View, Weights, repeat
from ltdi.lora import Base, adapter_logits, save_adapter
from ltdi.parts import Host, Saved, save_parts
from ltdi.weights import WeightSpace


@dataclass(frozen=True, eq=False)
class TextSupport:
    """Labelled texts of a task.

    Attributes:
        texts: The rows.
        description: What the task is, in a sentence; may be empty.
        head: "generated"; "fitted" to the rows, under the generated factors; or "auto", which lets
            cross-validation on the rows choose, and how much of the generated head is kept.
        search: Whether other adapters are tried beside the one of the support's own condition:
            those of the known tasks, their mean, and none at all. The last two are plain, and so
            are adapters of tasks without labels: the best of them is kept unless a head predicts
            held-out rows of the support better under another adapter, by more than noise
            (`ltdi.adapters.search`). It costs a forward pass
            over the support for each, and is left out for a task that is itself a known one, by
            its rows or by its description.
    """

    texts: TextSet
    description: str = ""
    head: str = "auto"
    search: bool = True

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise unknown("head", self.head, HEADS, where="support.head")
        targets = self.texts.targets
        if not self.texts.regression and len(targets.unique()) < self.texts.outputs:
            lacking = set(range(self.texts.outputs)) - set(targets.tolist())
            names = ", ".join(self.texts.label_names[i] for i in sorted(lacking))
            raise InputError(
                f"the support has no row of the class {names}",
                where=f"TextSet {self.texts.name!r}",
                fix="give at least one row of every class",
            )


class AdapterGenerator(Generator):
    """Generates LoRA adapters with their heads. Its host is a `LanguageHost`.

    A support is a `TextSet`, or a `TextSupport` with a description. Generation takes place in the
    coordinates of the network's basis.
    """

    kind: ClassVar[str] = "adapter"

    @classmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Anchor, Host]:
        """See `Generator.build`."""
        host = LanguageHost.from_config(saved.config[LanguageHost.group])
        known, tensors = saved.config["about"]["condition"], saved.groups["network"]
        tasks = len(tensors["known_task"])
        # Earlier versions knew tasks with labels alone, and did not say so.
        tensors.setdefault("known_labelled", torch.ones(tasks, dtype=torch.bool))
        network = AdapterDenoiser(
            saved.space,
            int(host.known["hidden size"]),
            saved.shape,
            saved.diffusion.steps,
            rank=int(known["rank"]),
            rows=bool(known["rows"]),
            text=bool(known["text"]),
            tasks=tasks,
        )
        return network, Anchor(), host

    @property
    def language(self) -> LanguageHost:
        """The host."""
        assert isinstance(self.host, LanguageHost)
        return self.host

    def use(self, base: Base) -> AdapterGenerator:
        """Take a base model that is loaded already; see `LanguageHost.use`.

        Raises:
            MismatchError: If it is another than the generator was trained on; names both.
        """
        self.language.use(base)
        return self

    def space(self, way: int) -> WeightSpace:
        """The weight space of adapters with `way` outputs; a regression has one.

        Raises:
            InputError: If way < 1.
        """
        return self.parts.space.with_way(1) if way == 1 else super().space(way)

    def read(self, support: Any) -> TextSupport:
        """See `Generator.read`."""
        if isinstance(support, TextSet):
            return TextSupport(support)
        if not isinstance(support, TextSupport):
            raise InputError(
                f"a support of texts is a TextSet or a TextSupport, not {type(support).__name__}",
                where="generate",
                fix="read texts with ltdi.data.text.load",
            )
        return support

    def generate_many(self, supports: list[Any], *, seed: int, **options: Any) -> list[Weights]:
        """See `Generator.generate_many`."""
        return [
            self.space(s.texts.outputs).unflatten(self.theta(s, seed=seed, **options))
            for s in supports
        ]

    @torch.no_grad()
    def theta(self, support: TextSupport, *, seed: int = 0, **options: Any) -> Tensor:
        """Flat weights [n] of one task: the mean over samples, with the head that is asked for."""
        texts, host = support.texts, self.language
        own, text = self._facts(support)
        first = self._draw(own, text, seed=seed, **options).mean(0)
        if support.head == "generated":
            return first
        space, inputs = self.space(texts.outputs), host.inputs(texts.texts)

        def refined(theta: Tensor, head: str) -> Refined:
            return host.refine(theta, space, inputs, texts.targets, head=head)

        tried = [refined(first, support.head)]
        if not support.search or self.network.familiar(own):
            return tried[0].theta
        middle = self.network.basis.leave(
            torch.zeros(self.network.latent(texts.outputs).size), space
        )
        plain = [refined(x, "fitted") for x in (host.adapter(texts.outputs).theta_0, middle)]
        known = self.network.recall(texts.outputs)
        for i, labelled in enumerate(self.network.get_buffer("known_labelled").tolist()):
            one = Facts(known.task[[i]], known.outputs[[i]], known.text[[i]])
            theta = self._draw(one, one.text, seed=seed, **options).mean(0)
            if labelled:
                tried.append(refined(theta, support.head))
            else:
                plain.append(refined(theta, "fitted"))
        return choose(plain, tried).theta

    @torch.no_grad()
    def draws(self, support: TextSupport, *, seed: int = 0, **options: Any) -> Tensor:
        """Samples [samples, n] of the weights of one task, with generated heads."""
        own, text = self._facts(support)
        return self._draw(own, text, seed=seed, **options)

    @property
    def network(self) -> AdapterDenoiser:
        """The trained network."""
        return cast(AdapterDenoiser, self.parts.network)

    def _facts(self, support: TextSupport) -> tuple[Facts, Tensor]:
        texts, host = support.texts, self.language
        text = describe(host.base, support.description).unsqueeze(0)
        features = self.network.encoder.project(host.features(texts.texts)).unsqueeze(0)
        return facts(features, texts.targets.unsqueeze(0), texts.outputs, text), text

    def _draw(self, known: Facts, text: Tensor, *, seed: int, **options: Any) -> Tensor:
        code = self.network.encoder(known.task, known.outputs, text)
        return self.chain(
            lambda copies: self._view(code, copies), self.sampling(**options), seed=seed
        )[:, 0]

    def _view(self, code: Condition, copies: int) -> View:
        network = self.network
        way = code.classes.shape[1]
        space, latent = self.space(way), network.latent(way)
        told = Condition(repeat(code.task, copies), repeat(code.classes, copies))

        def denoise(x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
            return network.denoise(x, t, stage, told)

        return View(
            latent,
            torch.zeros(len(told.task), latent.size),
            denoise,
            lambda z: network.basis.leave(z, space),
        )

    def logits(self, weights: Weights, texts: TextSet) -> Tensor:
        """Logits [rows, outputs] of texts under generated weights."""
        self.check(weights)
        adapter = self.language.adapter(self.outputs_of(weights))
        inputs = self.language.inputs(texts.texts)
        return adapter_logits(adapter, adapter.space.flatten(weights), inputs)

    def outputs_of(self, weights: Weights) -> int:
        """Outputs of the head of generated weights.

        Raises:
            MismatchError: If they have none.
        """
        for p in self.parts.space.class_params:
            if p.name in weights:
                return len(weights[p.name])
        raise MismatchError(
            "these weights have no head",
            where="weights",
            fix="give what this generator's `generate` returned",
        )

    def architecture(self, weights: Weights) -> str:
        """See `Generator.architecture`."""
        spec = self.language.spec
        return (
            f"LoRA adapter of {self.language.known['name']}, rank {spec.rank} on "
            f"{', '.join(spec.target_modules)}, {self.outputs_of(weights)} outputs"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        config = save_parts(save_directory, self.parts, self.kind)
        write_text(save_directory / CARD, generator_card(config))

    def save_peft(
        self,
        path: Path | str,
        weights: Weights,
        *,
        texts: TextSet | None = None,
        classes: Sequence[str] = (),
        seed: int = 0,
    ) -> Path:
        """Write generated weights as a directory that `peft.PeftModel.from_pretrained` loads.

        Args:
            path: A new or empty directory, or one that this function wrote.
            weights: As `generate` returned them.
            texts: The support, for the names of its classes and the range of its values.
            classes: Names of the classes where there is no support.
            seed: That the weights were generated with.
        """
        self.check(weights)
        adapter = self.language.adapter(self.outputs_of(weights))
        about: dict[str, Any] = {
            "label_names": list(texts.label_names if texts else classes),
            "max_length": self.language.max_length,
            "generator": self.revision,
            "seed": seed,
        }
        if texts is not None:
            about |= {"support": texts.name, "rows": len(texts), "metrics": list(texts.metrics)}
            if texts.label_range:
                about["label_range"] = list(texts.label_range)
        return save_adapter(path, adapter, adapter.space.flatten(weights), about=about)
