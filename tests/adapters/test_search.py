"""Which adapter a task keeps."""

from __future__ import annotations

import pytest
import torch

from ltdi.adapters.condition import Facts
from ltdi.adapters.host import Refined
from ltdi.adapters.search import choose
from ltdi.adapters.source import Source
from ltdi.generator import AdapterGenerator, adapters


def refined(number: float, losses: torch.Tensor) -> Refined:
    return Refined(torch.tensor([number]), losses)


def test_the_plain_one_is_kept_unless_another_is_better_by_more_than_noise() -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / noise.std()
    plain = [refined(0, 1 + noise), refined(1, 2 + noise)]
    # One standard error of the difference is 0.1.
    lucky, better = refined(2, 0.95 + 0 * noise), refined(3, 0.85 + 0 * noise)
    assert choose(plain, []).theta == 0
    assert choose(plain, [lucky]).theta == 0
    assert choose(plain, [lucky, better]).theta == 3
    assert choose(plain, [lucky], errors=0.0).theta == 2
    assert choose(plain, [better], errors=2.0).theta == 0
    # A small gain on every row is no noise.
    assert choose(plain, [refined(4, 0.99 + noise)]).theta == 4


def test_one_row_cannot_tell_gain_from_noise() -> None:
    plain, other = refined(0, torch.tensor([9.0])), refined(1, torch.tensor([0.1]))
    assert choose([plain], [other]).theta == 0
    with pytest.raises(ValueError, match="empty"):
        choose([], [other])


def test_nothing_is_chosen_by_the_number_of_tries_alone() -> None:
    """Of adapters that are worth the same, the plain one is kept more often than not."""
    rng = torch.Generator().manual_seed(0)
    kept = 0
    for _ in range(200):
        losses = torch.randn(4, 128, generator=rng)
        found = [refined(i, x) for i, x in enumerate(losses)]
        kept += int(choose(found[:1], found[1:]).theta == 0)
    assert kept > 100


def test_a_known_task_is_told_by_its_rows_or_its_description(generator: AdapterGenerator) -> None:
    network = generator.network
    known = network.recall(2)
    far = Facts(known.task[[0]] + 100, known.outputs[[0]], torch.zeros_like(known.text[[0]]))
    assert not network.familiar(far)
    assert network.familiar(Facts(known.task[[0]], far.outputs, far.text))
    assert network.familiar(Facts(far.task, far.outputs, known.text[[1]]))
    other = torch.nn.functional.normalize(torch.randn(known.text[[0]].shape), dim=-1)
    other[:, -1] = 1.0
    assert not network.familiar(Facts(far.task, far.outputs, other))


def test_what_was_learnt_without_labels_is_plain(
    generator: AdapterGenerator, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int]] = []

    def counted(plain: list[Refined], others: list[Refined]) -> Refined:
        found.append((len(plain), len(others)))
        return choose(plain, others)

    monkeypatch.setattr(adapters, "choose", counted)
    monkeypatch.setattr(type(generator.network), "familiar", lambda *_: False)
    texts = sources[0].train.select(sources[0].fit[:24])
    flags = generator.network.get_buffer("known_labelled")
    assert flags.tolist() == [True, True]
    generator.generate(texts, steps=1)
    monkeypatch.setitem(generator.network._buffers, "known_labelled", flags & False)
    generator.generate(texts, steps=1)
    # The frozen base and the mean; the adapter of the support's own condition.
    assert found == [(2, 3), (4, 1)]
