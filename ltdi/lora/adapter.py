"""A LoRA adapter (Hu et al., 2022) and its classifier head as one flat weight vector."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ltdi.collect import Predict, module_predictor
from ltdi.errors import InputError, unknown
from ltdi.lora.base import Base, libraries
from ltdi.lora.inputs import as_call, mask_of, token_mean
from ltdi.seeding import seeded
from ltdi.weights import WeightSpace

# How a text's outputs come about -> the Auto class of transformers, and PEFT's name of the task.
POOLINGS = {
    "mean": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "model": ("AutoModelForSequenceClassification", "SEQ_CLS"),
}


@dataclass(frozen=True)
class LoraSpec:
    """Which weights of a base model an adapter has.

    Attributes:
        rank: r of the factors B [out, r] and A [r, in].
        alpha: The update of a layer is alpha / r times B A.
        target_modules: Linear layers with factors, by the ends of their names; of BERT's
            attention: query, key, value, attention.output.dense.
        modules_to_save: Modules that are replaced as a whole: the head, by the end of its name.
        pooling: "mean" is a linear head on the mean over tokens: a model for token
            classification, whose outputs are averaged over a text's tokens, which is the same.
            "model" is the head that the library's model for sequence classification has.
    """

    rank: int = 4
    alpha: float = 8.0
    target_modules: tuple[str, ...] = ("query", "value")
    modules_to_save: tuple[str, ...] = ("classifier",)
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS, where="lora.pooling")
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise InputError(
                f"rank must be at least 1 and alpha positive, got {self.rank} and {self.alpha}",
                where="lora.rank and lora.alpha",
            )
        if not self.target_modules or not self.modules_to_save:
            raise InputError(
                "an adapter needs target modules and a head",
                where="lora.target_modules and lora.modules_to_save",
                fix="give for example query, value and classifier",
            )


class TextClassifier(nn.Module):
    """A PEFT model as a map from inputs [n, channels, T] to logits [n, outputs]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of `ltdi.lora.encode` -> logits, in float32."""
        logits: Tensor = self.model(**as_call(inputs)).logits.float()
        return token_mean(logits, mask_of(inputs)) if logits.ndim == 3 else logits


@dataclass(frozen=True, eq=False)
class Adapter:
    """Adapters of one kind: the model they change, and where all of them start.

    Attributes:
        base: The frozen base.
        spec: What an adapter is.
        net: The model with an adapter, as a template. It shares the base's tensors: to merge an
            adapter, save it and load it with PEFT.
        space: Weight space of factors and head; a head's row is a class (or a regression).
        theta_0: [n] the shared start: random A, B = 0, and a head of zeros. It adds nothing to the
            base, and favours no class.
    """

    base: Base
    spec: LoraSpec
    net: TextClassifier
    space: WeightSpace
    theta_0: Tensor

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return int(self.space.way or 0)

    @property
    def predict(self) -> Predict:
        """Logits (theta [n], inputs [P, channels, T]) -> [P, outputs], differentiable in theta.

        Not under `vmap`: the library looks at the mask. For 4 or 8 adapters at once, on a CPU,
        `vmap` was no faster than one after the other.
        """
        return module_predictor(self.net, self.space)


def make_adapter(base: Base, spec: LoraSpec, outputs: int, *, seed: int = 0) -> Adapter:
    """Put an adapter on a copy of the base that shares its tensors.

    A regression has one output. The seed is that of A, the same for any number of outputs.

    Raises:
        InputError: If a target module or head is not there, or a part of the model outside the
            adapter has no pretrained weights.
    """
    if outputs < 1:
        raise InputError(f"a classifier of {outputs} outputs is none", where="outputs")
    peft = libraries()[1]
    kind, task = POOLINGS[spec.pooling]
    with seeded(seed):
        model, missing = base.build(kind, outputs)
    _check_modules(model, spec, base.name)
    saved = [f".{module}." for module in spec.modules_to_save]
    if lost := [n for n in missing if not any(m in f".{n}" for m in saved)]:
        raise InputError(
            f"{base.name} has no pretrained weights for {lost[0]}, which the pooling "
            f"{spec.pooling!r} uses",
            where="lora.pooling",
            fix="choose pooling='mean', or add the module to modules_to_save",
        )
    with seeded(seed), warnings.catch_warnings():
        # PEFT asks for it by its old name.
        warnings.filterwarnings(
            "ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning
        )
        wrapped = peft.get_peft_model(model, lora_config(base, spec, task))
    net = TextClassifier(wrapped).eval()
    weights = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
    net.requires_grad_(False)
    head = [n for n, w in weights.items() if ".modules_to_save." in n and len(w) == outputs]
    for name in head:
        weights[name].zero_()
    space = WeightSpace.from_shapes({n: w.shape for n, w in weights.items()}, per_class=head)
    return Adapter(base, spec, net, space, space.flatten(weights))


def lora_config(base: Base, spec: LoraSpec, task: str) -> Any:
    """PEFT's description of an adapter."""
    return libraries()[1].LoraConfig(
        task_type=task,
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(spec.target_modules),
        modules_to_save=list(spec.modules_to_save),
        base_model_name_or_path=base.name,
        revision=base.revision,
    )


def _check_modules(model: nn.Module, spec: LoraSpec, base: str) -> None:
    names = [name for name, _ in model.named_modules() if name]
    ends = {name.rpartition(".")[2] for name in names}
    for kind, wanted in (("target module", spec.target_modules), ("head", spec.modules_to_save)):
        for module in wanted:
            if not any(f".{name}".endswith(f".{module}") for name in names):
                known = (end for end in ends if not end.isdigit())  # not the numbers of layers
                raise unknown(kind, module, known, where=f"base model {base}")
