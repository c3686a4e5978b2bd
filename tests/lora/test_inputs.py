"""`ltdi.lora.inputs`: tokenised once, trimmed without a trace, batches of like length."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ltdi.errors import InputError
from ltdi.lora import Adapter, Base, encode, tiny_base
from ltdi.lora.inputs import in_order, lengths, shuffled, token_mean, trim

from .conftest import PAIRS, TEXTS, some_weights


def of_lengths(counts: list[int]) -> Tensor:
    """Inputs [n, 2, T] of texts of these lengths."""
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return torch.stack([mask * 7, mask], 1).int()


COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def test_inputs_are_the_tokenizers(base: Base) -> None:
    coded = encode(base, PAIRS, max_length=24)
    assert (coded.dtype, coded.shape) == (torch.int32, (3, 3, 24))
    for (first, second), row in zip(PAIRS, coded, strict=True):
        own = base.tokenizer(first, second, truncation=True, max_length=24)
        n = len(own["input_ids"])
        assert row[0, :n].tolist() == own["input_ids"]
        assert row[1].tolist() == [1] * n + [0] * (24 - n)
        assert row[2, :n].tolist() == own["token_type_ids"]
        assert 1 in own["token_type_ids"]
    assert not encode(base, TEXTS)[:, 2].any()


def test_of_a_long_pair_the_longer_text_is_cut(base: Base) -> None:
    (row,) = encode(base, [("the " * 50, "a film")], max_length=16)
    words = base.tokenizer.convert_ids_to_tokens(row[0].tolist())
    assert words[-len(own := base.tokenizer.tokenize("a film")) - 1 : -1] == own
    assert int(row[1].sum()) == 16


def test_a_base_without_segments_has_two_channels() -> None:
    base = tiny_base()
    base.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert encode(base, PAIRS).shape == (3, 2, 64)


@pytest.mark.parametrize("length", [0, 3, 129])
def test_lengths_that_the_model_cannot_see(base: Base, length: int) -> None:
    with pytest.raises(InputError, match=rf"length of {length} tokens is outside 4\.\.128"):
        encode(base, TEXTS, max_length=length)
    with pytest.raises(InputError, match="there is no text"):
        encode(base, [])


def test_trimming_leaves_logits_alone(adapter: Adapter, base: Base) -> None:
    theta = some_weights(adapter)
    for texts in (TEXTS, PAIRS):
        x = encode(base, texts, max_length=64)
        assert trim(x).shape[-1] == int(lengths(x).max()) < 64
        torch.testing.assert_close(adapter.predict(theta, trim(x)), adapter.predict(theta, x))


def test_the_mean_over_tokens_does_not_see_padding() -> None:
    values = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    found = token_mean(values, mask)
    torch.testing.assert_close(found, torch.stack([values[0, :3].mean(0), values[1, 0]]))


@given(counts=COUNTS, batch=st.integers(1, 20))
def test_in_order_takes_every_row_once_from_short_to_long(counts: list[int], batch: int) -> None:
    x = of_lengths(counts)
    rows = torch.cat(list(in_order(x, batch)))
    assert rows.sort().values.tolist() == list(range(len(counts)))
    assert bool((lengths(x)[rows].diff() >= 0).all())


@given(counts=COUNTS, batch=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_an_epoch_repeats_no_row(counts: list[int], batch: int, seed: int) -> None:
    size = min(batch, len(counts))
    per_epoch = len(counts) // size
    batches = shuffled(of_lengths(counts), batch, torch.Generator().manual_seed(seed))
    for _ in range(3):
        rows = torch.cat(list(islice(batches, per_epoch)))
        assert len(rows) == len(rows.unique()) == per_epoch * size


@given(counts=st.lists(st.integers(1, 30), min_size=32, max_size=32), seed=st.integers(0, 2**31))
def test_batches_of_a_pool_are_ranges_of_lengths(counts: list[int], seed: int) -> None:
    x = of_lengths(counts)
    batches = list(islice(shuffled(x, 4, torch.Generator().manual_seed(seed)), 8))
    ranges = sorted((int(s.min()), int(s.max())) for s in (lengths(x)[b] for b in batches))
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def test_no_row_is_left_out_for_ever() -> None:
    x = of_lengths(list(range(1, 12)))
    batches = shuffled(x, 4, torch.Generator().manual_seed(0))
    assert len(torch.cat(list(islice(batches, 40))).unique()) == 11
