"""`ltdi.lora.features`: embeddings of single texts and of pairs."""

from __future__ import annotations

import pytest
import torch

from ltdi.data.text import Text
from ltdi.errors import InputError
from ltdi.lora import Base, embed, pair_features

from .conftest import PAIRS, TEXTS


def test_an_embedding_is_the_mean_over_tokens_of_unit_length(base: Base) -> None:
    found = embed(base, TEXTS, precision="float32")
    assert found.shape == (len(TEXTS), 32)
    for text, row in zip(TEXTS, found, strict=True):
        alone = base.tokenizer(text[0], return_tensors="pt")
        with torch.no_grad():
            hidden = base.encoder(**alone).last_hidden_state[0]
        torch.testing.assert_close(row, hidden.mean(0) / hidden.mean(0).norm())


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_batches_do_not_show(base: Base, batch: int) -> None:
    whole = embed(base, TEXTS, precision="float32")
    torch.testing.assert_close(embed(base, TEXTS, batch=batch, precision="float32"), whole)


def test_low_precision_is_near(base: Base) -> None:
    low, high = embed(base, TEXTS), embed(base, TEXTS, precision="float32")
    assert float((low * high).sum(1).min()) > 0.999


def test_pairs_are_seen_together_or_apart(base: Base) -> None:
    first: list[Text] = [(a, None) for a, _ in PAIRS]
    assert float((embed(base, PAIRS) - embed(base, first)).abs().max()) > 0.01
    u, v = embed(base, first), embed(base, [(b or "", None) for _, b in PAIRS])
    found = pair_features(base, PAIRS)
    torch.testing.assert_close(found, torch.cat([(u + v) / 2, (u - v).abs(), u * v], 1))


def test_pair_features_do_not_see_which_text_is_first(base: Base) -> None:
    turned: list[Text] = [(b or "", a) for a, b in PAIRS]
    torch.testing.assert_close(pair_features(base, turned), pair_features(base, PAIRS))


def test_a_single_text_is_its_own_second(base: Base) -> None:
    single, double = TEXTS[:3], [(a, a) for a, _ in TEXTS[:3]]
    torch.testing.assert_close(pair_features(base, single), pair_features(base, double))
    with pytest.raises(InputError, match="there is no text"):
        pair_features(base, [])


def test_minilm_knows_what_texts_mean(minilm: Base) -> None:
    texts: list[Text] = [
        ("A man is playing a guitar.", None),
        ("Someone plays an instrument.", None),
        ("The stock market fell sharply on Monday.", None),
    ]
    low, high = embed(minilm, texts), embed(minilm, texts, precision="float32")
    assert float((low * high).sum(1).min()) > 0.999
    near = high @ high.T
    assert near[0, 1] > 0.5 > 0.2 > near[0, 2].abs()
