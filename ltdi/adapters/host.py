"""The language model that generated adapters change, as a generator describes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltdi.adapters.condition import row_features
from ltdi.adapters.head import PRECISIONS, fit_heads, held_out_losses
from ltdi.data.text import Text
from ltdi.errors import InputError, MismatchError, unknown
from ltdi.files import tuples
from ltdi.lora import (
    Adapter,
    Base,
    LoraSpec,
    adapter_logits,
    check_base,
    describe_base,
    encode,
    load_base,
    make_adapter,
)
from ltdi.weights import WeightSpace

HEADS = ("auto", "generated", "fitted")


class Refined(NamedTuple):
    """Weights whose head a support agrees with.

    Attributes:
        theta: [n].
        losses: [rows] of the support, each under a head that was not fitted to it.
    """

    theta: Tensor
    losses: Tensor

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean())


class LanguageHost:
    """A base model, loaded when it is needed; a generator's files hold its name, not its weights.

    Args:
        source: What `load_base` loads: a name, or a path.
        known: `describe_base` of the model that the generator was trained on.
        seed: Of the shared start theta_0.
        max_length: Tokens per text.
        base: The model, where it is loaded already.
    """

    group = "base"

    def __init__(
        self,
        source: str,
        known: dict[str, Any],
        *,
        seed: int = 0,
        max_length: int = 64,
        base: Base | None = None,
    ) -> None:
        self.source, self.known, self.seed, self.max_length = source, known, seed, max_length
        self.spec = _spec(known)
        self._adapters: dict[int, Adapter] = {}
        if base is not None:
            self.use(base)

    @classmethod
    def of(
        cls, base: Base, spec: LoraSpec, source: str, *, seed: int = 0, max_length: int = 64
    ) -> LanguageHost:
        """The host of adapters of a loaded model."""
        known = describe_base(base, spec)
        return cls(source, known, seed=seed, max_length=max_length, base=base)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LanguageHost:
        """The inverse of `describe`."""
        known = {k: v for k, v in config.items() if k not in ("source", "seed", "max_length")}
        return cls(
            config["source"], known, seed=config["seed"], max_length=int(config["max_length"])
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the base model's weights."""
        return str(self.known["fingerprint"])

    def describe(self) -> dict[str, Any]:
        """See `ltdi.parts.Host`."""
        return {
            "source": self.source,
            "seed": self.seed,
            "max_length": self.max_length,
            **self.known,
        }

    def tensors(self) -> dict[str, Tensor]:
        """None: a public base model is named, not copied."""
        return {}

    def use(self, base: Base) -> None:
        """Take a base model that is loaded already, such as one from another place.

        Raises:
            MismatchError: If it is another than the generator was trained on; names both.
        """
        check_base(self.known, base, self.spec)
        self._adapters.clear()
        self.__dict__["base"] = base

    @cached_property
    def base(self) -> Base:
        """The base model.

        Raises:
            InputError: If it cannot be loaded.
            MismatchError: If what is there now is another model.
        """
        base = load_base(self.source, revision=self.known.get("revision"))
        check_base(self.known, base, self.spec)
        return base

    def adapter(self, outputs: int) -> Adapter:
        """The kind of adapter for a number of outputs."""
        if outputs not in self._adapters:
            self._adapters[outputs] = make_adapter(self.base, self.spec, outputs, seed=self.seed)
        return self._adapters[outputs]

    def inputs(self, texts: Sequence[Text]) -> Tensor:
        """Encoded texts [rows, channels, T]."""
        return encode(self.base, texts, max_length=self.max_length)

    def features(self, texts: Sequence[Text]) -> Tensor:
        """Row features [rows, F]; see `ltdi.adapters.condition`."""
        return row_features(self.base, texts, max_length=self.max_length)

    def hidden(self, theta: Tensor, space: WeightSpace, inputs: Tensor) -> Tensor:
        """What a linear head sees under an adapter: [rows, D].

        A head that is the identity shows its inputs.

        Raises:
            InputError: If the head is no linear one.
        """
        if self.spec.pooling != "mean":
            raise InputError(
                f"the head of pooling {self.spec.pooling!r} is not linear: it cannot be fitted to "
                "a support",
                where="head",
                fix="choose head='generated', or adapters with pooling='mean'",
            )
        wide = self.adapter(self.base.width)
        weights = space.unflatten(theta)
        for p in wide.space.class_params:
            weights[p.name] = torch.eye(*p.shape) if len(p.shape) == 2 else torch.zeros(p.shape)
        return adapter_logits(wide, wide.space.flatten(weights), inputs)

    def refine(
        self,
        theta: Tensor,
        space: WeightSpace,
        inputs: Tensor,
        targets: Tensor,
        *,
        head: str = "auto",
    ) -> Refined:
        """Weights with a head that the support agrees with; see `ltdi.adapters.head`.

        Args:
            theta: [n] generated weights.
            space: Their weight space.
            inputs: [rows, channels, T] of the support.
            targets: [rows] classes or values.
            head: "generated" leaves it; "fitted" fits one from zero; "auto" lets cross-validation
                on the support choose between them, and how much to believe the generated one.

        Raises:
            InputError: If `head` is none of these.
        """
        if head not in HEADS:
            raise unknown("head", head, HEADS, where="head")
        x = self.hidden(theta, space, inputs)
        centre = x.mean(0)
        scale = float((x - centre).square().mean().sqrt().clamp(min=1e-6))
        x = (x - centre) / scale
        given = _inside(_rows(theta, space), centre, scale)
        zero = torch.zeros_like(given)
        priors = {"generated": [given], "fitted": [zero], "auto": [given, zero]}[head]
        tried = (float("inf"),) if head == "generated" else PRECISIONS
        each = held_out_losses(torch.stack(priors), x, targets, precisions=tried)
        losses = each.mean(-1)
        for number, prior in enumerate(priors):
            if prior is zero:  # a head of zeros is none, however little the support says
                losses[number, -1] = float("inf")
        i, j = divmod(int(losses.argmin()), len(tried))
        if tried[j] == float("inf") and priors[i] is given:
            return Refined(theta, each[i, j])
        every = torch.ones(1, len(x))
        rows = fit_heads(priors[i][None], x, targets, torch.tensor([tried[j]]), every)[0]
        whole = _with_rows(theta, space, _outside(rows, centre, scale))
        return Refined(whole, each[i, j])


def _spec(known: dict[str, Any]) -> LoraSpec:
    try:
        fields: dict[str, Any] = tuples(known["lora"])
        return LoraSpec(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise MismatchError(
            f"the description of the base model is not complete: {error}",
            where="config.json",
            fix="restore the file from the run that wrote it",
        ) from None


def _head(space: WeightSpace) -> tuple[slice, int]:
    """Where the class rows are, and their length: weight, then bias."""
    start = 0
    for layer in space.layers:
        size = layer.units * layer.row
        if layer.per_class:
            return slice(start, start + size), layer.row
        start += size
    raise InputError(
        "these weights have no head",
        where="lora.modules_to_save",
        fix="keep the classifier among the modules that are saved",
    )


def _rows(theta: Tensor, space: WeightSpace) -> Tensor:
    where, row = _head(space)
    rows: Tensor = theta[where].unflatten(0, (-1, row))
    return rows


def _with_rows(theta: Tensor, space: WeightSpace, rows: Tensor) -> Tensor:
    where, _ = _head(space)
    out = theta.clone()
    out[where] = rows.flatten()
    return out


def _inside(rows: Tensor, centre: Tensor, scale: float) -> Tensor:
    """Rows for standardised features, of equal outputs."""
    w, b = rows[:, :-1], rows[:, -1:]
    return torch.cat([w * scale, b + w @ centre.unsqueeze(1)], 1)


def _outside(rows: Tensor, centre: Tensor, scale: float) -> Tensor:
    """The inverse of `_inside`."""
    w, b = rows[:, :-1] / scale, rows[:, -1:]
    return torch.cat([w, b - w @ centre.unsqueeze(1)], 1)
