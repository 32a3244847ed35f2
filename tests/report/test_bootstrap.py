"""Probability of improvement and profiles against naive loops and SciPy's Mann-Whitney U."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from normbench.report.statistics import performance_profile, probability_of_improvement


@pytest.fixture
def tasks() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(11)
    first = [np.round(rng.normal(0.92, 0.02, n), 2) for n in (3, 5, 4)]
    second = [np.round(rng.normal(0.91, 0.02, n), 2) for n in (4, 3, 5)]
    return first, second


def test_probability_is_the_mean_of_mann_whitney_u(
    tasks: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    estimate = probability_of_improvement(*tasks)
    known = [
        stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(*tasks, strict=True)
    ]
    assert estimate.probability == pytest.approx(np.mean(known))
    assert estimate.tasks == 3


def test_interval_matches_naive_resampling_of_runs(
    tasks: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    estimate = probability_of_improvement(*tasks, repetitions=4000)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        task_means = []
        for x, y in zip(*tasks, strict=True):
            a, b = rng.choice(x, len(x)), rng.choice(y, len(y))
            task_means.append(np.mean([(i > j) + 0.5 * (i == j) for i in a for j in b]))
        drawn.append(np.mean(task_means))
    assert (estimate.low, estimate.high) == pytest.approx(
        np.percentile(drawn, [2.5, 97.5]), abs=0.03
    )


def test_ties_count_half_and_both_directions_sum_to_one() -> None:
    same = [np.array([0.9, 0.9])]
    assert probability_of_improvement(same, same).probability == 0.5
    x, y = [np.array([1.0, 3.0])], [np.array([2.0, 2.0, 3.0])]
    forward = probability_of_improvement(x, y).probability
    assert forward + probability_of_improvement(y, x).probability == pytest.approx(1.0)


def test_task_with_one_run_has_no_interval() -> None:
    estimate = probability_of_improvement([np.array([0.9]), np.array([0.9, 0.8])], [np.ones(2)] * 2)
    assert estimate.probability == 0.0
    assert math.isnan(estimate.low)


def test_interval_is_deterministic(
    tasks: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    assert probability_of_improvement(*tasks) == probability_of_improvement(*tasks)


def test_tasks_must_match() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement([np.ones(2)], [np.ones(2)] * 2)


def test_profile_is_the_share_of_runs_above_each_threshold(
    tasks: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    scores = tasks[0]
    thresholds = np.linspace(0.85, 1.0, 31)
    profile = performance_profile(scores, thresholds)
    naive = [np.mean([np.mean([v > t for v in task]) for task in scores]) for t in thresholds]
    assert profile.share == pytest.approx(naive)
    assert (np.diff(profile.share) <= 0).all()
    assert (profile.low <= profile.share + 1e-12).all()
    assert (profile.high >= profile.share - 1e-12).all()
