from __future__ import annotations

import torch

from ltdi.adapters.condition import TextEncoder, as_way, describe, facts, row_features
from ltdi.adapters.host import LanguageHost


def rows(seed: int = 0, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, 7, generator=rng), torch.arange(n).expand(2, -1) % 2


def test_facts_do_not_see_the_order_or_the_number_of_rows() -> None:
    x, y = rows()
    plain = facts(x, y, 2, torch.zeros(2, 3))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for other in (
        facts(x[:, order], y[:, order], 2, torch.zeros(2, 3)),
        facts(x.repeat(1, 3, 1), y.repeat(1, 3), 2, torch.zeros(2, 3)),
    ):
        torch.testing.assert_close(other.task, plain.task)
        torch.testing.assert_close(other.outputs, plain.outputs)


def test_renaming_classes_moves_outputs_and_leaves_the_task() -> None:
    x, y = rows()
    encoder = TextEncoder(2, 8, seen=7)
    plain, turned = (facts(x, labels, 2, torch.zeros(2, 3)) for labels in (y, 1 - y))
    assert torch.equal(plain.outputs, turned.outputs.flip(1))
    a, b = (encoder(f.task, f.outputs, f.text) for f in (plain, turned))
    torch.testing.assert_close(a.task, b.task)
    torch.testing.assert_close(a.classes, b.classes.flip(1))


def test_a_value_and_two_classes_say_the_same() -> None:
    x, y = rows()
    classes = facts(x, y, 2, torch.zeros(2, 3))
    value = facts(x, y.float(), 1, torch.zeros(2, 3))
    torch.testing.assert_close(as_way(value.outputs, 2), classes.outputs)
    torch.testing.assert_close(as_way(classes.outputs, 1), value.outputs)
    assert torch.equal(as_way(classes.outputs, 5), torch.zeros(2, 5, 7))
    assert (value.task[:, -1] == 1).all() and (classes.task[:, -1] == 0).all()


def test_what_is_not_a_condition_is_not_seen() -> None:
    x, y = rows()
    known, text = facts(x, y, 2, torch.zeros(2, 3)), torch.randn(2, 3)
    blind = TextEncoder(2, 8, seen=7, rows=False)
    deaf = TextEncoder(2, 8, seen=7, text=False)
    seen = blind(known.task, known.outputs, text)
    assert torch.equal(seen.task, blind(known.task + 1, known.outputs + 1, text).task)
    assert not seen.classes.any()
    heard = deaf(known.task, known.outputs, text).task
    assert torch.equal(heard, deaf(known.task, known.outputs, -text).task)


def test_projection_keeps_the_directions_that_vary() -> None:
    x = torch.zeros(50, 9)
    x[:, :2] = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    encoder = TextEncoder(2, 8, seen=6)
    encoder.fit(x)
    z = encoder.project(x)
    assert z.shape == (50, 6) and not z[:, 2:].any()
    torch.testing.assert_close(torch.pdist(z), torch.pdist(x) / encoder_scale(x))


def encoder_scale(x: torch.Tensor) -> float:
    size = torch.linalg.svdvals(x - x.mean(0))[:2]
    return float(size.square().mean().div(len(x)).sqrt())


def test_rows_and_descriptions_of_a_model(host: LanguageHost) -> None:
    one = row_features(host.base, [("good", None), ("a bad one", None)])
    two = row_features(host.base, [("good", "the same"), ("a bad one", "not that")])
    assert one.shape == two.shape == (2, 4 * host.base.width + 1)
    assert not one[:, -1].any() and two[:, -1].all()
    assert not describe(host.base, "  ").any()
    assert describe(host.base, "is it good")[-1] == 1
