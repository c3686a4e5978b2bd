"""`ltdi.anchor`: each anchor is the closed-form head that it claims to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ltdi.anchor import (
    Anchor,
    GaussianAnchor,
    PrototypeAnchor,
    SharedAnchor,
    fit_anchor,
    make_empty_anchor,
    masked_mean,
    shrinkage,
)
from ltdi.errors import InputError
from ltdi.tasks import FeatureBank
from ltdi.weights import head_logits, head_space, prototype_head

D = 4


def covariance(seed: int, stretch: float = 1.0, size: int = D) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=rng, dtype=torch.double)
    q, _ = torch.linalg.qr(a)
    return q @ torch.diag(torch.logspace(-stretch, stretch, size).double()) @ q.T


def gaussian_bank(
    within: Tensor, between: Tensor, *, classes: int, images: tuple[int, ...], seed: int = 0
) -> FeatureBank:
    """Classes from N(1, between), samples from N(mean, within); counts repeat `images`."""
    rng = torch.Generator().manual_seed(seed)
    size = len(within)
    counts = torch.tensor([images[c % len(images)] for c in range(classes)])

    def normal(n: int, cov: Tensor) -> Tensor:
        white = torch.randn(n, size, generator=rng, dtype=torch.double)
        return white @ torch.linalg.cholesky(cov).T

    means = (1 + normal(classes, between)).repeat_interleave(counts, 0)
    x = (means + normal(int(counts.sum()), within)).float()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return FeatureBank(x, offsets, tuple(map(str, range(classes))))


def random_support(
    seed: int, *, tasks: int = 3, way: int = 4, shot: int = 3, size: int = D
) -> tuple[Tensor, Tensor]:
    """Support [B, way, shot, D] with 1..shot real samples per class, and its mask."""
    rng = torch.Generator().manual_seed(seed)
    support = torch.randn(tasks, way, shot, size, generator=rng)
    counts = torch.randint(1, shot + 1, (tasks, way, 1), generator=rng)
    return support, (torch.arange(shot) < counts).float()


def accuracy(theta: Tensor, query: Tensor, way: int) -> float:
    """Share of query [B, way, Q, D] that heads [B, n] classify correctly."""
    head = head_space(query.shape[-1], way).unflatten(theta)
    logits = torch.einsum("bwqd,bvd->bwqv", query, head["weight"]) + head["bias"][:, None, None]
    return float((logits.argmax(-1) == torch.arange(way)[:, None]).float().mean())


def implied(anchor: GaussianAnchor) -> tuple[Tensor, Tensor]:
    """(within, between) that a basis with V^T within V = 1, V^T between V = diag(b) stands for."""
    inverse = torch.linalg.inv(anchor.basis.double())
    return inverse.T @ inverse, inverse.T @ torch.diag(anchor.between.double()) @ inverse


def test_masked_mean_is_the_mean_of_the_real_samples() -> None:
    support, mask = random_support(0)
    support[mask == 0] = float("nan")
    out = masked_mean(support, mask)
    for b in range(3):
        for c in range(4):
            real = support[b, c, : int(mask[b, c].sum())]
            torch.testing.assert_close(out[b, c], real.mean(0))


def test_no_anchor_is_zero() -> None:
    support, mask = random_support(0)
    theta = Anchor()(support, mask, head_space(D, 4))
    assert theta.shape == (3, head_space(D, 4).size) and not theta.any()


def test_a_shared_anchor_is_the_same_for_every_task_of_its_way() -> None:
    theta_0 = torch.randn(head_space(D, 4).size)
    anchor = SharedAnchor(theta_0)
    support, mask = random_support(0)
    assert torch.equal(anchor(support, mask, head_space(D, 4)), theta_0.expand(3, -1))
    with pytest.raises(InputError, match="shared initialisation"):
        anchor(support, mask, head_space(D, 5))


def test_the_prototype_anchor_is_the_prototype_head() -> None:
    support, mask = random_support(1)
    space = head_space(D, 4)
    theta = PrototypeAnchor(0.7)(support, mask, space)
    assert torch.equal(theta, space.flatten(prototype_head(masked_mean(support, mask), 0.7)))
    # Its decisions are those of the nearest mean.
    query = torch.randn(3, 50, D)
    head = space.unflatten(theta)
    logits = query @ head["weight"].mT + head["bias"].unsqueeze(1)
    nearest = torch.cdist(query, masked_mean(support, mask)).argmin(-1)
    assert torch.equal(logits.argmax(-1), nearest)


@given(st.integers(0, 1000))
def test_the_gaussian_anchor_is_the_bayes_posterior(seed: int) -> None:
    """Dense algebra: the posterior mean of every class mean, then Gaussian densities at queries.

    m | x ~ N(mu + B (B + W/s)^-1 (xbar - mu), .), log p(q | c) = -|q - m_c|_W^2 / 2 + const, mu the
    mean of the classes that the task is of.
    """
    bank = gaussian_bank(
        covariance(seed), 2 * covariance(seed + 1), classes=30, images=(9, 12), seed=seed
    )
    anchor = GaussianAnchor(D).fit(bank, ridge=0.1)
    within, between = implied(anchor)
    support, mask = random_support(seed)
    space = head_space(D, 4)
    head = space.unflatten(anchor(support, mask, space).double())
    query = torch.randn(20, D, generator=torch.Generator().manual_seed(seed)).double()
    precision, frame = torch.linalg.inv(within), anchor.frame(D)
    away = anchor.task_mean(frame.enter(support), mask, frame) @ torch.linalg.inv(frame.basis)
    for b in range(3):
        mu = (anchor.mean + away[b]).double()
        density = torch.zeros(20, 4, dtype=torch.double)
        for c in range(4):
            shot = int(mask[b, c].sum())
            xbar = support[b, c, :shot].double().mean(0)
            gain = between @ torch.linalg.inv(between + within / shot)
            rest = query - (mu + gain @ (xbar - mu))
            density[:, c] = -0.5 * torch.einsum("qi,ij,qj->q", rest, precision, rest)
        logits = query @ head["weight"][b].T + head["bias"][b]
        torch.testing.assert_close(
            logits.log_softmax(-1), density.log_softmax(-1), rtol=1e-3, atol=2e-3
        )


def test_tasks_of_training_classes_stay_where_they_are_and_far_ones_are_seen_from_their_mean():
    bank = gaussian_bank(covariance(1), covariance(2), classes=400, images=(20,))
    anchor, space = GaussianAnchor(D).fit(bank, ridge=0.0), head_space(D, 5)
    drawn = bank.episodes(way=5, shot=2, query=3, episodes=200, seed=0)
    support, mask = bank.features[drawn.support], torch.ones(200, 5, 2)
    query, frame = bank.features[drawn.query].flatten(1, 2), anchor.frame(D)

    def moved(by: float) -> tuple[Tensor, Tensor]:
        z = frame.enter(support + by)
        return anchor.task_mean(z, mask, frame), z.mean((1, 2))

    own, mean = moved(0.0)
    # The task's mean is mostly chance, and most of chance is shrunk away.
    assert float(own.square().sum()) < 0.35 * float(mean.square().sum())
    own, mean = moved(1e4)
    torch.testing.assert_close(own, mean, rtol=1e-4, atol=0.1)
    # Wherever a task lies, its answers are the same.
    near, far = (
        head_logits(anchor(support + by, mask, space), query + by) for by in (100.0, 300.0)
    )
    torch.testing.assert_close(near.softmax(-1), far.softmax(-1), rtol=0, atol=0.02)


def test_the_fitted_within_covariance_is_the_pooled_one_plus_the_ridge() -> None:
    bank = gaussian_bank(covariance(3), covariance(4), classes=12, images=(5, 9))
    parts = [bank.features[a:b].double() for a, b in bank.offsets.unfold(0, 2, 1).tolist()]
    scatter = sum((x - x.mean(0)).T @ (x - x.mean(0)) for x in parts)
    pooled = scatter / (len(bank.features) - len(parts))
    within, _ = implied(GaussianAnchor(D).fit(bank, ridge=0.2))
    wanted = pooled + 0.2 * pooled.diagonal().mean() * torch.eye(D)
    torch.testing.assert_close(within, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", [(20,), (2, 2, 40)])
def test_the_planted_covariances_are_found(images: tuple[int, ...]) -> None:
    """With few samples in most classes too: their means' own noise must not count as between."""
    within, between = covariance(5), 0.2 * covariance(6, 0.3)
    bank = gaussian_bank(within, between, classes=6000, images=images)
    anchor = GaussianAnchor(D).fit(bank, ridge=0.0)
    found_within, found_between = implied(anchor)
    assert float((found_within - within).norm() / within.norm()) < 0.05
    assert float((found_between - between).norm() / between.norm()) < 0.2
    torch.testing.assert_close(anchor.mean, torch.ones(D), rtol=0, atol=0.1)


def test_a_class_mean_is_shrunk_less_the_more_samples_there_are() -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=100, images=(20,))
    anchor = GaussianAnchor(D).fit(bank, ridge=0.1)
    space = head_space(D, 2)
    point = torch.stack([torch.full((D,), 3.0), torch.full((D,), -1.0)])[None, :, None]
    sizes = []
    for shot in (1, 5, 1000):
        support = point.expand(1, 2, shot, D)
        weight = space.unflatten(anchor(support, torch.ones(1, 2, shot), space))["weight"]
        sizes.append((weight[0, 0] @ torch.linalg.inv(anchor.basis.T)).abs())
    assert bool((sizes[0] < sizes[1]).all() and (sizes[1] < sizes[2]).all())
    # In the limit nothing is shrunk: the LDA head of the means themselves.
    z = (point[0, :, 0] - anchor.mean) @ anchor.basis
    wanted = 2 * anchor.scale * (z - z.mean(0))[0].abs()
    torch.testing.assert_close(sizes[2], wanted, rtol=0.02, atol=0)


def test_it_beats_prototypes_where_classes_are_not_round() -> None:
    size = 8
    within, between = covariance(7, 1.0, size), torch.eye(size, dtype=torch.double)
    train = gaussian_bank(within, between, classes=200, images=(20,), seed=1)
    valid = gaussian_bank(within, between, classes=60, images=(20,), seed=2)
    test = gaussian_bank(within, between, classes=60, images=(20,), seed=3)
    episodes = test.episodes(way=5, shot=1, query=10, episodes=200, seed=0)
    support, query = test.features[episodes.support], test.features[episodes.query]
    scores = {}
    for name in ("prototype", "gaussian"):
        anchor = fit_anchor(name, train, valid, way=5, shots=(1,), seed=0)
        theta = anchor(support, torch.ones(support.shape[:3]), head_space(size, 5))
        scores[name] = accuracy(theta, query, 5)
    assert scores["gaussian"] > scores["prototype"] + 0.05 > 0.25


@pytest.mark.parametrize("name", ["prototype", "gaussian"])
def test_relabelling_permutes_rows_and_changes_nothing_else(name: str) -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    anchor = fit_anchor(name, bank, bank, way=4, shots=(1, 2), seed=0)
    support, mask = random_support(2)
    space = head_space(D, 4)
    order = torch.tensor([2, 0, 3, 1])
    plain = space.unflatten(anchor(support, mask, space))
    moved = space.unflatten(anchor(support[:, order], mask[:, order], space))
    for key in plain:
        torch.testing.assert_close(moved[key], plain[key][:, order])
    # Nor does the order of a class's samples.
    flipped = anchor(support.flip(2), mask.flip(2), space)
    torch.testing.assert_close(flipped, anchor(support, mask, space))


def nll(anchor: Anchor, bank: FeatureBank, shots: tuple[int, ...], seed: int) -> float:
    """Validation NLL of an anchor, one episode after the other."""
    losses = []
    for shot in shots:
        e = bank.episodes(way=4, shot=shot, query=15, episodes=200, seed=seed)
        support = bank.features[e.support]
        theta = anchor(support, torch.ones(support.shape[:3]), head_space(D, 4))
        for head, items in zip(theta, e.query, strict=True):
            named = head_space(D, 4).unflatten(head)
            x = bank.features[items].flatten(0, 1)
            logits = F.linear(x, named["weight"], named["bias"])
            losses.append(F.cross_entropy(logits, torch.arange(4).repeat_interleave(15)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("name", ["prototype", "gaussian"])
def test_calibration_finds_the_scale_of_lowest_validation_nll(name: str) -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    anchor = fit_anchor(name, bank, bank, way=4, shots=(1, 5), seed=3)
    best = nll(anchor, bank, (1, 5), 3)
    scale = float(anchor.state_dict()["scale"])
    for factor in (0.1, 0.7, 1.4, 10.0):
        anchor.load_state_dict({**anchor.state_dict(), "scale": torch.tensor(scale * factor)})
        assert nll(anchor, bank, (1, 5), 3) > best


def test_the_ridge_is_chosen_on_the_validation_classes() -> None:
    """With a handful of training images the best ridge is not the smallest one."""
    within, between = covariance(5, 0.2, 12), torch.eye(12, dtype=torch.double)
    train = gaussian_bank(within, between, classes=7, images=(3,), seed=1)
    valid = gaussian_bank(within, between, classes=60, images=(20,), seed=2)

    def fit(*ridges: float) -> Anchor:
        return fit_anchor("gaussian", train, valid, way=5, shots=(1,), seed=0, ridges=ridges)

    chosen, small, large = fit(1e-3, 3.0), fit(1e-3), fit(3.0)
    assert torch.equal(chosen.state_dict()["basis"], large.state_dict()["basis"])
    assert not torch.equal(chosen.state_dict()["basis"], small.state_dict()["basis"])


# ---- frames -------------------------------------------------------------------------------------


def test_a_task_of_one_class_lies_where_its_class_does() -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    anchor, (support, mask) = GaussianAnchor(D).fit(bank, ridge=0.1), random_support(2, way=1)
    frame = anchor.frame(D)
    z = frame.enter(support)
    own = masked_mean(z, mask).squeeze(1)
    torch.testing.assert_close(anchor.task_mean(z, mask, frame), own)


@pytest.mark.parametrize("name", ["none", "prototype", "gaussian", "shared"])
def test_an_anchor_is_its_head_in_its_frame_seen_from_outside(name: str) -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    support, mask = random_support(2)
    space = head_space(D, 4)
    anchor: Anchor = SharedAnchor(torch.arange(float(space.size)))
    if name != "shared":
        anchor = fit_anchor(name, bank, bank, way=4, shots=(1,), seed=0)
    frame = anchor.frame(D)
    z = frame.enter(support)
    origin = anchor.task_mean(z, mask, frame)
    inside = anchor.local(z - origin[:, None, None], mask, space)
    torch.testing.assert_close(frame.leave(inside, origin), anchor(support, mask, space))


@given(st.integers(0, 1000))
def test_in_its_frame_classes_are_round_and_differ_along_the_axes(seed: int) -> None:
    """Spread within classes is the identity, that of class means is diag(between) plus noise."""
    shot = 9
    bank = gaussian_bank(
        covariance(seed), 3 * covariance(seed + 1, 0.3), classes=60, images=(shot,), seed=seed
    )
    frame = GaussianAnchor(D).fit(bank, ridge=0.0).frame(D)
    z = frame.enter(bank.features).unflatten(0, (60, shot))
    rest = (z - z.mean(1, keepdim=True)).flatten(0, 1)
    one = torch.eye(D)
    torch.testing.assert_close(rest.T @ rest / (60 * (shot - 1)), one, rtol=0, atol=2e-3)
    means = z.mean(1)
    spread = (means - means.mean(0)).T @ (means - means.mean(0)) / 59
    torch.testing.assert_close(means.mean(0), torch.zeros(D), rtol=0, atol=2e-3)
    off = spread - torch.diag(spread.diagonal())
    assert off.abs().max() < 2e-3 * spread.max()
    seen = frame.between > 0  # a variance that noise makes negative counts as none
    wanted = (frame.between + 1 / shot)[seen]
    torch.testing.assert_close(spread.diagonal()[seen], wanted, rtol=1e-3, atol=2e-3)


def flat_bank() -> FeatureBank:
    """Round classes that differ along the first axis alone."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(30, 20, D, generator=rng)
    noise = (noise - noise.mean(1, keepdim=True)).flatten(0, 1)
    noise = 25 * torch.linalg.qr(noise).Q.unflatten(0, (30, 20))
    means = 2 * torch.randn(30, 1, 1, generator=rng) * torch.eye(D)[0]
    names = tuple(map(str, range(30)))
    return FeatureBank((means + noise).flatten(0, 1), torch.arange(31) * 20, names)


@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0])
def test_spread_gives_weight_to_directions_without_a_training_class(spread: float) -> None:
    anchor = GaussianAnchor(D).fit(flat_bank(), ridge=0.1, spread=spread)
    space = head_space(D, 2)
    # Two classes that differ along the last axis alone.
    support = torch.stack([torch.eye(D)[-1], -torch.eye(D)[-1]])[None, :, None]
    weight = space.unflatten(anchor(support, torch.ones(1, 2, 1), space))["weight"][0]
    found = (weight[0] - weight[1])[-1]
    assert found > 0.01 if spread else found.abs() < 1e-4
    assert (anchor.between > 0).sum() == (D if spread else 1)


@given(st.floats(0, 100), st.integers(1, 50))
def test_shrinkage_is_the_share_of_a_means_variance_that_is_the_classes(b: float, n: int) -> None:
    between, count = torch.tensor([b, 0.0]).double(), torch.tensor([n, 2 * n]).double()
    out = shrinkage(between, count)
    assert out.shape == (2, 2)
    torch.testing.assert_close(out[0, 0], torch.tensor(b / (b + 1 / n)).double())
    assert out[1, 0] >= out[0, 0] and not out[:, 1].any()


def test_an_anchor_refitted_on_its_own_classes_is_itself() -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    other = gaussian_bank(covariance(7), covariance(8), classes=40, images=(20,))
    for name in ("none", "prototype", "gaussian"):
        anchor = fit_anchor(name, bank, bank, way=4, shots=(1,), seed=0)
        before = {k: v.clone() for k, v in anchor.state_dict().items()}
        for key, value in anchor.refit(bank).state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=1e-4, atol=1e-5)
        moved = anchor.refit(other).state_dict()
        changed = {k for k in before if not torch.equal(moved[k], before[k])}
        # Choices made on validation classes are kept.
        assert {"mean", "basis", "between"} <= changed if name == "gaussian" else not changed
        assert not changed & {"ridges", "refined"}
        assert all(torch.equal(v, before[k]) for k, v in anchor.state_dict().items())


def test_fitting_is_deterministic() -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    first, second = (
        fit_anchor("gaussian", bank, bank, way=5, shots=(1,), seed=0).state_dict() for _ in "ab"
    )
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_too_few_validation_samples_are_named() -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=10, images=(5,))
    with pytest.raises(InputError, match="with 5 shots none is left"):
        fit_anchor("prototype", bank, bank, way=5, shots=(1, 5), seed=0)


@pytest.mark.parametrize("name", ["none", "prototype", "gaussian"])
def test_a_state_dict_rebuilds_an_anchor(name: str) -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=40, images=(20,))
    fitted = fit_anchor(name, bank, bank, way=4, shots=(1,), seed=0)
    again = make_empty_anchor(fitted.name, D)
    again.load_state_dict(fitted.state_dict())
    support, mask = random_support(2)
    space = head_space(D, 4)
    assert fitted.name == name
    assert torch.equal(again(support, mask, space), fitted(support, mask, space))


def test_an_unknown_name_suggests_the_nearest() -> None:
    bank = gaussian_bank(covariance(5), covariance(6), classes=10, images=(20,))
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        fit_anchor("gausian", bank, bank, way=5, shots=(1,), seed=0)
    with pytest.raises(InputError, match="did you mean 'prototype'"):
        make_empty_anchor("prototypes", D)
