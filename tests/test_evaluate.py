"""`ltdi.evaluate`: scores agree with numpy, scipy and torch, and intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from ltdi.errors import InputError
from ltdi.evaluate import (
    accuracy,
    across,
    calibration_error,
    class_ci95,
    latency_ms,
    negative_log_likelihood,
    on_bank,
    paired,
    score,
    summarise,
)
from ltdi.tasks import FeatureBank


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_summarise_is_the_mean_and_the_normal_interval():
    values = normal(137).double() * 0.1 + 0.8
    s = summarise(values)
    assert s.mean == pytest.approx(np.mean(values.numpy()), abs=1e-12)
    low, high = stats.norm.interval(0.95, loc=s.mean, scale=stats.sem(values.numpy()))
    assert s.ci95 == pytest.approx((high - low) / 2, rel=1e-4)
    assert s.episodes == 137


def test_one_episode_has_no_interval():
    assert summarise(torch.tensor([0.5])).ci95 == 0


def test_float32_sums_do_not_lose_digits():
    assert summarise(torch.full((1_000_000,), 0.1)).mean == pytest.approx(0.1, abs=1e-8)


def test_the_interval_covers_the_truth_in_95_of_100():
    draws = normal(2000, 200, seed=1)
    covered = [abs(s.mean) <= s.ci95 for s in map(summarise, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.016)  # three standard errors


def test_a_paired_interval_is_that_of_the_differences():
    shared, a, b = normal(400, seed=2), 0.1 * normal(400, seed=3), 0.1 * normal(400, seed=4)
    ours, theirs = shared + a + 0.02, shared + b
    d = paired(ours, theirs)
    sem = stats.sem((ours - theirs).double().numpy())
    assert (d.mean, d.ci95) == pytest.approx(
        (float((ours - theirs).double().mean()), 1.96 * sem), rel=1e-6
    )
    # What the episodes share cancels: far narrower than the methods' own intervals.
    assert d.ci95 < 0.3 * summarise(ours).ci95


def test_a_pairing_of_other_episodes_is_refused():
    with pytest.raises(InputError, match="got 3 and 4"):
        paired(torch.zeros(3), torch.zeros(4))


def test_an_interval_over_classes_covers_what_other_classes_would_have_given():
    rng = torch.Generator().manual_seed(5)
    covered, naive = [], []
    for _ in range(400):
        # Each class has an effect of its own; no number of episodes averages it out.
        classes = torch.rand(600, 20, generator=rng).argsort(1)[:, :5]
        effect = 0.01 * torch.randn(20, generator=rng)
        values = 0.01 + effect[classes].sum(1) + 0.05 * torch.randn(600, generator=rng)
        off = abs(float(values.mean()) - 0.01)
        covered.append(off <= class_ci95(values, classes))
        naive.append(off <= summarise(values).ci95)
    assert np.mean(covered) == pytest.approx(0.93, abs=0.04)  # v is an estimate from 20 classes
    assert np.mean(naive) < 0.6


def test_classes_without_an_effect_leave_the_interval_of_the_episodes():
    rng = torch.Generator().manual_seed(6)
    ratios = []
    for _ in range(50):
        values = torch.randn(1000, generator=rng)
        classes = torch.rand(1000, 50, generator=rng).argsort(1)[:, :5]
        ratios.append(class_ci95(values, classes) / summarise(values).ci95)
    assert np.median(ratios) < 1.3
    # Where all episodes have the same classes, nothing tells what others would do.
    same = torch.arange(5).expand(1000, 5)
    assert class_ci95(values, same) is None
    assert class_ci95(torch.ones(1), same[:1]) is None


def test_accuracy_counts_the_label_on_the_first_way_axis():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0, 0, 0] = logits[0, 0, 1, 1] = logits[0, 1, 0, 1] = logits[0, 1, 1, 1] = 1
    assert accuracy(logits).tolist() == [0.75]  # query 1 of class 0 was taken for class 1


def test_nll_is_torchs_cross_entropy():
    logits = 3 * normal(6, 4, 5, 4)
    labels = torch.arange(4).repeat_interleave(5)
    expected = [F.cross_entropy(x.flatten(0, 1), labels) for x in logits]
    torch.testing.assert_close(negative_log_likelihood(logits), torch.stack(expected))


def test_calibration_error_of_a_case_by_hand():
    # Two bins of two: at confidence 0.9 one of two is right, at 0.6 both are.
    sure, unsure = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.6, 0.4]).log()
    logits = torch.stack(
        [torch.stack([sure, unsure]), torch.stack([sure, unsure.flip(0)])]
    ).unsqueeze(0)
    # Label 0: both guessed 0, right. Label 1: the sure one guessed 0, wrong; the other right.
    by_hand = 0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0)
    assert calibration_error(logits, bins=15) == pytest.approx(by_hand, abs=1e-6)
    # In one bin over- and underconfidence cancel.
    assert calibration_error(logits, bins=1) == pytest.approx(abs(0.75 - 0.75), abs=1e-6)


def test_a_calibrated_classifier_has_no_error_and_an_overconfident_one_has():
    rng = torch.Generator().manual_seed(5)
    logits = 1.5 * normal(4000, 3, seed=6)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=rng).squeeze(1)
    size = int(torch.bincount(labels).min())
    kept = torch.stack([logits[labels == c][:size] for c in range(3)]).unsqueeze(0)
    assert calibration_error(kept) < 0.03
    assert calibration_error(4 * kept) > 0.1


@pytest.fixture
def bank() -> FeatureBank:
    return FeatureBank(normal(60, 4), torch.arange(7) * 10, tuple("abcdef"))


def test_score_does_not_depend_on_the_chunk(bank: FeatureBank):
    tasks = bank.episodes(way=3, shot=2, query=3, episodes=11, seed=0)

    def nearest(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        means = support.mean(2)
        return -torch.cdist(query.flatten(1, 2), means).unflatten(1, query.shape[1:3])

    whole, parts = score(nearest, bank, tasks), score(nearest, bank, tasks, chunk=4)
    assert torch.equal(whole.accuracy, parts.accuracy) and len(whole.accuracy) == 11
    torch.testing.assert_close(whole.nll, parts.nll)
    assert whole.ece == pytest.approx(parts.ece) and whole.seconds > 0


def test_latency_is_that_of_one_task(bank: FeatureBank):
    tasks = bank.episodes(way=3, shot=1, query=2, episodes=9, seed=0)
    seen = []

    def predict(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        seen.append(len(support))
        return torch.zeros(*query.shape[:3], 3)

    assert 0 < latency_ms(on_bank(predict, bank), tasks) < 1000
    assert seen == [1] * 9


def test_the_mean_over_sets_has_the_interval_of_independent_ones():
    mean, half = across([(0.2, 0.03), (0.6, 0.04)])
    assert mean == pytest.approx(0.4) and half == pytest.approx(0.025)
