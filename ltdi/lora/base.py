"""Base models: frozen encoders of the transformers library, with their tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ltdi.errors import InputError
from ltdi.files import digest
from ltdi.optional import optional

EXTRA = "llm"
# Attention written out: on a CPU, in bfloat16, a step takes 0.6 to 0.7 of the fused kernel's time.
ATTENTION = "eager"


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen base model.

    Attributes:
        name: What it is called on the hub, or the last component of its path.
        encoder: The model without any head, in evaluation mode.
        tokenizer: Of the transformers library.
        missing: Parameters of the encoder that the checkpoint did not have: random, of no use.
        revision: Of the hub.
    """

    name: str
    encoder: nn.Module
    tokenizer: Any
    missing: frozenset[str] = frozenset()
    revision: str | None = None

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def width(self) -> int:
        """D, the hidden size."""
        return int(self.config.hidden_size)

    @property
    def longest(self) -> int:
        """Tokens that the model can see."""
        # Tokenizers without a limit say 1e30; RoBERTa's positions begin after its padding's.
        positions = int(getattr(self.config, "max_position_embeddings", 2**30))
        return min(positions, int(self.tokenizer.model_max_length))

    @property
    def state(self) -> dict[str, Tensor]:
        """The encoder's pretrained tensors."""
        tensors: dict[str, Tensor] = self.encoder.state_dict()
        return {name: value for name, value in tensors.items() if name not in self.missing}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pretrained tensors."""
        return digest(self.state)

    def build(self, kind: str, outputs: int) -> tuple[Any, list[str]]:
        """A model with a head, which shares the encoder's tensors.

        Args:
            kind: An Auto class of transformers, such as "AutoModelForTokenClassification".
            outputs: Of the head.

        Returns:
            The model, and the names of its parameters that have no pretrained values.

        Raises:
            InputError: If the library has no such model for this architecture.
        """
        transformers = libraries()[0]
        config = transformers.AutoConfig.for_model(**self.config.to_dict())
        config.num_labels = outputs
        try:
            model = getattr(transformers, kind).from_config(config, attn_implementation=ATTENTION)
        except ValueError as error:
            raise InputError(
                f"{self.name} cannot be a classifier: {str(error).splitlines()[0][:200]}",
                where="base model",
                fix="choose an encoder such as roberta-base, or another pooling",
            ) from None
        # PEFT writes it down as the name of the base.
        model.name_or_path = self.name
        missing = model.base_model.load_state_dict(self.state, strict=False, assign=True)[0]
        prefix = f"{model.base_model_prefix}."
        outside = [n for n, _ in model.named_parameters() if not n.startswith(prefix)]
        return model.eval(), [*(prefix + name for name in missing), *outside]


def freeze(base: Base) -> Base:
    """The base in evaluation mode, without gradients."""
    base.encoder.eval().requires_grad_(False)
    return base


def libraries() -> tuple[Any, Any]:
    """The libraries `transformers` and `peft`.

    Raises:
        InputError: If one is not installed.
    """
    return (
        optional("transformers", purpose="a language model", extra=EXTRA),
        optional("peft", purpose="a LoRA adapter", extra=EXTRA),
    )
