"""`NetGenerator`: symmetries, batches, gradients of the chain, files, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ltdi
from ltdi.data import ImageSet
from ltdi.errors import InputError, LtdiError, MismatchError
from ltdi.generator import HeadGenerator, NetGenerator
from ltdi.generator.nets import NetTask, build_rows
from ltdi.nets import NetConfig, SmallNet
from ltdi.recipe import Diffusion, Network
from ltdi.whole import NetCollection, train_net_generator
from ltdi.zoo import Zoo

Task = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def task(glyphs: dict[str, ImageSet]) -> Task:
    test = glyphs["test"]
    items = torch.cat([test.offsets[c] + torch.arange(n) for c, n in ((0, 2), (3, 1), (5, 3))])
    return test.images[items], torch.tensor([0, 0, 1, 2, 2, 2])


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 2e-5) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=atol)


def test_generated_weights_are_a_whole_state_dict(net_gen: NetGenerator, task: Task):
    weights = net_gen.generate(task)
    net = SmallNet(net_gen.net.config, 3)
    net.load_state_dict(weights)
    expected = net(net_gen.transform(task[0])).softmax(-1)
    torch.testing.assert_close(net_gen.classify(weights, task[0]), expected)
    # Every layer is generated: none is only copied from the initialisation.
    moved = copy.deepcopy(net_gen.parts.network)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other = NetGenerator(replace(net_gen.parts, network=moved)).generate(task)
    assert all(bool((other[n] - v).abs().max() > 1e-5) for n, v in weights.items())


@pytest.mark.parametrize("steps", [1, 3])
def test_relabelling_permutes_class_rows_and_changes_nothing_else(
    net_gen: NetGenerator, task: Task, steps: int
):
    images, labels = task
    order = torch.tensor([2, 0, 1])  # class c is now called order[c]
    here = net_gen.generate((images, labels), steps=steps)
    there = net_gen.generate((images, order[labels]), steps=steps)
    turned = {n: v[order] if n.startswith("head") else v for n, v in there.items()}
    close(turned, here, atol=1e-4)
    assert not torch.allclose(there["head.weight"], here["head.weight"], atol=1e-3)


def test_a_list_equals_one_by_one_at_any_way(net_gen: NetGenerator, task: Task):
    images, labels = task
    two = (images[:3], labels[:3])
    together = net_gen.generate([task, two, task], steps=2)
    assert [len(w["head.bias"]) for w in together] == [3, 2, 3]
    for given, found in zip((task, two, task), together, strict=True):
        close(net_gen.generate(given, steps=2), found)


def test_the_gradient_at_the_anchor_is_the_general_one(net_gen: NetGenerator):
    """The closed form of the first step, with padding in the support."""
    space, host = net_gen.space(3), net_gen.net
    grid = torch.rand(2, 3, 2, 1, 12, 12)
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]]).repeat(2, 1, 1)
    anchor = net_gen.parts.anchor.local(grid, mask, space)
    scale, _ = net_gen.unit(space)
    task = NetTask(host, scale, space, anchor, grid, mask)
    expected = host.gradient(anchor, grid, mask, space) * scale
    torch.testing.assert_close(task.gradient(), expected, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_without_doubt_an_untrained_generator_is_nearest_class_mean(
    net_gen: NetGenerator, task: Task
):
    p = net_gen.parts
    network = build_rows(p.space, p.shape, p.diffusion)
    network.standardise(torch.ones(len(p.space.layers)), torch.full((len(p.space.layers),), 0.1))
    network.doubt.zero_()
    plain = NetGenerator(replace(p, network=network))
    grid = plain.transform(task[0]).unflatten(0, (1, 3, 2))
    z = plain.features(grid)[0]
    mean = z.mean(1)
    logits = plain.query_logits(plain.weights(grid), grid)[0].flatten(0, 1)
    nearest = -torch.cdist(z.flatten(0, 1), mean).square()

    def centred(t: Tensor) -> Tensor:
        return t - t.mean(-1, keepdim=True)

    ratio = centred(logits) / centred(nearest)
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=2e-3, atol=0)
    assert float(ratio[0, 0]) > 0
    # In full doubt the lengths of the means play no part: every class has the same bias.
    network.doubt.fill_(torch.inf)
    biases = NetGenerator(replace(p, network=network)).generate(task)["head.bias"]
    torch.testing.assert_close(biases, torch.zeros_like(biases), atol=1e-4, rtol=0)


def test_noise_makes_samples_and_their_absence_makes_none(net_gen: NetGenerator, task: Task):
    sure = net_gen.generate(task, seed=1)
    close(sure, net_gen.generate(task, seed=2), atol=0)
    noisy = [net_gen.generate(task, seed=s, temperature=1.0, steps=2) for s in (1, 1, 2)]
    close(noisy[0], noisy[1], atol=0)
    assert not torch.allclose(noisy[0]["head.weight"], noisy[2]["head.weight"], atol=1e-4)
    mean = net_gen.generate(task, temperature=1.0, samples=3)
    assert all(v.isfinite().all() for v in mean.values())


def test_save_and_load_give_the_identical_net(net_gen: NetGenerator, task: Task, tmp_path: Path):
    again = ltdi.Generator.from_pretrained(net_gen.save(tmp_path / "gen"))
    assert isinstance(again, NetGenerator) and again.revision == net_gen.revision
    for options in ({}, {"steps": 2, "temperature": 0.5}):
        close(net_gen.generate(task, **options), again.generate(task, **options), atol=0)
    card = (tmp_path / "gen" / "README.md").read_text(encoding="utf-8")
    assert "whole networks" in card and "backbone" not in card.partition("## Settings")[0]
    with pytest.raises(MismatchError, match="kind 'net', which a HeadGenerator does not"):
        HeadGenerator.from_pretrained(tmp_path / "gen")


def test_weights_of_another_net_are_refused(net_gen: NetGenerator, task: Task):
    other = NetConfig(size=12, widths=(8, 8), kernels=(5, 3), strides=(2, 2))
    weights = dict(SmallNet(other, 3).state_dict())
    with pytest.raises(MismatchError, match=r"'layers.0.weight' has shape \(8, 1, 5, 5\)"):
        net_gen.classify(weights, task[0])
    with pytest.raises(MismatchError, match=r"parameter 'layers\.0\.bias' is missing"):
        net_gen.check({k: v for k, v in net_gen.generate(task).items() if k != "layers.0.bias"})


def test_supports_that_cannot_be_used(net_gen: NetGenerator, task: Task):
    images, labels = task
    with pytest.raises(InputError, match=r"at least 2 classes|class 1"):
        net_gen.generate((images[:2], labels[:2]))
    with pytest.raises(MismatchError, match=r"expects \[tasks, way, shot, 1, 12, 12\]"):
        net_gen.weights(torch.rand(1, 3, 1, 1, 28, 28))
    with pytest.raises(InputError, match="not finite"):
        net_gen.weights(torch.full((1, 3, 1, 1, 12, 12), torch.nan))
    with pytest.raises(InputError, match=r"support images are torch\.float64"):
        net_gen.weights(torch.rand(1, 3, 1, 1, 12, 12).double())
    with pytest.raises(InputError, match=r"support 1, images[\s\S]*|images must have shape"):
        net_gen.generate([task, (images.expand(-1, 2, -1, -1), labels)])


@pytest.mark.parametrize(
    ("shape", "diffusion", "message"),
    [
        (Network("equivariant"), Diffusion(), r"network of whole nets 'equivariant'[\s\S]*rows"),
        (Network("rows"), Diffusion(prediction="eps", loss="weight"), "prediction of the row"),
        (Network("rows", width=10, heads=4), Diffusion(), "do not fit together"),
    ],
)
def test_networks_that_cannot_be(
    net_gen: NetGenerator, shape: Network, diffusion: Diffusion, message: str
):
    with pytest.raises(LtdiError, match=message):
        build_rows(net_gen.parts.space, shape, diffusion)


def test_the_loss_of_heads_is_refused(net_zoo: Zoo, net_recipe):
    recipe = replace(net_recipe, diffusion=replace(net_recipe.diffusion, loss="function"))
    with pytest.raises(InputError, match="'function' is that of linear heads"):
        train_net_generator(NetCollection(net_zoo), recipe)
