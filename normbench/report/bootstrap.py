"""Probability of improvement and performance profiles over several tasks.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(section 4.2 and 4.3), whose library is rliable. A task here is a column of the table, mostly a
batch size; a run's score is its metric. Intervals are percentile intervals of a stratified
bootstrap: runs are drawn anew, with replacement, within each task and each method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REPETITIONS = 2000
_SEED = 20210830  # of the resampling alone: the same store gives the same report
_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of one method does better than one of the other.

    ``low`` and ``high`` are NaN where a task has one run of either: it cannot be resampled.
    """

    probability: float
    low: float
    high: float
    tasks: int


@dataclass(frozen=True)
class Profile:
    """The share of runs whose score is above each threshold, averaged over tasks.

    ``thresholds``, ``share``, ``low`` and ``high`` have the same length; the latter two are NaN
    where a task has one run.
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
        first, second: For each task the scores of the runs of a method, higher being better.
        repetitions: Bootstrap samples.
    """
    if len(first) != len(second) or not first:
        raise ValueError("both methods need scores on the same tasks, at least one")
    rng = np.random.default_rng(_SEED)
    point, drawn = [], np.zeros(repetitions)
    for ours, theirs in zip(first, second, strict=True):
        x, y = np.asarray(ours, float), np.asarray(theirs, float)
        wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        point.append(wins.mean())
        # Drawing runs with replacement is the same as giving each a multinomial weight.
        a = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), repetitions) / len(x)
        b = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), repetitions) / len(y)
        drawn += np.einsum("ri,ij,rj->r", a, wins, b)
    low, high = math.nan, math.nan
    if min(len(scores) for scores in (*first, *second)) > 1:
        low, high = np.percentile(drawn / len(first), _PERCENT)
    return Improvement(float(np.mean(point)), float(low), float(high), len(first))


def performance_profile(
    scores: Sequence[np.ndarray], thresholds: np.ndarray, repetitions: int = REPETITIONS
) -> Profile:
    """Return the run-score distribution: the share of runs above each threshold.

    Args:
        scores: For each task the scores of the runs, higher being better.
        thresholds: Ascending, in the unit of the scores.
        repetitions: Bootstrap samples.
    """
    if not scores:
        raise ValueError("a profile needs at least one task")
    rng = np.random.default_rng(_SEED)
    thresholds = np.asarray(thresholds, float)
    share, drawn = np.zeros(len(thresholds)), np.zeros((repetitions, len(thresholds)))
    for task in scores:
        x = np.asarray(task, float)
        above = (x[:, None] > thresholds[None, :]).astype(float)
        share += above.mean(axis=0)
        weights = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), repetitions) / len(x)
        drawn += weights @ above
    low = high = np.full(len(thresholds), math.nan)
    if min(len(task) for task in scores) > 1:
        low, high = np.percentile(drawn / len(scores), _PERCENT, axis=0)
    return Profile(thresholds, share / len(scores), low, high)
