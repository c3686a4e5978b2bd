"""`ltdi.backbone.training`: a ProtoNet of many ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdi.backbone import (
    Backbone,
    InputTransform,
    ProtoTraining,
    leave_one_out_loss,
    train_backbone,
)
from ltdi.backbone.training import descend
from ltdi.data import ImageSet
from ltdi.errors import DivergedError, InputError
from ltdi.tasks import FeatureBank

from .conftest import SHORT

GREY = InputTransform()


def naive_loss(z: Tensor, scale: float) -> float:
    losses = []
    classes, images, width = z.shape
    for c in range(classes):
        for i in range(images):
            logits = []
            for other in range(classes):
                members = [z[other, j] for j in range(images) if (other, j) != (c, i)]
                prototype = torch.stack(members).mean(0)
                logits.append(-scale * (z[c, i] - prototype).square().sum() / width)
            losses.append(F.cross_entropy(torch.stack(logits), torch.tensor(c)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("shape", [(2, 2, 3), (5, 4, 7)])
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_the_leave_one_out_loss_is_a_loop(shape: tuple[int, int, int], scale: float) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    z = z + torch.arange(shape[0])[:, None, None]
    loss = leave_one_out_loss(z, torch.tensor(scale, dtype=torch.double))
    assert float(loss) == pytest.approx(naive_loss(z, scale), rel=1e-9)


def test_training_lowers_the_loss(glyphs: dict[str, ImageSet]) -> None:
    losses: list[float] = []
    train_backbone(
        glyphs["train"],
        replace(SHORT, iterations=40),
        progress=lambda i, n, loss: losses.append(loss),
    )
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def prototype_accuracy(bank: FeatureBank) -> float:
    e = bank.episodes(way=5, shot=1, query=5, episodes=300, seed=0)
    support, query = bank.features[e.support][:, :, 0], bank.features[e.query]
    nearest = torch.cdist(query.flatten(1, 2), support).argmin(-1).unflatten(1, (5, 5))
    return float((nearest == torch.arange(5)[:, None]).float().mean())


def test_a_short_training_beats_raw_pixels_on_unseen_classes(
    trained: Backbone, glyphs: dict[str, ImageSet]
) -> None:
    test = glyphs["test"]
    raw = FeatureBank(GREY(test.images).flatten(1), test.offsets, test.classes)
    assert prototype_accuracy(trained.bank(test)) > prototype_accuracy(raw) + 0.05


def test_training_is_fixed_by_its_seed(trained: Backbone, glyphs: dict[str, ImageSet]) -> None:
    state = torch.get_rng_state()
    torch.rand(3)
    assert train_backbone(glyphs["train"], SHORT).fingerprint == trained.fingerprint
    other = train_backbone(glyphs["train"], replace(SHORT, seed=1, iterations=1))
    assert (
        other.fingerprint
        != train_backbone(glyphs["train"], replace(SHORT, iterations=1)).fingerprint
    )
    torch.set_rng_state(state)


def test_training_leaves_the_global_random_state_alone(glyphs: dict[str, ImageSet]) -> None:
    state = torch.get_rng_state()
    train_backbone(glyphs["train"], replace(SHORT, iterations=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_image_per_class_is_refused() -> None:
    with pytest.raises(InputError, match="images must be at least 2, got 1"):
        ProtoTraining(images=1)


def test_a_step_size_that_diverges_is_named(glyphs: dict[str, ImageSet]) -> None:
    with pytest.raises(DivergedError, match="loss became") as caught:
        train_backbone(glyphs["train"], replace(SHORT, iterations=20, lr=1e30))
    assert "1e+30" in caught.value.fix


def test_descent_follows_its_rate() -> None:
    """On a loss of slope 1, plain gradient descent moves by the step size."""
    x, seen = torch.nn.Parameter(torch.zeros(())), list[tuple[int, int, float]]()
    optimiser = torch.optim.SGD([x], lr=2.0)
    rates = [1.0, 0.5, 0.0, 0.25]
    descend(optimiser, lambda: x * 1, lambda step: rates[step], 4, lambda *a: seen.append(a))
    assert float(x.detach()) == -2 * sum(rates)
    assert seen == [(1, 4, 0.0), (2, 4, -2.0), (3, 4, -3.0), (4, 4, -3.0)]
