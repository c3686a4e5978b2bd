"""Tokenised texts as one tensor, and batches of texts of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ltdi.data.text import Text
from ltdi.errors import InputError
from ltdi.lora.base import Base

# What a model is called with, in the order of the channels.
CHANNELS = ("input_ids", "attention_mask", "token_type_ids")
_MASK = CHANNELS.index("attention_mask")
# Batches that are sorted by length together: enough for them to be even, few enough to be random.
_POOL = 8


def encode(base: Base, texts: Sequence[Text], *, max_length: int = 64) -> Tensor:
    """Tokenise once, for all epochs and tasks.

    Args:
        base: The model whose tokenizer is used.
        texts: Texts, or pairs of texts.
        max_length: T, tokens; longer texts are cut, of a pair the longer one first.

    Returns:
        int32 [n, channels, T]: numbers of tokens, mask (1 for a token, 0 for padding), and, where
        the model knows them, segments (0 for the first text, 1 for the second).

    Raises:
        InputError: For no texts, or a length that the model cannot see.
    """
    if not texts:
        raise InputError("there is no text", where="texts", fix="give one text or more")
    if not 4 <= max_length <= base.longest:
        raise InputError(
            f"a length of {max_length} tokens is outside 4..{base.longest}, what {base.name} sees",
            where="max_length",
            fix=f"choose 64, or 128 for long pairs, and at most {base.longest}",
        )
    second = None if texts[0][1] is None else [b for _, b in texts]
    coded = base.tokenizer(
        [a for a, _ in texts],
        second,
        truncation=True,
        max_length=max_length,
        padding="max_length",
    )
    # A tokenizer lists only what its model takes.
    channels = [torch.tensor(coded[c], dtype=torch.int32) for c in CHANNELS if c in coded]
    return torch.stack(channels, 1)


def as_call(inputs: Tensor) -> dict[str, Tensor]:
    """Inputs [n, channels, T] as the arguments of a model, int64 [n, T] each."""
    return dict(zip(CHANNELS, inputs.long().unbind(1), strict=False))


def mask_of(inputs: Tensor) -> Tensor:
    """[n, T] 1 for a token and 0 for padding, of inputs [n, channels, T]."""
    return inputs[:, _MASK]


def lengths(inputs: Tensor) -> Tensor:
    """int64 [n] tokens of each text."""
    return mask_of(inputs).sum(1)


def trim(inputs: Tensor) -> Tensor:
    """A batch cut to its longest text: padding costs as much as text."""
    return inputs[..., : int(lengths(inputs).max())]


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [n, D] over the tokens of values [n, T, D] under mask [n, T]."""
    keep = mask.unsqueeze(-1).to(values.dtype)
    return (values * keep).sum(1) / keep.sum(1)


def in_order(inputs: Tensor, batch: int) -> Iterator[Tensor]:
    """Rows of all texts once, from short to long, in batches."""
    yield from lengths(inputs).argsort(stable=True).split(batch)


def shuffled(inputs: Tensor, batch: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Rows of random batches without end, each of texts of like length.

    An epoch is a random order, cut into pools of a few batches, each sorted by length and cut into
    batches, which come in random order. The rows that do not fill a last batch wait for another
    epoch, whose order is another; fewer rows than a batch are one batch.
    """
    size = lengths(inputs)
    batch = min(batch, len(size))
    while True:
        order = torch.randperm(len(size), generator=rng)
        for pool in order[: len(order) // batch * batch].split(batch * _POOL):
            batches = pool[size[pool].argsort(stable=True)].split(batch)
            for i in torch.randperm(len(batches), generator=rng).tolist():
                yield batches[i]
