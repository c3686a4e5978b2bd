"""Class names as vectors: a frozen sentence encoder, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.data.concepts import words_of
from ltdi.errors import MismatchError
from ltdi.lora import Base, embed, load_base

# What stands for a class; the mean over these sentences is its vector.
TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "an image of the {}.",
    "the {} is a kind of thing.",
    "a picture of the {}.",
    "this is a {}, seen up close.",
    "what a {} looks like.",
)


@dataclass(frozen=True)
class NameEncoder:
    """Which sentence encoder, and what it is asked.

    Attributes:
        name: As `ltdi.lora.load_base` takes it: "minilm", a name of the hub, or a path.
        revision: Of the hub.
        templates: Sentences with {} for the name.
        synonyms: Most words of a class that are used.
        fingerprint: Of the encoder that a generator was trained with; empty for any.
    """

    name: str = "minilm"
    revision: str | None = None
    templates: tuple[str, ...] = TEMPLATES
    synonyms: int = 3
    fingerprint: str = ""

    @cached_property
    def base(self) -> Base:
        """The encoder, loaded when first needed.

        Raises:
            InputError: If it cannot be loaded.
            MismatchError: If it is not the one with the fingerprint.
        """
        base = load_base(self.name, revision=self.revision)
        if self.fingerprint not in ("", base.fingerprint):
            raise MismatchError(
                f"the sentence encoder {self.name!r} has fingerprint {base.fingerprint[:12]}, this "
                f"generator was trained with {self.fingerprint[:12]}",
                where="names",
                fix="install the version of the encoder that the generator was trained with",
            )
        return base

    def describe(self) -> dict[str, Any]:
        """How to make it again; JSON-able."""
        return {
            "name": self.name,
            "revision": self.revision,
            "templates": list(self.templates),
            "synonyms": self.synonyms,
            "fingerprint": self.base.fingerprint,
        }

    @classmethod
    def of(cls, about: dict[str, Any]) -> NameEncoder:
        """The inverse of `describe`; nothing is loaded yet."""
        return cls(**{**about, "templates": tuple(about["templates"])})

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Vectors [classes, W] of unit length.

        Args:
            names: One per class; synonyms after commas.
        """
        words = [words_of(name)[: self.synonyms] for name in names]
        texts = [t.format(w) for group in words for w in group for t in self.templates]
        # In float32: a name must have one vector, whatever else is in the batch.
        vectors = embed(self.base, [(t, None) for t in texts], precision="float32")
        sizes = [len(group) * len(self.templates) for group in words]
        return F.normalize(torch.stack([v.mean(0) for v in vectors.split(sizes)]), dim=-1)
