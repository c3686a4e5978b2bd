"""`ltdi.denoiser.transformer`: one network for any way, blind to the order of classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ltdi.denoiser import TokenTransformer
from ltdi.denoiser.condition import Condition
from ltdi.denoiser.transformer import time_features
from ltdi.weights import WeightSpace, head_space

CONDITION, STEPS = 6, 20


def space_of(way: int, token_size: int | None = None) -> WeightSpace:
    """A hidden layer and a per-class head; rows are packed or split by the token size."""
    shapes = {"fc.weight": (5, 3), "fc.bias": (5,), "head.weight": (way, 5), "head.bias": (way,)}
    return WeightSpace.from_shapes(
        shapes, per_class=("head.weight", "head.bias"), token_size=token_size
    )


def network(space: WeightSpace, seed: int = 0, randomise: bool = True) -> TokenTransformer:
    """In double precision, with the zero-initialised layers made random on request."""
    torch.manual_seed(seed)
    net = TokenTransformer(
        space, condition_width=CONDITION, steps=STEPS, width=16, depth=2, heads=2
    )
    if randomise:
        for name, p in net.named_parameters():
            if "write" in name or "modulation" in name:
                torch.nn.init.normal_(p, std=0.3)
    return net.double()


def example(space: WeightSpace, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Condition]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    condition = Condition(normal(batch, CONDITION), normal(batch, space.way or 1, CONDITION))
    return normal(batch, space.size), torch.arange(batch) * 6, condition


def permuted(theta: Tensor, space: WeightSpace, order: Tensor) -> Tensor:
    """Weights with class `order[c]` in the place of class c."""
    state = space.unflatten(theta)
    return space.flatten({n: v[:, order] if n.startswith("head.") else v for n, v in state.items()})


@pytest.mark.parametrize("token_size", [None, 4, 20])
def test_permuting_classes_permutes_generated_rows(token_size: int | None) -> None:
    space, order = space_of(4, token_size), torch.tensor([2, 0, 3, 1])
    net = network(space)
    x, t, c = example(space)
    out = net(x, t, c, space)
    other = net(permuted(x, space, order), t, Condition(c.task, c.classes[:, order]), space)
    torch.testing.assert_close(other, permuted(out, space, order))
    assert not torch.allclose(other, out)
    # The condition alone must matter, or the claim would be empty.
    ignored = net(x, t, Condition(c.task, c.classes[:, order]), space)
    assert not torch.allclose(ignored, out, atol=1e-3)


def test_the_output_is_zero_at_the_start() -> None:
    space = space_of(4)
    x, t, c = example(space)
    assert not network(space, randomise=False)(x, t, c, space).any()
    assert network(space)(x, t, c, space).abs().min() > 0


def test_one_network_serves_ways_2_to_50() -> None:
    net = network(space_of(5))
    for way in range(2, 51):
        space = space_of(5).with_way(way)
        x, t, c = example(space, batch=2)
        out = net(x, t, c, space)
        assert out.shape == x.shape and out.isfinite().all()
    assert way == 50


def test_it_does_not_matter_for_which_way_the_network_was_built() -> None:
    a, b = network(space_of(2), seed=3), network(space_of(30), seed=3)
    space = space_of(7)
    torch.testing.assert_close(a(*example(space), space), b(*example(space), space))


def test_vmap_over_stacked_parameters_equals_a_loop() -> None:
    space = space_of(3)
    nets = [network(space, seed) for seed in range(3)]
    parts = [example(space, batch=2, seed=seed) for seed in range(3)]
    params, buffers = stack_module_state(nets)
    x, t = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
    task = torch.stack([p[2].task for p in parts])
    classes = torch.stack([p[2].classes for p in parts])

    def call(params: dict[str, Tensor], *args: Tensor) -> Tensor:
        x, t, task, classes = args
        condition = Condition(task, classes)
        return functional_call(nets[0], (params, buffers), (x, t, condition, space))

    batched = vmap(call)(params, x, t, task, classes)
    loop = torch.stack([net(*part, space) for net, part in zip(nets, parts, strict=True)])
    torch.testing.assert_close(batched, loop)
    assert not torch.allclose(loop[0], loop[1])


def test_gradients_under_vmap_equal_a_loop() -> None:
    space = space_of(3)
    nets = [network(space, seed) for seed in range(2)]
    params, _ = stack_module_state(nets)
    x, t, c = example(space, batch=2)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return functional_call(nets[0], params, (x, t, c, space)).square().mean()

    batched = vmap(torch.func.grad(loss))(params)
    for i, net in enumerate(nets):
        net.zero_grad()
        net(x, t, c, space).square().mean().backward()
        for name, p in net.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(batched[name][i], p.grad)


def test_every_input_matters() -> None:
    space = space_of(4)
    net = network(space)
    x, t, c = example(space)
    out = net(x, t, c, space)
    for other in (
        net(x + 1.0, t, c, space),
        net(x, t + 1, c, space),
        net(x, t, Condition(c.task + 1.0, c.classes), space),
        net(x, t, Condition(c.task, c.classes + 1.0), space),
    ):
        assert (other - out).abs().amax(-1).min() > 1e-3


def test_tasks_of_a_batch_do_not_mix() -> None:
    space = space_of(4)
    net = network(space)
    x, t, c = example(space)
    out = net(x, t, c, space)
    for b in range(3):
        one = Condition(c.task[b : b + 1], c.classes[b : b + 1])
        torch.testing.assert_close(net(x[b : b + 1], t[b : b + 1], one, space)[0], out[b])


def test_a_space_without_classes_needs_only_the_task() -> None:
    space = WeightSpace.from_shapes({"lora_A": (2, 5), "lora_B": (5, 2)})
    net = network(space)
    x, t, c = example(space)
    out = net(x, t, c, space)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x, t, Condition(c.task, c.classes + 1.0), space), out)


def test_tokens_of_equal_content_differ_by_position_unless_they_are_classes() -> None:
    space = space_of(4)
    net = network(space)
    _, t, c = example(space)
    same = Condition(c.task, c.classes[:, :1].expand(-1, 4, -1))
    out = space.tokenize(net(torch.zeros(3, space.size).double(), t, same, space))
    of_class = space.tokens.class_of >= 0
    rows = out[:, of_class]
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    hidden = out[:, ~of_class]
    assert (hidden[:, 0] - hidden[:, 1]).abs().max() > 1e-3


def test_time_features_tell_all_steps_apart() -> None:
    features = time_features(torch.arange(STEPS), STEPS, 16)
    assert features.shape == (STEPS, 16) and features.abs().max() <= 1.0
    gaps = torch.cdist(features, features) + 10 * torch.eye(STEPS)
    assert gaps.min() > 0.05


def test_head_space_is_one_token_per_class() -> None:
    space = head_space(5, 4)
    assert space.tokens.class_of.tolist() == [0, 1, 2, 3]
    x, t, c = example(space)
    assert network(space)(x, t, c, space).shape == (3, 24)
