"""`ltdi.anchor.prior`: names predict class means, and unlabelled images correct them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltdi.anchor.prior import Named, NamePrior, PriorSettings, responsibilities
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank
from ltdi.weights import head_logits, head_space


def world(
    classes: int = 60, each: int = 12, width: int = 8, text: int = 16, seed: int = 0
) -> tuple[FeatureBank, Tensor, Tensor]:
    """A bank whose class means are a linear function of the names' vectors, and these means."""
    rng = torch.Generator().manual_seed(seed)
    names = torch.nn.functional.normalize(torch.randn(classes, text, generator=rng), dim=-1)
    means = 6 * names @ torch.randn(text, width, generator=rng)
    images = means.repeat_interleave(each, 0) + torch.randn(classes * each, width, generator=rng)
    offsets = torch.arange(classes + 1) * each
    return FeatureBank(images, offsets, tuple(map(str, range(classes)))), names, means


def test_names_alone_tell_unseen_classes_apart() -> None:
    bank, names, means = world()
    seen = FeatureBank(bank.features[: 50 * 12], bank.offsets[:51], bank.classes[:50])
    settings = PriorSettings(sharpness=0.5, noise=0.05, strength=1.0)
    prior = NamePrior.fit(seen, names[:50], settings)
    said, sure, rest = prior.believe(names[None, 50:])
    truth = prior.frame(8).enter(means[50:])
    guess = torch.cdist(truth, said[0]).argmin(1)
    assert (guess == torch.arange(10)).float().mean() > 0.6  # chance is 0.1
    assert ((sure > 0) & (sure < 1)).all()
    # A covariance: symmetric, and no combination of classes has less than none.
    torch.testing.assert_close(rest, rest.mT)
    assert torch.linalg.eigvalsh(rest[0]).min() > 0


def test_a_pool_makes_a_vague_prior_exact() -> None:
    rng = torch.Generator().manual_seed(1)
    bank, names, _ = world()
    prior = NamePrior.fit(bank, names, PriorSettings(weight=1.0, hardness=0.5))
    truth = 5 * torch.eye(4, 8).unsqueeze(0)
    pool = truth.repeat_interleave(30, 1) + 0.1 * torch.randn(1, 120, 8, generator=rng)
    vague = 0.3 * truth + 0.2 * torch.randn(1, 4, 8, generator=rng)
    task = Named(
        vague, torch.full((1, 4), 0.5), torch.eye(4).unsqueeze(0), pool, torch.ones(1, 120)
    )
    found = prior.refine(task)
    assert (found - truth).norm() < 0.1 * (vague - truth).norm()


def test_what_images_teach_of_one_class_moves_those_with_names_like_it() -> None:
    bank, names, _ = world()
    prior = NamePrior.fit(bank, names, PriorSettings(follow=0.0, balance=0.0, sharpness=0.5))
    near = torch.nn.functional.normalize(names[0] + 0.1 * names[1], dim=-1)
    task = prior.named(
        torch.stack([names[0], near, -names[0]])[None], torch.zeros(1, 0, 8), torch.ones(1, 0)
    )
    shift = torch.full((8,), 3.0)
    pool = (task.mean[:, :1] + shift).expand(1, 40, 8)
    seen = Named(task.mean, task.certainty, task.rest, pool, torch.ones(1, 40))
    moved = (prior.refine(seen) - task.mean)[0] @ shift / shift.square().sum()
    alone = Named(task.mean, task.certainty, torch.eye(3).unsqueeze(0), pool, torch.ones(1, 40))
    apart = (prior.refine(alone) - task.mean)[0] @ shift / shift.square().sum()
    # The images are of one class or the other; both move, and the far one hardly does.
    assert min(moved[0], moved[1]) > min(apart[0], apart[1]) + 0.05
    assert moved[2] < 0.5 * min(moved[0], moved[1])


def test_the_order_of_classes_and_of_images_does_not_matter() -> None:
    bank, names, _ = world()
    prior, space = NamePrior.fit(bank, names), head_space(8, 5)
    pool, turn = bank.features[None, :60], torch.tensor([3, 1, 0, 4, 2])
    mix = torch.randperm(60, generator=torch.Generator().manual_seed(0))

    def rows(order: Tensor, images: Tensor) -> Tensor:
        task = prior.named(names[None, order], images, torch.ones(1, 60))
        return prior.start(task, space).unflatten(-1, (5, 9))

    here = rows(torch.arange(5), pool)
    torch.testing.assert_close(rows(turn, pool), here[:, turn], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(rows(torch.arange(5), pool[:, mix]), here, rtol=1e-3, atol=1e-4)


def test_masked_images_count_for_nothing() -> None:
    bank, names, _ = world()
    prior = NamePrior.fit(bank, names)
    pool = bank.features[None, :40]
    short = prior.refine(prior.named(names[None, :4], pool[:, :30], torch.ones(1, 30)))
    mask = (torch.arange(40) < 30).float().unsqueeze(0)
    masked = prior.refine(prior.named(names[None, :4], pool, mask))
    torch.testing.assert_close(short, masked, rtol=1e-4, atol=1e-4)


def test_balance_makes_classes_of_equal_size() -> None:
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 4, 8, generator=rng)
    pool = torch.randn(1, 200, 8, generator=rng)
    task = Named(mean, torch.ones(1, 4), torch.eye(4).unsqueeze(0), pool, torch.ones(1, 200))
    free = responsibilities(mean, task, 0.5).sum(1)
    even = responsibilities(mean, task, 0.5, 1.0).sum(1)
    assert even.std() < 0.5 * free.std()
    assert torch.allclose(responsibilities(mean, task, 0.5, 1.0).sum(-1), torch.ones(1, 200))


def test_the_start_is_a_head_on_features_too() -> None:
    bank, names, _ = world()
    prior, space = NamePrior.fit(bank, names), head_space(8, 4)
    frame, x = prior.frame(8), bank.features[:7]
    task = prior.named(names[None, :4], frame.enter(bank.features[None, :40]), torch.ones(1, 40))
    theta = prior.start(task, space)
    inside = head_logits(theta, frame.enter(x)[None])
    torch.testing.assert_close(
        head_logits(frame.leave(theta), x[None]), inside, rtol=1e-3, atol=1e-3
    )


def test_names_and_classes_must_be_equally_many() -> None:
    bank, names, _ = world()
    with pytest.raises(InputError, match="59 names are given for 60 source classes"):
        NamePrior.fit(bank, names[:59])
