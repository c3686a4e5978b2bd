"""What the frozen base says about texts: the condition of a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.backbone import autocast
from ltdi.data.text import Text
from ltdi.errors import InputError
from ltdi.lora.base import Base
from ltdi.lora.inputs import as_call, encode, in_order, mask_of, token_mean, trim


@torch.no_grad()
def embed(
    base: Base,
    texts: Sequence[Text],
    *,
    max_length: int = 64,
    batch: int = 64,
    precision: str = "auto",
) -> Tensor:
    """Sentence embeddings: the mean over tokens of the last layer, of unit length.

    A pair is embedded as one text, as a classifier sees it (Reimers and Gurevych, 2019, section 3,
    for the mean).

    Args:
        base: The frozen model.
        texts: n texts or pairs.
        max_length: Tokens; see `encode`.
        batch: Texts per forward pass.
        precision: "auto" takes bfloat16 where the processor has it; "float32" never does.

    Returns:
        float32 [n, D].

    Raises:
        InputError: As `encode`.
    """
    inputs = encode(base, texts, max_length=max_length)
    out = torch.empty(len(inputs), base.width)
    for rows in in_order(inputs, batch):
        part = trim(inputs[rows])
        with autocast(precision):
            hidden = base.encoder(**as_call(part)).last_hidden_state
        out[rows] = token_mean(hidden.float(), mask_of(part))
    return F.normalize(out, dim=-1)


def pair_features(base: Base, texts: Sequence[Text], *, max_length: int = 64) -> Tensor:
    """Embeddings u, v of the two texts as [(u + v) / 2, |u - v|, u v], equal under exchange.

    How two texts differ decides pair tasks, and a joint embedding of a frozen sentence encoder
    says little of it (Conneau et al., 2017, section 3.1). A single text is its own second.

    Returns:
        float32 [n, 3 D].

    Raises:
        InputError: As `encode`.
    """
    if not texts:
        raise InputError("there is no text", where="texts", fix="give one text or more")
    u = embed(base, [(a, None) for a, _ in texts], max_length=max_length)
    v = u if texts[0][1] is None else embed(base, _seconds(texts), max_length=max_length)
    return torch.cat([(u + v) / 2, (u - v).abs(), u * v], -1)


def _seconds(texts: Sequence[Text]) -> list[Text]:
    return [(b or "", None) for _, b in texts]
