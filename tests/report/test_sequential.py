"""The sequential rule by simulation: false claims, coverage, and where a sweep ends.

A simulated sweep has runs of a baseline and of other norms, paired by seed, and is evaluated like
a sweep with ``--until``. Intervals and p-values are those of ``paired``, computed here for many
sweeps at once; ``test_simulation_matches_paired`` compares the two.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special

from normbench.report.power import needed_for_width
from normbench.report.sequential import GROWTH, schedule
from normbench.report.statistics import holm, paired

SWEEPS = 2000
LOOKS = schedule(3, 20)

LEVEL = 0.05

# Three standard errors of a share of 5 % over 2,000 sweeps. Only the rows of different shape need
# it; elsewhere the union bound is conservative enough, and the seeds of the draws are fixed.
ALLOWANCE = 3 * math.sqrt(LEVEL * (1 - LEVEL) / SWEEPS)


def looks_at(differences: np.ndarray, looks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return p-values and half widths at each look.

    Args:
        differences: Array of shape (sweeps, comparisons, seeds).
        looks: Numbers of seeds.

    Returns:
        Two arrays of shape (looks, sweeps, comparisons).
    """
    p, half = [], []
    for n in looks:
        seen = differences[..., :n]
        sd = seen.std(axis=-1, ddof=1)
        error = sd / math.sqrt(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(seen.mean(axis=-1)) / error
        # Without any spread there is no test.
        found = np.where(sd > 1e-12, 2 * special.stdtr(n - 1, -t), np.nan)
        p.append(np.minimum(1.0, len(looks) * found))
        half.append(special.stdtrit(n - 1, 1 - LEVEL / len(looks) / 2) * error)
    return np.array(p), np.array(half)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0.93, 0.004, shape)


def discrete(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Accuracies on 360 images near 100 %: whole images, with a tail towards lower values."""
    wrong = rng.poisson(2.0 + rng.gamma(0.7, 3.0, shape))
    return 1.0 - np.minimum(wrong, 360) / 360


def skewed_against_even(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The same mean everywhere, but the baseline (index 0) skewed and the others symmetric."""
    values = rng.normal(0.97, 0.004, shape)
    values[:, 0] = 0.97 + 0.004 * (1.5 - rng.gamma(1.5, 1.0, (shape[0], shape[2])))
    return values


def simulate(draw, norms: int, looks: tuple[int, ...] = LOOKS, seed: int = 22):
    rng = np.random.default_rng(seed)
    values = draw(rng, (SWEEPS, norms + 1, looks[-1]))
    return looks_at(values[:, 1:] - values[:, :1], looks)


def test_simulation_matches_paired() -> None:
    rng = np.random.default_rng(3)
    values = normal(rng, (4, 3, LOOKS[-1]))
    p, half = looks_at(values[:, 1:] - values[:, :1], LOOKS)
    for look, n in enumerate(LOOKS):
        for sweep in range(4):
            base = dict(enumerate(values[sweep, 0, :n]))
            for norm in (1, 2):
                found = paired(dict(enumerate(values[sweep, norm, :n])), base, len(LOOKS))
                assert found.p == pytest.approx(p[look, sweep, norm - 1])
                assert found.half_width == pytest.approx(half[look, sweep, norm - 1])
                assert found.looks == len(LOOKS)


def false_claims(p: np.ndarray) -> float:
    """Return the share of sweeps in which any comparison is significant at any look.

    Args:
        p: P-values of shape (looks, sweeps, comparisons). Holm's correction rejects anything
            exactly if it rejects the least of them.
    """
    tested = (~np.isnan(p)).sum(axis=-1)
    least = np.nanmin(np.where(np.isnan(p), 1.0, p), axis=-1)
    for values in p[-1, :50]:
        rejected = any(corrected < LEVEL for corrected in holm(list(values)))
        assert rejected == (np.nanmin(np.append(values, 1.0)) * (~np.isnan(values)).sum() < LEVEL)
    return float(((least * tested) < LEVEL).any(axis=0).mean())


@pytest.mark.parametrize("norms", [1, 4])
@pytest.mark.parametrize("draw", [normal, discrete])
def test_at_most_5_percent_of_sweeps_ever_claim_a_false_difference(draw, norms: int) -> None:
    """No stopping rule, honest or not, does worse: the last claim of a sweep is one of these."""
    p, _ = simulate(draw, norms)
    assert false_claims(p) <= LEVEL


@pytest.mark.parametrize("norms", [1, 4])
def test_rows_of_different_shape_stay_within_the_allowance(norms: int) -> None:
    """A t test of a skewed difference is not exact with 3 seeds, with one look or with six."""
    p, _ = simulate(skewed_against_even, norms)
    assert false_claims(p) <= LEVEL + ALLOWANCE


def test_looks_without_the_rule_claim_far_more() -> None:
    p, _ = simulate(normal, 1)
    assert (p.min(axis=0) / len(LOOKS) < LEVEL).mean() > 0.15


@pytest.mark.parametrize("draw", [normal, discrete, skewed_against_even])
def test_intervals_of_all_looks_jointly_cover_the_difference(draw) -> None:
    rng = np.random.default_rng(4)
    values = draw(rng, (SWEEPS, 2, LOOKS[-1]))
    differences = values[:, 1:] - values[:, :1]
    _, half = looks_at(differences, LOOKS)
    means = np.array([differences[..., :n].mean(axis=-1) for n in LOOKS])
    spread = half > 0  # an interval of a single value makes no claim, as the report says
    covered = ((np.abs(means) <= half) | ~spread).all(axis=0)
    assert covered.mean() >= 1 - LEVEL


@pytest.mark.parametrize("width", [0.7, 1.0, 1.5])
def test_sweep_ends_near_the_seeds_that_power_expects(width: float) -> None:
    looks = schedule(3, 60)
    differences = np.random.default_rng(5).normal(0.0, 1.0, (SWEEPS, 1, looks[-1]))
    _, half = looks_at(differences, looks)
    narrow = half[..., 0] <= width
    assert narrow.any(axis=0).all()
    ends = np.array(looks)[narrow.argmax(axis=0)]
    expected = needed_for_width(width, len(looks))
    # The sweep ends at a look, up to GROWTH times the number that would do.
    assert expected / GROWTH <= np.median(ends) <= expected * GROWTH
    assert expected * 0.85 <= ends.mean() <= expected * GROWTH


@pytest.mark.parametrize("first", [2, 3, 5, 10])
@pytest.mark.parametrize("most", [10, 11, 20, 77])
def test_schedule_goes_from_first_to_most(first: int, most: int) -> None:
    looks = schedule(first, most)
    assert looks[0] == first
    assert looks[-1] == most
    for before, after in itertools.pairwise(looks):
        assert before < after <= GROWTH * before + 1


def test_schedules_match_the_documentation() -> None:
    assert schedule(5, 20) == (5, 7, 10, 14, 20)
    assert len(schedule(5, 80)) == 8
    assert schedule(3, 20) == (3, 4, 6, 9, 14, 20)


@pytest.mark.parametrize(("first", "most"), [(1, 5), (5, 4), (0, 0)])
def test_schedule_of_one_seed_or_descending_is_refused(first: int, most: int) -> None:
    with pytest.raises(ValueError, match="schedule"):
        schedule(first, most)
