"""Adaptive numbers of seeds: :func:`schedule` returns the numbers at which a sweep may be examined.

A sweep that adds seeds until its intervals are narrow looks at its results several times. The
ordinary 95 % interval is wrong in 5 % of single looks, and far more often over several: with a look
after each of 3 to 20 seeds, 23 % of differences that do not exist become "significant" at some
look. Here the numbers of seeds at which to look are declared before the sweep begins, and the 5 %
error is divided among the looks by the union bound (Bonferroni): with K looks, t intervals at level
1 − 0.05/K and p-values times K (:func:`normbench.report.statistics.paired`). The problem is that of
Armitage, McPherson & Rowe 1969, "Repeated significance tests on accumulating data"; the design with
equal levels is that of Pocock 1977, "Group sequential methods in the design and analysis of
clinical trials". For normal differences of any variance, the intervals of all looks hold jointly
with a probability of at least 0.95, for whatever reason the sweep stops: narrow intervals, Ctrl-C,
a pleasing p-value. Holm's correction over the cells of a study is applied to these p-values as to
any others, so that the probability of any false claim at any look is at most 5 %.

The number of seeds grows by a factor of about :data:`GROWTH`, because each look widens all
intervals: 5 to 20 seeds take 5 looks, 5 to 80 take 8. Half-widths for sweeps from 3 to 20 seeds,
relative to that of a single look:

    seeds                                              6     9    14    20
    six declared looks, as here                     1.64  1.51  1.44  1.41
    a look after each seed, union bound             2.13  1.84  1.70  1.64
    t-based confidence sequence, mixture variance 1 2.12  1.74  1.66  1.64
    the same, mixture variance 10                   1.91  1.85  1.83  1.82

The confidence sequences (Lai 1976, "On confidence sequences"; Wang & Ramdas 2024, "Anytime-valid
t-tests and confidence sequences for Gaussian means with unknown variance") need neither declared
looks nor a maximum number of seeds, at the cost of 35 to 65 % more seeds for the same width. Exact
levels for the joint distribution of the looks (0.011 instead of 0.05/6) would save a tenth of the
width but need numerical integration for each schedule; the union bound can be checked by hand.
"""

from __future__ import annotations

import math
from pathlib import Path

from normbench.store import sweeps

GROWTH = 1.5
"""The maximum factor by which the number of seeds grows from one look to the next."""


def schedule(first: int, most: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which a sweep looks at its results.

    Args:
        first: Seeds of the first round, at least 2.
        most: Seeds of the last round.
    """
    if not 2 <= first <= most:
        raise ValueError(f"a schedule from {first} to {most} seeds")
    rounds = math.ceil(math.log(most / first) / math.log(GROWTH) - 1e-9)
    if not rounds:
        return (first,)
    return tuple(
        sorted({round(first * (most / first) ** (place / rounds)) for place in range(rounds + 1)})
    )


def declared(root: Path) -> dict[str, tuple[int, ...]]:
    """Return the looks of the runs in a store trained by sweeps with ``--until``, by run name.

    A run in several such sweeps, such as a baseline, gets the longest schedule.

    Args:
        root: The folder of the store.

    Raises:
        StoreError: The record of a sweep is damaged.
    """
    looks_by_run: dict[str, tuple[int, ...]] = {}
    for head in sweeps.read_all(root):
        if "until" not in head:
            continue
        looks = tuple(head["until"]["looks"])
        for cell in head["cells"]:
            looks_by_run[cell["name"]] = max(looks_by_run.get(cell["name"], ()), looks, key=len)
    return looks_by_run


def note(looks: tuple[int, ...]) -> str:
    """Return the note below differences of a sweep that added seeds."""
    return (
        f"Seeds were added until intervals were narrow, with looks declared after "
        f"{', '.join(map(str, looks))} seeds: intervals and p-values of differences hold at all "
        f"{len(looks)} looks together (union bound: t intervals at level 1 − 0.05/{len(looks)}, "
        f"p-values times {len(looks)})."
    )
