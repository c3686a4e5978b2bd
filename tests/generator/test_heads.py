"""`ltdi.generator.heads`: what a generated head is, and what it is refused for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ltdi.backbone import Backbone
from ltdi.errors import InputError, LtdiError, MismatchError
from ltdi.generator import Generator, HeadGenerator
from ltdi.parts import build_network
from ltdi.weights import centre_classes
from tests.generator.made import Draw, close


def test_a_head_is_a_state_dict_of_a_linear_layer(gen: Generator, draw: Draw):
    images, labels = draw([2, 2, 2])
    head = gen.generate((images, labels))
    width = gen.backbone.features(images).shape[1]
    torch.nn.Linear(width, 3).load_state_dict(head)
    probabilities = gen.classify(head, images)
    expected = F.linear(gen.backbone.features(images), head["weight"], head["bias"]).softmax(-1)
    torch.testing.assert_close(probabilities, expected)
    assert (probabilities.argmax(-1) == labels).all()


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_relabelling_permutes_the_rows_and_changes_nothing_else(
    gen: Generator, draw: Draw, steps: int
):
    images, labels = draw([1, 3, 2, 1, 2])
    order = torch.tensor([3, 0, 4, 2, 1])  # class c is now called order[c]
    here = gen.generate((images, labels), steps=steps, strength=1.0)
    there = gen.generate((images, order[labels]), steps=steps, strength=1.0)
    close({n: t[order] for n, t in there.items()}, here)
    # The rows do differ: a constant head would pass the line above.
    assert (here["weight"][0] - here["weight"][1]).norm() > 0.01 * here["weight"][0].norm()


def test_the_order_of_the_samples_does_not_matter(gen: Generator, draw: Draw):
    images, labels = draw([3, 1, 2, 4])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    close(gen.generate((images, labels)), gen.generate((images[order], labels[order])))


def test_an_untrained_generator_is_its_anchor(gen: Generator, draw: Draw):
    p = gen.parts
    network = build_network(p.space, p.space.layers[0].row - 1, p.shape, p.diffusion)
    blank = HeadGenerator(replace(p, network=network))
    images, labels = draw([2, 2, 2, 2])
    features = gen.backbone.features(images).unflatten(0, (1, 4, 2))
    anchor = p.anchor(features, torch.ones(1, 4, 2), gen.space(4))
    for steps in (1, 5):
        head = blank.generate((images, labels), steps=steps, strength=1.0, sharpness=1.0)
        torch.testing.assert_close(gen.space(4).flatten(head), anchor[0])
    # The trained one has learned something on top of it, and strength 0 takes it away.
    trained = gen.generate((images, labels), strength=1.0, sharpness=1.0)
    assert (gen.space(4).flatten(trained) - anchor[0]).norm() > 1e-3 * anchor[0].norm()
    plain = gen.generate((images, labels), strength=0.0, sharpness=1.0)
    torch.testing.assert_close(gen.space(4).flatten(plain), anchor[0])


def test_strength_scales_what_is_generated(gen: Generator, draw: Draw):
    task, space = draw([1, 2, 3]), gen.space(3)
    at = {s: space.flatten(gen.generate(task, strength=s)) for s in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(at[0.5], (at[0.0] + at[1.0]) / 2)


def test_the_shift_that_softmax_does_not_see_is_not_generated_by_the_anchor(
    gen: Generator, draw: Draw
):
    images, _ = draw([1, 1, 1])
    features = gen.backbone.features(images).unflatten(0, (1, 3, 1))
    space = gen.space(3)
    anchor = space.unflatten(gen.parts.anchor(features, torch.ones(1, 3, 1), space))
    close(centre_classes(anchor), anchor, atol=1e-5)


def test_heads_of_another_space_are_refused(gen: Generator, draw: Draw):
    images, labels = draw([1, 1])
    head = gen.generate((images, labels))
    gen.check(head)
    for wrong in (
        {"weight": head["weight"][:, :-1], "bias": head["bias"]},
        {"weight": head["weight"], "bias": head["bias"][:1]},
        {"bias": head["bias"]},
        {},
    ):
        with pytest.raises(LtdiError):
            gen.classify(wrong, images)
    with pytest.raises(MismatchError, match=r"expects \[tasks, way, shot, 32\]"):
        gen.weights(torch.zeros(1, 2, 1, 31))
    with pytest.raises(InputError, match="not finite"):
        gen.weights(torch.full((1, 2, 1, 32), torch.nan))


def test_another_backbone_is_refused(gen: Generator):
    gen.check_backbone(gen.backbone)
    state = {k: v.clone() for k, v in gen.backbone.net.state_dict().items()}
    about = {"config": gen.backbone.config, "transform": vars(gen.backbone.transform)}
    gen.check_backbone(Backbone.from_config(about, state))
    state["layers.0.weight"][0, 0, 0, 0] += 1e-3
    with pytest.raises(MismatchError, match="would be meaningless there"):
        gen.check_backbone(Backbone.from_config(about, state))
