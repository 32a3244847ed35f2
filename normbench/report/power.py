"""Statistical power: :func:`needed` returns how many seeds it takes to detect a difference.

:func:`power` answers this for each cell of a store, from the spread between its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from normbench.errors import UserError, unknown
from normbench.report import names as labels
from normbench.report.grid import Grid, GridCell, build, default_baseline
from normbench.report.sections import choose, request
from normbench.report.sequential import schedule
from normbench.report.statistics import ALPHA, CONFIDENCE, t_quantile
from normbench.report.stores import Stores, load_stores
from normbench.report.study import studies
from normbench.report.table import Table, TableEntry, number

MOST = 100_000
"""Largest number of seeds to compute; larger ones are printed as ``> 100,000``."""

_SPREAD = 1e-12  # relative; a smaller spread of differences is rounding error


def detects(seeds: int, ratio: float, alpha: float = ALPHA) -> float:
    """Return the power of a paired, two-sided t test.

    Args:
        seeds: Number of pairs, at least 2.
        ratio: True difference divided by the standard deviation of the paired differences.
        alpha: Level of the test.
    """
    degrees = seeds - 1
    threshold = float(t_quantile(1 - alpha / 2, degrees))
    shift = ratio * math.sqrt(seeds)
    if shift > threshold + 30:
        return 1.0
    upper = 1.0 - float(special.nctdtr(degrees, shift, threshold))
    wrong_sign = float(special.nctdtr(degrees, shift, -threshold))
    if math.isnan(wrong_sign):  # SciPy's answer far out in the tail
        wrong_sign = 0.0
    return upper + wrong_sign


def needed(ratio: float, power: float = 0.8, alpha: float = ALPHA) -> int:
    """Return the smallest number of seeds that detects a difference with probability ``power``.

    Args:
        ratio: True difference divided by the standard deviation of the paired differences.
        power: Probability, strictly between ``alpha`` and 1.
        alpha: Level of the two-sided paired t test.

    Returns:
        A number from 2 to :data:`MOST` + 1, which means more than :data:`MOST`.
    """
    return _least(lambda seeds: detects(seeds, ratio, alpha) >= power)


def needed_for_width(ratio: float, looks: int = 1) -> int:
    """Return the smallest number of seeds whose interval is expected to be narrow enough.

    Args:
        ratio: Half-width of the interval over the standard deviation of the paired differences.
        looks: Number of looks of the sweep (:mod:`normbench.report.sequential`).
    """
    level = 1 - (1 - CONFIDENCE) / looks / 2
    return _least(lambda n: float(t_quantile(level, n - 1)) / math.sqrt(n) <= ratio)


def _least(enough: Callable[[int], bool]) -> int:
    """Return the smallest number from 2 to MOST + 1 that satisfies the monotone ``enough``."""
    low, high = 1, 2  # low is not enough
    while high <= MOST and not enough(high):
        low, high = high, 2 * high
    high = min(high, MOST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def spread_interval(sd: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a normal standard deviation estimated from ``n`` values."""
    degrees, tail = n - 1, (1 - CONFIDENCE) / 2
    return (
        sd * math.sqrt(degrees / float(special.chdtri(degrees, tail))),
        sd * math.sqrt(degrees / float(special.chdtri(degrees, 1 - tail))),
    )


@dataclass(frozen=True)
class _Spread:
    """The spread of the difference from the baseline, as measured in one cell."""

    cell: GridCell
    seeds: int
    sd: float


def power(
    store: Stores,
    difference: float,
    probability: float = 0.8,
    *,
    where: str | None = None,
    by: str | Sequence[str] = ("norm", "batch"),
    metric_name: str = "test_acc",
    baseline: str | None = None,
    until: float | None = None,
    max_seeds: int = 20,
) -> list[Table]:
    """Return a table for each study: the seeds needed to detect a difference in each cell.

    Args:
        store: The store, or its folder; or several (:func:`.stores.load_stores`).
        difference: The difference in the unit of the metric; points for accuracies.
        probability: Probability of detecting the difference.
        where, by, baseline: As for :func:`normbench.report.report.report`.
        metric_name: The metric to compare.
        until, max_seeds: Also estimate after how many seeds ``normbench sweep --until`` stops.

    Raises:
        UserError: An option is invalid, or no cell has two seeds.
    """
    _check(difference, probability, until, max_seeds)
    options = request(where, by, metric_name, baseline, None)
    all_frames, _ = load_stores(store, options.by)
    frames, _ = choose(all_frames, options)
    source = "the stores" if all_frames.stores else all_frames.root
    if frames.runs.empty:
        raise UserError(f"there are no runs in {source} to estimate a spread from")
    frames, metric = frames.with_metric(metric_name)
    if metric.timed:
        raise UserError(f"{metric_name} is not tested: times depend on the machine and its load")
    study_list = studies(frames, options.by)
    rows = {str(row) for study in study_list for row in study.rows}
    if baseline is not None and baseline not in rows:
        raise unknown("baseline", baseline, rows)
    scale = metric.scale
    tables = []
    for study in study_list:
        has_baseline = baseline is None or baseline in map(str, study.rows)
        row = default_baseline(study, baseline) if has_baseline else None
        grid = build(study, metric, row if len(study.rows) > 1 else None)
        spreads = _spreads(grid)
        if any(spread.seeds > 1 for spread in spreads):
            tables.append(
                _table(
                    grid,
                    spreads,
                    difference / scale,
                    probability,
                    None if until is None else until / scale,
                    max_seeds,
                )
            )
    if not tables:
        raise UserError(
            f"no cell of {source} has two finished seeds to estimate a spread from: train "
            "more with seed=range(0,3)"
        )
    return tables


def _check(difference: float, probability: float, until: float | None, max_seeds: int) -> None:
    for option, value in (("--difference", difference), ("--until", until)):
        if value is not None and not (0 < value < math.inf):
            raise UserError(f"{option} must be a number above 0, got {value:g}")
    if not ALPHA < probability < 1:
        raise UserError(f"--power must be above {ALPHA} and below 1, got {probability:g}")
    if max_seeds < 2:
        raise UserError(f"--max-seeds must be at least 2, got {max_seeds}")


def _spreads(grid: Grid) -> list[_Spread]:
    """Return the spread of each cell's differences from the baseline.

    Without a baseline, a cell is compared with a hypothetical independent cell of the same spread:
    the standard deviation of the difference is then √2 times that of a run.
    """
    spreads = []
    for (row, column), cell in grid.cells.items():
        if grid.baseline is None:
            values = np.array(list(cell.values.values()), float)
            factor, diverged_count = math.sqrt(2), cell.diverged
        elif row == grid.baseline or (base := grid.get(grid.baseline, column)) is None:
            continue
        else:
            seeds = sorted(cell.values.keys() & base.values.keys())
            values = np.array([cell.values[s] - base.values[s] for s in seeds], float)
            factor, diverged_count = 1.0, cell.diverged + base.diverged
        if diverged_count and grid.metric.worst:
            values = values[:0]  # chance level says nothing about the spread of runs that learn
        sd = factor * float(values.std(ddof=1)) if len(values) > 1 else math.nan
        largest = float(np.abs(list(cell.values.values())).max()) if cell.values else 0.0
        spreads.append(_Spread(cell, len(values), 0.0 if sd <= _SPREAD * largest else sd))
    return spreads


def _table(
    grid: Grid,
    spreads: Sequence[_Spread],
    difference: float,
    probability: float,
    until: float | None,
    max_seeds: int,
) -> Table:
    """Return the table of one study; ``difference`` and ``until`` are in stored units."""
    study, metric = grid.study, grid.metric
    family = sum(1 for spread in spreads if spread.sd > 0)
    is_corrected = family > 1 and grid.baseline is not None
    rows, data = [], []
    for spread in spreads:
        line: dict[str, Any] = {
            "row": spread.cell.row,
            "column": spread.cell.column,
            "seeds": spread.seeds,
            "sd": spread.sd,
        }
        names = ["needed", "needed_low", "needed_high", "needed_corrected", "until"]
        line |= dict.fromkeys(names, None)
        if spread.sd > 0:
            low, high = spread_interval(spread.sd, spread.seeds)
            line["needed"], line["needed_low"], line["needed_high"] = (
                needed(difference / sd, probability) for sd in (spread.sd, low, high)
            )
            line["needed_corrected"] = needed(difference / spread.sd, probability, ALPHA / family)
            if until is not None:
                line["until"] = ends_at(until / spread.sd, min(3, max_seeds), max_seeds)
        data.append(line)
        entries = [
            TableEntry(study.row(spread.cell.row), runs=spread.cell.runs),
            TableEntry(study.column(spread.cell.column), number(spread.cell.column)),
            TableEntry(str(spread.seeds), spread.seeds),
            TableEntry("–" if math.isnan(spread.sd) else metric.show(spread.sd), number(spread.sd)),
            _count(line["needed"]),
            _range(line["needed_low"], line["needed_high"]),
        ]
        entries += [_count(line["needed_corrected"])] if is_corrected else []
        if until is not None:
            entries.append(_count(line["until"], max_seeds))
        rows.append(entries)
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    if unit == " points" and math.isclose(difference * metric.scale, 1.0):
        unit = " point"
    headers = [
        labels.factor(study.row_factor),
        labels.factor(study.column_factor) if study.column_factor else "",
        "n",
        f"SD ({unit.strip()})" if unit else "SD",
        "Seeds",
        "95 % interval",
    ]
    headers += ["Corrected"] if is_corrected else []
    headers += [] if until is None else [f"±{until * metric.scale:g}"]
    reference = "two runs" if grid.baseline is None else study.in_words(grid.baseline)
    return Table(
        "power",
        f"Seeds to detect a difference of {difference * metric.scale:g}{unit} of "
        f"{metric.label.lower()} "
        f"{'between' if grid.baseline is None else 'from'} {reference} with probability "
        f"{probability:g}: {study.title}",
        headers,
        rows,
        _notes(grid, family if is_corrected else 1, until, max_seeds),
        pd.DataFrame(data),
    )


def ends_at(ratio: float, first: int, most: int) -> int:
    """Return the look at which a sweep's interval is expected to be narrow enough.

    Args:
        ratio: Half-width over the standard deviation of the paired differences.
        first, most: Seeds of the first and of the last round.

    Returns:
        A number of seeds from the schedule; ``most`` + 1 if the last look is too early.
    """
    looks = schedule(first, most)
    enough = needed_for_width(ratio, len(looks))
    return next((seeds for seeds in looks if seeds >= enough), most + 1)


def _notes(grid: Grid, family: int, until: float | None, max_seeds: int) -> list[str]:
    spread_note = (
        "SD: standard deviation of the difference from the baseline, paired by seed, over the n "
        "seeds that both have."
        if grid.baseline is not None
        else "No baseline: SD is √2 times the standard deviation of the cell, as for the "
        "difference between independent runs."
    )
    notes = [
        f"{spread_note} Seeds: per cell, for a two-sided paired t test at 5 % (noncentral t). The "
        "interval follows from that of the standard deviation (χ²), which is wide for few seeds."
    ]
    if family > 1:
        notes.append(f"Corrected: at 5 % divided by the {family} comparisons, the worst case of "
                     "Holm's method.")  # fmt: skip
    if until is not None:
        notes.append(
            f"±{until * grid.metric.scale:g}: seeds at which normbench sweep --until "
            f"{until * grid.metric.scale:g} --max-seeds {max_seeds} seed=range(0,"
            f"{min(3, max_seeds)}) is expected to stop."
        )
    return notes


def _count(value: int | None, limit: int = MOST) -> TableEntry:
    if value is None:
        return TableEntry("–")
    return TableEntry(f"> {limit:,}" if value > limit else f"{value:,}", value)


def _range(low: int | None, high: int | None) -> TableEntry:
    if low is None or high is None:
        return TableEntry("–")
    return TableEntry(f"{_count(low).text} to {_count(high).text}", low)
