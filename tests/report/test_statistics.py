"""Intervals, paired tests and Holm's correction against SciPy and independent definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from normbench.report.statistics import holm, paired, sample

VALUES = [
    [0.91, 0.93],
    [0.912, 0.934, 0.921],
    [0.5, 0.52, 0.47, 0.61, 0.55],
    list(np.random.default_rng(3).normal(0.9, 0.02, 25)),
]


@pytest.mark.parametrize("values", VALUES)
def test_interval_matches_scipy(values: list[float]) -> None:
    result = sample(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert result.n == len(values)
    assert result.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert result.sd == pytest.approx(stats.tstd(values), rel=1e-12)
    assert (result.low, result.high) == pytest.approx((low, high), rel=1e-12)
    assert result.half_width == pytest.approx((high - low) / 2, rel=1e-9)


def test_one_value_has_no_interval_and_no_values_have_no_mean() -> None:
    assert sample([0.9]).mean == 0.9
    assert math.isnan(sample([0.9]).low)
    assert math.isnan(sample([0.9]).sd)
    assert sample([]).n == 0
    assert math.isnan(sample([]).mean)


@pytest.mark.parametrize("n", [3, 4, 10])
def test_paired_difference_matches_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.92, 0.02, n), rng.normal(0.9, 0.02, n)
    result = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    known = stats.ttest_rel(ours, theirs)
    assert result.p == pytest.approx(known.pvalue, rel=1e-10)
    low, high = known.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high), rel=1e-10)
    difference = ours - theirs
    exact = special.gamma((n - 1) / 2) / (math.sqrt((n - 1) / 2) * special.gamma((n - 2) / 2))
    cohen = difference.mean() / difference.std(ddof=1)
    assert result.effect == pytest.approx(exact * cohen, rel=1e-10)


def test_only_shared_seeds_are_compared_in_pairs() -> None:
    result = paired({0: 0.9, 1: 0.8, 2: 0.7, 7: 0.1}, {2: 0.6, 1: 0.75, 0: 0.88, 9: 0.0})
    assert result.n == 3
    assert result.mean == pytest.approx((0.02 + 0.05 + 0.1) / 3)
    assert result.tested


def test_untestable_difference_has_no_p_value() -> None:
    assert not paired({0: 0.9}, {0: 0.8}).tested
    assert paired({0: 0.9}, {0: 0.8}).mean == pytest.approx(0.1)
    assert paired({0: 0.9}, {1: 0.8}).n == 0
    # Differences that are equal except for rounding would give p = 0 from three seeds.
    same = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6})
    assert not same.tested
    assert not same.significant
    two = paired({0: 0.9, 1: 0.82}, {0: 0.8, 1: 0.7})
    assert two.tested
    assert math.isnan(two.effect)


def closed_testing(p_values: list[float]) -> list[float]:
    """Holm by its definition: closed testing with Bonferroni over every intersection."""
    places = range(len(p_values))
    subsets = [
        subset
        for size in range(1, len(p_values) + 1)
        for subset in itertools.combinations(places, size)
    ]
    return [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s)
        for i in places
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm_equals_closed_testing(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(closed_testing(p_values), abs=1e-15)


def test_holm_ignores_untested_comparisons() -> None:
    corrected = holm([math.nan, 0.01, math.nan, 0.03])
    assert corrected[1::2] == pytest.approx([0.02, 0.03])
    assert all(math.isnan(p) for p in corrected[::2])
