"""Classifier heads for classes that only have names, and maybe unlabelled images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ltdi.anchor import Anchor
from ltdi.anchor.prior import NamePrior, PriorSettings
from ltdi.backbone import Backbone
from ltdi.denoiser import Guide, NamedCode, NamingDenoiser
from ltdi.errors import InputError, MismatchError
from ltdi.generator.base import Callback, View, Weights, repeat
from ltdi.generator.linear import LinearHeads
from ltdi.lora.names import NameEncoder
from ltdi.parts import Host, Saved
from ltdi.tasks import Unseen


@dataclass(frozen=True, eq=False)
class NamedHost:
    """A backbone, and the sentence encoder that its classes' names are read with.

    The backbone is saved with the generator, the encoder by name, revision and fingerprint.

    Attributes:
        backbone: Under the heads.
        encoder: Of class names.
        prior: Sizes and settings of the generator's prior.
        pooled: Whether the generator was trained with unlabelled images.
    """

    backbone: Backbone
    encoder: NameEncoder
    prior: dict[str, Any]
    pooled: bool

    @property
    def group(self) -> str:
        """See `ltdi.parts.Host`."""
        return "backbone"

    @property
    def fingerprint(self) -> str:
        """See `ltdi.parts.Host`: that of the backbone, which is all that a head's meaning needs."""
        return self.backbone.fingerprint

    def describe(self) -> dict[str, Any]:
        """See `ltdi.parts.Host`."""
        named = {
            "names": self.encoder.describe(),
            "prior": self.prior,
            "pooled": self.pooled,
        }
        return {**self.backbone.describe(), **named}

    def tensors(self) -> dict[str, Tensor]:
        """See `ltdi.parts.Host`."""
        return self.backbone.tensors()

    @classmethod
    def from_config(cls, about: dict[str, Any], tensors: dict[str, Tensor]) -> NamedHost:
        """The inverse of `describe` and `tensors`; the sentence encoder is loaded when used."""
        backbone = Backbone.from_config(about, tensors)
        return cls(backbone, NameEncoder.of(about["names"]), about["prior"], about["pooled"])


class UnseenGenerator(LinearHeads):
    """Generates linear classifiers: "weight" [way, D] and "bias" [way]. Its host is a `NamedHost`.

    A support is `Unseen`, or a tuple of class names. Generation takes place in the coordinates of
    the prior's frame.
    """

    kind: ClassVar[str] = "unseen"

    @classmethod
    def build(cls, saved: Saved) -> tuple[nn.Module, Anchor, Host]:
        """See `Generator.build`."""
        host = NamedHost.from_config(saved.config["backbone"], saved.groups["backbone"])
        shape = saved.shape
        network = NamingDenoiser(
            steps=saved.diffusion.steps, width=shape.width, depth=shape.depth, heads=shape.heads
        )
        sizes, settings = host.prior["sizes"], PriorSettings(**host.prior["settings"])
        return network, NamePrior(**sizes, settings=settings), host

    @property
    def named(self) -> NamedHost:
        """Backbone and sentence encoder."""
        assert isinstance(self.host, NamedHost)
        return self.host

    @property
    def backbone(self) -> Backbone:
        """The feature extractor that the heads sit on."""
        return self.named.backbone

    @property
    def prior(self) -> NamePrior:
        """Where the chain starts."""
        assert isinstance(self.parts.anchor, NamePrior)
        return self.parts.anchor

    def starting_from(self, prior: NamePrior) -> UnseenGenerator:
        """The same generator with its chain started from another prior, of more classes say.

        The network goes by the coordinates of the prior's frame alone, which mean the same in
        every frame.
        """
        host = replace(self.named, prior=prior.about)
        return UnseenGenerator(replace(self.parts, anchor=prior, host=host))

    def read(self, support: Any) -> Unseen:
        """See `Generator.read`.

        Raises:
            InputError: If the generator was trained with unlabelled images and there are none, or
                the other way round.
        """
        task = Unseen.of(support)
        if self.named.pooled and task.unlabelled is None:
            raise InputError(
                "this generator was trained with unlabelled images, and none are given",
                where="unlabelled",
                fix="give images of the classes (they need no labels), or use a generator that was "
                "trained with --condition text",
            )
        if not self.named.pooled and task.unlabelled is not None:
            raise InputError(
                "this generator goes by class names alone and cannot use unlabelled images",
                where="unlabelled",
                fix="leave them out, or use a generator trained with --condition unlabeled",
            )
        return task

    def generate_many(self, supports: list[Any], *, seed: int, **options: Any) -> list[Weights]:
        """See `Generator.generate_many`; every task has a pool of its own size."""
        out = []
        for task in supports:
            text = self.named.encoder(task.classes).unsqueeze(0)
            pool = torch.zeros(1, 0, self.width)
            if task.unlabelled is not None:
                pool = self.backbone.features(task.unlabelled).unsqueeze(0)
            theta = self.weights(text, pool, seed=seed, **options)
            out.append({k: v[0].clone() for k, v in self.space(task.way).unflatten(theta).items()})
        return out

    def weights(
        self,
        text: Tensor,
        pool: Tensor,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor:
        """Flat weights [B, n] of B tasks: the mean over samples.

        Args:
            text: [B, way, W] vectors of the classes' names.
            pool: [B, n, D] features of unlabelled images; n may be 0.
            mask: [B, n] 1 for real images, 0 for padding; all ones by default.
            seed: Of the noise.
            callback: Called as callback(t, theta, theta_0_estimate) after each step.
            **options: See `generate`.

        Raises:
            MismatchError: If vectors or features are of another size.
        """
        chosen = self.sampling(**options)
        if text.shape[-1] != self.prior.keys.shape[1] or pool.shape[-1] != self.width:
            raise MismatchError(
                f"names have vectors of {text.shape[-1]} and images features of {pool.shape[-1]} "
                f"numbers; this generator expects {self.prior.keys.shape[1]} and {self.width}",
                where="weights",
                fix="take them from this generator's own encoder and backbone",
            )
        real = torch.ones(pool.shape[:2]) if mask is None else mask
        return self.chain(
            lambda copies: self.view(text, pool, real, copies),
            chosen,
            seed=seed,
            callback=callback,
        ).mean(0)

    def view(self, text: Tensor, pool: Tensor, mask: Tensor, copies: int) -> View:
        """Tasks as the chain sees them, `copies` times over."""
        space, prior = self.space(text.shape[1]), self.prior
        frame = prior.frame(self.width)
        task = prior.named(text, frame.enter(pool), mask)
        start = repeat(prior.start(task, space), copies)
        code = NamedCode(
            *(repeat(x, copies) for x in (task.mean, task.certainty, task.pool, task.mask))
        )
        between = frame.between.expand(len(start), -1)
        network = self.parts.network

        def denoise(x: Tensor, t: Tensor, signal: Tensor, stage: Tensor) -> Tensor:
            out: Tensor = network(x, t, code, space, Guide(start, between, signal, stage))
            return out

        return View(space, start, denoise, frame.leave)
