"""`ltdi.generator.base`: noise, steps, and options that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltdi.errors import InputError
from ltdi.generator import Generator, HeadGenerator
from tests.generator.made import Draw, flat, same


def test_temperature_zero_is_deterministic_and_ignores_the_seed(gen: Generator, draw: Draw):
    task = draw([1, 2, 1])
    head = gen.generate(task, steps=5, temperature=0.0, seed=1)
    torch.manual_seed(123)
    assert same(head, gen.generate(task, steps=5, temperature=0.0, seed=2))
    assert same(head, gen.generate(task, steps=5, temperature=0.0, samples=4))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_seed_fixes_what_noise_gives(gen: Generator, draw: Draw, sampler: str):
    task, options = (
        draw([1, 2, 1]),
        {"steps": 5, "temperature": 1.0, "sampler": sampler, "strength": 1.0},
    )
    state = torch.get_rng_state()
    head = gen.generate(task, seed=1, **options)
    assert same(head, gen.generate(task, seed=1, **options))
    assert not torch.allclose(flat(head), flat(gen.generate(task, seed=2, **options)), atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_averaging_divides_the_variance_by_the_samples(gen: Generator, draw: Draw):
    images, _ = draw([1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 1)).expand(400, -1, -1, -1)
    options = {"steps": 3, "temperature": 1.0, "sampler": "ddpm", "strength": 1.0}
    one = gen.weights(features, seed=1, **options)
    eight = gen.weights(features, seed=2, samples=8, **options)
    ratio = float(one.var(0).sum() / eight.var(0).sum())
    assert 6.5 < ratio < 9.5
    torch.testing.assert_close(
        eight.mean(0), one.mean(0), rtol=0.1, atol=0.5 * float(one.std(0).max())
    )


def test_sharpness_scales_the_whole_head(gen: Generator, draw: Draw):
    task = draw([1, 2, 3])
    one, three = (flat(gen.generate(task, sharpness=s)) for s in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


def test_the_mean_of_the_draws_is_what_is_generated(gen: Generator, draw: Draw):
    images, _ = draw([2, 2])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 2)).expand(3, -1, -1, -1)
    options = {"steps": 2, "temperature": 1.0, "samples": 5, "seed": 1}
    draws = gen.draws(features, **options)
    assert draws.shape == (5, 3, gen.space(2).size)
    torch.testing.assert_close(draws.mean(0), gen.weights(features, **options))
    assert float(draws.std((0, 1)).max()) > 1e-3
    # Without noise all are equal, and one is enough.
    assert gen.draws(features, samples=5, temperature=0.0).shape[0] == 1


def test_steps_that_the_default_end_does_not_have_take_the_whole_chain(gen: Generator, draw: Draw):
    """A generator whose validation classes chose an early end still serves 1..T steps."""
    sampling = replace(gen.parts.sampling, end=0.25, steps=2)
    early = HeadGenerator(replace(gen.parts, sampling=sampling))
    assert early.sampling(steps=5).end == 0.25
    assert early.sampling(steps=6).end == 1.0 and early.sampling(segments=4).end == 1.0
    task = draw([1, 2])
    assert same(early.generate(task, steps=20), early.generate(task, steps=20, end=1.0))
    with pytest.raises(InputError, match="6 inference steps"):
        early.sampling(steps=6, end=0.25)


def test_generated_heads_can_be_trained_on(gen: Generator, draw: Draw):
    """They come from inference mode, whose tensors autograd refuses; so do what callbacks get."""
    seen: list[Tensor] = []
    images, _ = draw([1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 1))
    out = gen.weights(features, steps=2, callback=lambda t, x, x0: seen.extend((x, x0)))
    for theta in (out, *seen):
        assert not theta.is_inference()
        free = theta.clone().requires_grad_()
        (free * theta).sum().backward()
        torch.testing.assert_close(free.grad, theta)


@pytest.mark.parametrize("end", [0.25, 0.5, 1.0])
def test_the_callback_sees_the_chain_and_its_end(gen: Generator, draw: Draw, end: float):
    images, _ = draw([1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 2, 1))
    seen: list[tuple[int, Tensor]] = []
    theta = gen.weights(
        features, steps=5, temperature=1.0, end=end, callback=lambda t, x, x0: seen.append((t, x))
    )
    assert [t for t, _ in seen][-1] == end * gen.parts.diffusion.steps and len(seen) >= 5
    torch.testing.assert_close(seen[-1][1], theta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.5}, r"unknown option of generate 'temprature'[\s\S]*'temperature'"),
        ({"step": 3}, r"unknown option of generate 'step'[\s\S]*'steps'"),
        ({"steps": 0}, "0 inference steps"),
        ({"steps": 21}, r"21 inference steps[\s\S]*between 1 and 20"),
        ({"temperature": -0.1}, "temperature >= 0, got 1 and -0.1"),
        ({"temperature": float("nan")}, "got 1 and nan"),
        ({"temperature": float("inf")}, "got 1 and inf"),
        ({"samples": 0}, "samples must be >= 1"),
        ({"strength": float("nan")}, "strength"),
        ({"sharpness": 0.0}, "sharpness must be positive and finite, got 0.0"),
        ({"end": 0.0}, r"end must lie in \(0, 1\]"),
        ({"end": float("nan")}, r"end must lie in \(0, 1\]"),
        ({"end": 1.5}, r"end must lie in \(0, 1\]"),
        ({"end": 0.25, "steps": 6}, r"6 inference steps[\s\S]*between 1 and 5"),
        ({"end": 0.5, "segments": 2, "steps": 4}, "be 1 where there are segments"),
        ({"sampler": "dim"}, r"unknown sampler 'dim'[\s\S]*'ddim'"),
    ],
)
def test_options_that_cannot_be(gen: Generator, draw: Draw, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        gen.generate(draw([1, 1]), **options)
