"""`ltdi.backbone.classifier`: features from classifying the training classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.backbone import (
    Augmentation,
    Backbone,
    ClassifierTraining,
    InputTransform,
    train_classifier_backbone,
)
from ltdi.backbone.backbone import build
from ltdi.backbone.classifier import CosineClassifier, classification_loss
from ltdi.data import ImageSet
from ltdi.errors import DivergedError, InputError
from ltdi.tasks import FeatureBank

TINY = InputTransform(20)
SHORT = ClassifierTraining(
    epochs=1,
    batch=32,
    rotation_weight=0.5,
    augmentation=Augmentation(flip=False, jitter=0.1),
    widths=(16, 16, 16, 16),
)


@pytest.fixture(scope="module")
def few(glyphs: dict[str, ImageSet]) -> ImageSet:
    return glyphs["train"].select(range(8))


def accuracy(bank: FeatureBank) -> float:
    """Of the nearest prototype in 5-way 1-shot episodes."""
    e = bank.episodes(way=5, shot=1, query=5, episodes=300, seed=0)
    f = F.normalize(bank.features, dim=-1)
    nearest = torch.cdist(f[e.query].flatten(1, 2), f[e.support][:, :, 0]).argmin(-1)
    return float((nearest.unflatten(1, (5, 5)) == torch.arange(5)[:, None]).float().mean())


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"rotation_weight": 0.0, "mix": "cutmix", "classifier": "linear", "warmup": 0.0},
        {"optimiser": "adamw", "lr": 0.003, "mix": "mixup", "stride": 1},
    ],
    ids=["rotation", "cutmix", "adamw"],
)
def test_training_is_fixed_by_its_seed_alone(how: dict[str, Any], few: ImageSet) -> None:
    training = replace(SHORT, **how)
    state = torch.get_rng_state()
    first = train_classifier_backbone(few, training, transform=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = train_classifier_backbone(few, training, transform=TINY)
    other = train_classifier_backbone(few, replace(training, seed=1), transform=TINY)
    assert again.fingerprint == first.fingerprint != other.fingerprint
    torch.set_rng_state(state)


def test_training_makes_features_of_unseen_classes_better(glyphs: dict[str, ImageSet]) -> None:
    losses: list[float] = []
    training = replace(SHORT, epochs=4, widths=(16, 32, 32, 32))
    net = train_classifier_backbone(
        glyphs["train"].select(range(30)),
        training,
        transform=InputTransform(),
        progress=lambda i, n, loss: losses.append(loss),
    )
    assert len(losses) == training.epochs * (600 // training.batch)
    assert sum(losses[-9:]) < 0.85 * sum(losses[:9])
    untrained = Backbone(build(net.config), net.transform, net.config)
    unseen = glyphs["test"].select(range(20))
    assert accuracy(net.bank(unseen)) > accuracy(untrained.bank(unseen)) + 0.1


def test_a_trained_net_is_saved_without_its_heads(few: ImageSet, tmp_path: Path) -> None:
    net = train_classifier_backbone(few, SHORT, transform=TINY)
    net.save(tmp_path)
    again = Backbone.load(tmp_path)
    assert again.fingerprint == net.fingerprint and again.config["kind"] == "resnet12"
    assert torch.equal(again.features(few.images[:9]), net.features(few.images[:9]))
    assert net.features(few.images[:2]).shape == (2, SHORT.widths[-1])


def test_fewer_images_than_a_batch_are_one_batch(few: ImageSet) -> None:
    seen: list[int] = []
    train_classifier_backbone(
        few.select([0, 1]),
        replace(SHORT, epochs=3, batch=512),
        transform=TINY,
        progress=lambda i, n, loss: seen.append(n),
    )
    assert seen == [3, 3, 3]


class Corner(nn.Module):
    """Features that say which of four corners is bright."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 2, 2] -> [n, 4], in the order in which quarter turns move the first corner."""
        return x.flatten(1)[:, [0, 2, 3, 1]]


@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_second_loss_asks_for_the_quarter_turn(n: int) -> None:
    """A net that sees the turn, and a head that reads it, have no loss; a wrong one has."""
    x = torch.zeros(n, 1, 2, 2)
    x[:, :, 0, 0] = 1
    target = F.one_hot(torch.zeros(n, dtype=torch.int64), 4).float()
    head = nn.Linear(4, 4, bias=False)
    head.weight.data = 50 * torch.eye(4)
    plain = replace(SHORT, smoothing=0.0)

    def loss(**heads: nn.Module) -> float:
        value = classification_loss(Corner(), nn.ModuleDict(heads), x, target, plain)
        return float(value.detach())

    assert loss(classes=head) == pytest.approx(0, abs=1e-6)
    assert loss(classes=head, turns=head) == pytest.approx(0, abs=1e-6)
    wrong = nn.Linear(4, 4, bias=False)
    wrong.weight.data = torch.zeros(4, 4)
    expected = plain.rotation_weight * torch.tensor(4.0).log()
    assert loss(classes=head, turns=wrong) == pytest.approx(float(expected), rel=1e-5)


def test_cosine_logits_do_not_see_lengths() -> None:
    head = CosineClassifier(5, 3)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    logits = head(z)
    torch.testing.assert_close(head(7 * z), logits)
    wanted = torch.stack([F.cosine_similarity(z, w.expand_as(z)) for w in head.weight], -1)
    torch.testing.assert_close(logits, 10 * wanted)


def test_a_step_size_that_diverges_is_named(few: ImageSet) -> None:
    with pytest.raises(DivergedError, match="loss became") as caught:
        train_classifier_backbone(
            few, replace(SHORT, epochs=20, lr=1e30, classifier="linear"), transform=TINY
        )
    assert "1e+30" in caught.value.fix


def test_one_class_is_refused(few: ImageSet) -> None:
    with pytest.raises(InputError, match="1 class cannot be told apart"):
        train_classifier_backbone(few.select([0]), SHORT, transform=TINY)
