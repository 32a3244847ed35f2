"""Statistics: intervals over seeds, paired differences, corrected p-values, bootstraps over tasks.

Intervals are two-sided 95 % intervals of Student's t. Differences are paired by seed: the same
seed gives both runs the same order of images and, as far as shapes agree, the same start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # scipy.stats takes a second to import

CONFIDENCE = 0.95
ALPHA = 0.05

_SPREAD = 1e-12  # relative; a smaller spread of differences is rounding


@dataclass(frozen=True)
class Sample:
    """Mean, spread and 95 % interval of one cell.

    ``low`` and ``high`` are NaN for fewer than two values. They may be cut at the limits of the
    metric (1 for an accuracy), which does not change ``half_width``.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The half-width of the t interval before it is cut: the number after ±."""
        return math.nan if math.isnan(self.low) else _half_width(self.sd, self.n)


@dataclass(frozen=True)
class Difference:
    """A paired difference, first minus second.

    Attributes:
        n: Number of seeds that both have.
        mean, low, high: Mean difference and its 95 % interval (NaN with fewer than two seeds).
        effect: Cohen's d of the differences (mean over standard deviation), with Hedges's
            correction for small samples; NaN with fewer than three seeds.
        p: Two-sided p-value of the paired t test. NaN if the test is undefined: one seed, or
            differences without any spread.
        p_corrected: ``p`` after Holm's correction over the family of comparisons; NaN if ``p`` is.
        looks: Number of times that the difference may be examined until the last seed is trained
            (:mod:`normbench.report.sequential`). Interval and p-values hold jointly at all of them.
    """

    n: int
    mean: float
    low: float
    high: float
    effect: float
    p: float
    p_corrected: float = math.nan
    looks: int = 1

    @property
    def tested(self) -> bool:
        """Whether there is a p-value."""
        return not math.isnan(self.p)

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_corrected < ALPHA

    @property
    def half_width(self) -> float:
        """The half-width of the interval."""
        return (self.high - self.low) / 2


def sample(values: Sequence[float] | np.ndarray) -> Sample:
    """Describe values of one cell: mean, standard deviation (n − 1), t interval of the mean."""
    array = np.asarray(values, dtype=float)
    n = len(array)
    if n == 0:
        return Sample(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(array.mean())
    if n == 1:
        return Sample(1, mean, math.nan, math.nan, math.nan)
    sd = float(array.std(ddof=1))
    half = _half_width(sd, n)
    return Sample(n, mean, sd, mean - half, mean + half)


def _half_width(sd: float, n: int, looks: int = 1) -> float:
    return float(t_quantile(1 - (1 - CONFIDENCE) / looks / 2, n - 1)) * sd / math.sqrt(n)


def paired(first: Mapping[int, float], second: Mapping[int, float], looks: int = 1) -> Difference:
    """Compare two cells over the seeds that both have.

    Args:
        first, second: Value by seed.
        looks: Number of times that the difference may be examined. The 5 % error is divided among
            them by the union bound: t intervals at level 1 − 0.05/looks, p-values times ``looks``.
    """
    seeds = sorted(first.keys() & second.keys())
    pairs = np.array([(first[seed], second[seed]) for seed in seeds], dtype=float).reshape(-1, 2)
    differences = pairs[:, 0] - pairs[:, 1]
    estimate = sample(differences)
    n, mean, sd = estimate.n, estimate.mean, estimate.sd
    half = _half_width(sd, n, looks) if n > 1 else math.nan
    low, high = mean - half, mean + half
    scale = float(np.abs(pairs).max(initial=0.0))
    if n < 2 or sd <= _SPREAD * scale:
        return Difference(n, mean, low, high, math.nan, math.nan, looks=looks)
    statistic = mean / (sd / math.sqrt(n))
    p = min(1.0, looks * 2.0 * float(special.stdtr(n - 1, -abs(statistic))))
    effect = _unbiased(n - 1) * mean / sd if n > 2 else math.nan
    return Difference(n, mean, low, high, effect, p, looks=looks)


def half_width_of_difference(
    first: Sequence[float], second: Sequence[float], tests: int = 1
) -> float:
    """Return the half-width of the 95 % interval of a difference between two means by chance alone.

    The samples are independent and from the same distribution, whose standard deviation is
    estimated from both (Student's t). NaN if one of them is empty or both have one value.

    Args:
        first, second: The two samples.
        tests: Number of such differences among which the 5 % error is divided.
    """
    degrees = len(first) + len(second) - 2
    if degrees < 1 or not first or not second:
        return math.nan
    squares = sum(len(values) * float(np.var(values)) for values in (first, second))
    scale = math.sqrt(squares / degrees * (1 / len(first) + 1 / len(second)))
    return float(t_quantile(1 - (1 - CONFIDENCE) / tests / 2, degrees)) * scale


def t_quantile(probability: float, degrees: Any) -> Any:
    """Return a quantile of Student's t distribution; ``degrees`` of freedom may be an array."""
    return special.stdtrit(degrees, probability)


def _unbiased(degrees: int) -> float:
    """Return Hedges's (1981) factor, which removes the small-sample bias of Cohen's d."""
    logarithm = math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)
    return math.exp(logarithm) / math.sqrt(degrees / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p-values (Holm 1979, step-down); NaN stays NaN and is not counted."""
    pairs = [(p, place) for place, p in enumerate(p_values) if not math.isnan(p)]
    corrected_p = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(sorted(pairs)):
        largest = max(largest, min(1.0, (len(pairs) - rank) * p))
        corrected_p[place] = largest
    return corrected_p


# --- probability of improvement and performance profiles over several tasks -----------------------
# Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
# (sections 4.2 and 4.3), whose library is rliable. A task here is a column of the table, usually a
# batch size; a run's score is its metric. Intervals are percentile intervals of a stratified
# bootstrap: runs are resampled with replacement within each task and method.

REPETITIONS = 2000
_SEED = 20210830  # of the resampling: the same store always gives the same report
_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of one method does better than one of the other.

    ``low`` and ``high`` are NaN if a task has one run of either, which cannot be resampled.
    """

    probability: float
    low: float
    high: float
    tasks: int


@dataclass(frozen=True)
class Profile:
    """The share of runs whose score is above each threshold, averaged over tasks.

    ``thresholds``, ``share``, ``low`` and ``high`` have the same length; the latter two are NaN
    if a task has one run.
    """

    thresholds: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def probability_of_improvement(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], repetitions: int = REPETITIONS
) -> Improvement:
    """Estimate P(first > second), a tie counting half, as the mean over tasks.

    Args:
        first, second: For each task, the scores of the runs of a method; higher is better.
        repetitions: Bootstrap samples.
    """
    if len(first) != len(second) or not first:
        raise ValueError("both methods need scores on the same tasks, at least one")
    rng = np.random.default_rng(_SEED)
    point, samples = [], np.zeros(repetitions)
    for first_scores, second_scores in zip(first, second, strict=True):
        x, y = np.asarray(first_scores, float), np.asarray(second_scores, float)
        wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        point.append(wins.mean())
        # Drawing runs with replacement is the same as giving each a multinomial weight.
        a = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), repetitions) / len(x)
        b = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), repetitions) / len(y)
        samples += np.einsum("ri,ij,rj->r", a, wins, b)
    low, high = math.nan, math.nan
    if min(len(scores) for scores in (*first, *second)) > 1:
        low, high = np.percentile(samples / len(first), _PERCENT)
    return Improvement(float(np.mean(point)), float(low), float(high), len(first))


def performance_profile(
    scores: Sequence[np.ndarray], thresholds: np.ndarray, repetitions: int = REPETITIONS
) -> Profile:
    """Return the run-score distribution: the share of runs above each threshold.

    Args:
        scores: For each task, the scores of the runs; higher is better.
        thresholds: Ascending thresholds, in the unit of the scores.
        repetitions: Bootstrap samples.
    """
    if not scores:
        raise ValueError("a profile needs at least one task")
    rng = np.random.default_rng(_SEED)
    thresholds = np.asarray(thresholds, float)
    share, samples = np.zeros(len(thresholds)), np.zeros((repetitions, len(thresholds)))
    for task in scores:
        x = np.asarray(task, float)
        above = (x[:, None] > thresholds[None, :]).astype(float)
        share += above.mean(axis=0)
        weights = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), repetitions) / len(x)
        samples += weights @ above
    low = high = np.full(len(thresholds), math.nan)
    if min(len(task) for task in scores) > 1:
        low, high = np.percentile(samples / len(scores), _PERCENT, axis=0)
    return Profile(thresholds, share / len(scores), low, high)
