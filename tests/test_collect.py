"""`ltdi.collect`: tasks optimised together end where each would have ended alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdi.collect import (
    OPTIMISERS,
    HeadPredictor,
    Preparation,
    Trajectories,
    module_predictor,
    optimise,
    solving,
)
from ltdi.errors import InputError
from ltdi.weights import WeightSpace, head_space

E, P, D, WAY = 3, 12, 5, 3
SPACE = head_space(D, WAY)
PREDICT = HeadPredictor(SPACE)
Loss = Callable[[Tensor], Tensor]


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """theta_0 [E, n], inputs [E, P, D], labels [E, P] of separable but overlapping classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.arange(WAY).repeat(P // WAY) for _ in range(E)])
    centres = torch.randn(E, WAY, D, generator=rng, dtype=torch.float64)
    noise = torch.randn(E, P, D, generator=rng, dtype=torch.float64)
    inputs = centres[torch.arange(E)[:, None], labels] + noise
    theta = 0.3 * torch.randn(E, SPACE.size, generator=rng, dtype=torch.float64)
    return theta, inputs, labels


def torch_loop(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], theta_0: Tensor, loss: Loss,
    steps: int, every: int,
) -> Tensor:  # fmt: skip
    """[k, n] targets of one task by a torch optimiser over theta - theta_0.

    In the difference, torch's decay towards zero is a decay towards theta_0.
    """
    delta = nn.Parameter(torch.zeros_like(theta_0))
    optimiser, kept = make([delta]), []
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss(theta_0 + delta).backward()
        optimiser.step()
        if step % every == 0:
            kept.append((theta_0 + delta).detach())
    return torch.stack(kept)


TORCH: dict[str, Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adam": lambda p, lr, decay: torch.optim.Adam(p, lr=lr, weight_decay=decay),
    "adamw": lambda p, lr, decay: torch.optim.AdamW(p, lr=lr, weight_decay=decay),
    "sgd": lambda p, lr, decay: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=decay),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("fused", [True, False])
def test_each_task_follows_torch_optim(
    name: str, decay: float, smoothing: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own kernel, and where a version of torch has none."""
    if not fused:
        monkeypatch.setattr("ltdi.collect.preparation.FUSED", None)
    theta_0, inputs, labels = problem()
    preparation = Preparation(
        name, lr=0.05, steps=12, segments=4, weight_decay=decay, label_smoothing=smoothing
    )
    found = optimise(PREDICT, theta_0, inputs, labels, preparation)
    assert found.theta.shape == (E, 4, SPACE.size)
    for e in range(E):

        def loss(theta: Tensor, e: int = e) -> Tensor:
            logits = PREDICT(theta, inputs[e])
            return F.cross_entropy(logits, labels[e], label_smoothing=smoothing)

        alone = torch_loop(lambda p: TORCH[name](p, 0.05, decay), theta_0[e], loss, 12, 3)
        torch.testing.assert_close(found.theta[e], alone, rtol=1e-6, atol=1e-8)


def test_the_report_is_that_of_the_last_target() -> None:
    theta_0, inputs, labels = problem()
    found = optimise(PREDICT, theta_0, inputs, labels, Preparation(lr=0.02, steps=4, segments=2))
    assert found.finite.tolist() == [True] * E
    for e in range(E):
        logits = PREDICT(found.theta[e, -1], inputs[e])
        torch.testing.assert_close(found.loss[e], F.cross_entropy(logits, labels[e]))
        right = (logits.argmax(-1) == labels[e]).sum().item()
        assert found.accuracy[e].item() == pytest.approx(right / P)
    assert ((found.accuracy > 0) & (found.accuracy < 1)).any()  # not a trivial problem


def test_training_lowers_the_loss_and_shared_labels_are_expanded() -> None:
    theta_0, inputs, labels = problem()
    preparation = Preparation(steps=60, segments=3)
    found = optimise(PREDICT, theta_0, inputs, labels[0], preparation)
    for e in range(E):
        start = F.cross_entropy(PREDICT(theta_0[e], inputs[e]), labels[0])
        assert found.loss[e] < 0.5 * start
    same = optimise(PREDICT, theta_0, inputs, labels, preparation)
    assert torch.equal(same.theta, found.theta)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_longer_run_passes_through_the_shorter_one(name: str) -> None:
    theta_0, inputs, labels = problem()

    def run(steps: int, segments: int) -> Trajectories:
        return optimise(
            PREDICT, theta_0, inputs, labels, Preparation(name, steps=steps, segments=segments)
        )

    long = run(12, 12).theta
    for k in (1, 2, 3, 4, 6):
        torch.testing.assert_close(run(12, k).theta, long[:, 12 // k - 1 :: 12 // k])
    torch.testing.assert_close(run(5, 1).theta[:, 0], long[:, 4])


def gradient(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(PREDICT(theta, x), y), theta)[0]


def test_sam_takes_the_gradient_at_the_top_of_the_climb() -> None:
    """theta_1 = theta_0 - lr * grad(theta_0 + rho * g / |g|), Foret et al., equation 4."""
    theta_0, inputs, labels = problem()
    rho = 0.5
    sgd = Preparation("sgd", lr=0.1, steps=1, segments=1, sam_rho=rho)
    found = optimise(PREDICT, theta_0, inputs, labels, sgd).theta[:, 0]
    for e in range(E):
        g = gradient(theta_0[e], inputs[e], labels[e])
        at_top = gradient(theta_0[e] + rho * g / g.norm(), inputs[e], labels[e])
        torch.testing.assert_close(found[e], theta_0[e] - 0.1 * at_top)
        assert (at_top - g).norm() > 0.05 * g.norm()


def test_the_radius_of_sam_is_its_only_switch() -> None:
    theta_0, inputs, labels = problem()

    def run(rho: float) -> Tensor:
        preparation = Preparation("sgd", lr=0.1, steps=6, segments=2, sam_rho=rho)
        return optimise(PREDICT, theta_0, inputs, labels, preparation).theta

    plain = optimise(
        PREDICT, theta_0, inputs, labels, Preparation("sgd", lr=0.1, steps=6, segments=2)
    ).theta
    assert torch.equal(run(0.0), plain)
    torch.testing.assert_close(run(1e-9), plain)
    assert (run(0.5) - plain).abs().max() > 1e-3


def test_sam_survives_a_gradient_of_zero() -> None:
    """Inputs of zero and two balanced classes: a head of zeros has no gradient to climb."""
    space = head_space(D, 2)
    preparation = Preparation("sgd", steps=2, segments=1, sam_rho=0.1)
    start, inputs, labels = torch.zeros(1, space.size), torch.zeros(1, 4, D), torch.arange(4) % 2
    found = optimise(HeadPredictor(space), start, inputs, labels, preparation)
    assert found.finite.all() and not found.theta.any()


def test_sam_lowers_the_largest_eigenvalue_of_the_hessian() -> None:
    """64 hidden-layer networks on noisy XOR-like tasks; over seeds the drop is 4 to 7 errors."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    space = WeightSpace.from_module(net)
    predict = module_predictor(net, space)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, 30, 3, generator=rng, dtype=torch.float64)
    y = (x[..., 0] * x[..., 1] + 0.5 * torch.randn(64, 30, generator=rng) > 0).long()
    start = 0.5 * torch.randn(64, space.size, generator=rng, dtype=torch.float64)

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(predict(theta, x), y, label_smoothing=0.1)

    def sharpness(rho: float) -> Tensor:
        preparation = Preparation(lr=0.02, steps=120, segments=1, sam_rho=rho, label_smoothing=0.1)
        found = optimise(predict, start, x, y, preparation)
        hessian = torch.func.vmap(torch.func.hessian(loss))(found.theta[:, -1], x, y)
        return torch.linalg.eigvalsh(hessian)[:, -1]

    drop = sharpness(0.0) - sharpness(0.5)
    assert drop.mean() > 3 * drop.std() / 64**0.5
    assert drop.mean() > 0.1


class SmallConv(nn.Module):
    """A whole small conv net with parameters of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, WAY)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.norm(self.conv(x))).mean((-2, -1)))
        return out


def conv_net() -> SmallConv:
    torch.manual_seed(0)
    return SmallConv().double()


def test_head_predictor_is_the_linear_layer() -> None:
    theta_0, inputs, _ = problem()
    layer = nn.Linear(D, WAY).double()
    layer.load_state_dict(SPACE.unflatten(theta_0[0]))
    torch.testing.assert_close(PREDICT(theta_0[0], inputs[0]), layer(inputs[0]))


@pytest.mark.parametrize("include", ["*", "head.*"])
def test_module_predictor_is_the_module_with_those_weights(include: str) -> None:
    net = conv_net()
    space = WeightSpace.from_module(net, include)
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn(E, space.size, generator=rng, dtype=torch.float64)
    x = torch.randn(E, 6, 1, 5, 5, generator=rng, dtype=torch.float64)
    batched = torch.func.vmap(module_predictor(net, space))(theta, x)
    before = {n: p.clone() for n, p in net.state_dict().items()}
    for e in range(E):
        other = conv_net()
        other.load_state_dict(space.unflatten(theta[e]), strict=False)
        torch.testing.assert_close(batched[e], other(x[e]))
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())


def test_whole_conv_nets_train_together_as_alone() -> None:
    net = conv_net()
    space = WeightSpace.from_module(net)
    rng = torch.Generator().manual_seed(1)
    theta_0 = 0.3 * torch.randn(2, space.size, generator=rng, dtype=torch.float64)
    x = torch.randn(2, 6, 1, 5, 5, generator=rng, dtype=torch.float64)
    labels = torch.arange(6) % WAY
    preparation = Preparation("adam", lr=0.01, steps=6, segments=2)
    found = optimise(module_predictor(net, space), theta_0, x, labels, preparation)
    for e in range(2):
        alone = conv_net()
        alone.load_state_dict(space.unflatten(theta_0[e]))
        optimiser, kept = torch.optim.Adam(alone.parameters(), lr=0.01), []
        for _ in range(6):
            optimiser.zero_grad()
            F.cross_entropy(alone(x[e]), labels).backward()
            optimiser.step()
            kept.append(space.flatten(dict(alone.named_parameters())).detach().clone())
        expected = torch.stack([kept[2], kept[5]])
        torch.testing.assert_close(found.theta[e], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "poison"),
    [(name, poison) for name in OPTIMISERS for poison in (float("nan"), float("inf"))]
    + [("sgd", 1e308)],
)
def test_a_diverging_task_is_flagged_and_hurts_no_other(name: str, poison: float) -> None:
    theta_0, inputs, labels = problem()
    preparation = Preparation(name, lr=0.05, steps=6, segments=3, sam_rho=0.05)
    healthy = optimise(PREDICT, theta_0, inputs, labels, preparation)
    inputs[1, 0] = poison
    found = optimise(PREDICT, theta_0, inputs, labels, preparation)
    assert found.finite.tolist() == [True, False, True]
    for e in (0, 2):
        assert torch.equal(found.theta[e], healthy.theta[e])
        assert torch.equal(found.loss[e], healthy.loss[e])


def test_one_infinite_number_is_enough_to_be_flagged() -> None:
    """The slope of a square root at 0 sends one number to -inf; the loss stays finite."""

    def predict(theta: Tensor, x: Tensor) -> Tensor:
        bump = theta[-1].clamp(min=0).sqrt() * torch.tensor([0.0, 0.0, 1.0])
        return PREDICT(theta[:-1], x) + bump

    start = torch.zeros(2, SPACE.size + 1)
    start[0, -1] = 1.0
    inputs, labels = torch.ones(2, 4, D), torch.zeros(4, dtype=torch.long)
    found = optimise(predict, start, inputs, labels, Preparation("sgd", steps=1, segments=1))
    assert found.finite.tolist() == [True, False]
    assert found.loss.isfinite().all()
    assert found.theta[1, 0].isfinite().sum() == SPACE.size


def test_minibatches_are_drawn_per_task_without_replacement() -> None:
    """The gradient of the loss mean over a batch of 4 of 12 samples, for the drawn samples."""
    theta_0, inputs, labels = problem()
    preparation = Preparation("sgd", lr=1.0, steps=1, segments=1, batch=4)
    seen: list[Tensor] = []

    def spy(y: Tensor, size: int, rng: torch.Generator | None) -> object:
        seen.append(original(y, size, rng))
        return seen[-1]

    original = solving._minibatch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solving, "_minibatch", spy)
        rng = torch.Generator().manual_seed(0)
        found = optimise(PREDICT, theta_0, inputs, labels, preparation, rng=rng).theta[:, 0]
    (pick,) = seen
    assert pick.shape == (E, 4)
    for e in range(E):
        assert len(set(pick[e].tolist())) == 4
        x, y = inputs[e][pick[e]], labels[e][pick[e]]
        torch.testing.assert_close(found[e], theta_0[e] - gradient(theta_0[e], x, y))
    assert len({tuple(p.tolist()) for p in pick}) == E


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("change", [{}, {"batch": 5}, {"sam_rho": 0.1, "label_smoothing": 0.2}])
def test_the_closed_form_of_heads_is_their_gradient(
    name: str, change: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As automatic differentiation has it, whatever the number of tasks in the cache."""
    theta_0, inputs, labels = problem()
    preparation = replace(
        Preparation(name, lr=0.01, steps=6, segments=2, weight_decay=0.1), **change
    )
    paths = []
    for predict, cache in ((PREDICT, 1 << 22), (PREDICT, 1), (lambda t, x: PREDICT(t, x), 1)):
        monkeypatch.setattr("ltdi.collect.predictors.CACHE", cache)
        rng = torch.Generator().manual_seed(0)
        paths.append(optimise(predict, theta_0, inputs, labels, preparation, rng=rng))
    for other in paths[1:]:
        torch.testing.assert_close(other.theta, paths[0].theta, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.loss, paths[0].loss, rtol=1e-4, atol=1e-5)


def test_the_generator_fixes_minibatches() -> None:
    theta_0, inputs, labels = problem()

    def run(seed: int, batch: int) -> Tensor:
        preparation = Preparation(steps=4, segments=2, batch=batch)
        rng = torch.Generator().manual_seed(seed)
        return optimise(PREDICT, theta_0, inputs, labels, preparation, rng=rng).theta

    assert torch.equal(run(0, 4), run(0, 4))
    assert not torch.equal(run(0, 4), run(1, 4))
    assert torch.equal(run(0, P), run(1, 0))  # a batch of all samples is no draw


def test_solved_heads_are_tensors_that_can_be_trained_on() -> None:
    """Not those of inference mode, in which they were made."""
    found = optimise(PREDICT, *problem(), Preparation(steps=2, segments=1))
    for value in (found.theta, found.loss, found.accuracy, found.finite):
        assert not value.is_inference()
    weight = torch.ones(SPACE.size, dtype=torch.float64, requires_grad=True)
    (found.theta * weight).sum().backward()


def test_theta_0_is_left_alone() -> None:
    theta_0, inputs, labels = problem()
    before = theta_0.clone()
    optimise(PREDICT, theta_0, inputs, labels, Preparation(steps=3, segments=1))
    assert torch.equal(theta_0, before)


@pytest.mark.parametrize(("steps", "segments"), [(10, 3), (2, 3), (10, 0), (10, -2), (0, 2)])
def test_segments_must_divide_the_steps(steps: int, segments: int) -> None:
    with pytest.raises(InputError, match=rf"M = {steps} .* k = {segments} equal segments"):
        Preparation(steps=steps, segments=segments)
