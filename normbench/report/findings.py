"""Findings in plain words, each no stronger than the test behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normbench.report import labels
from normbench.report.bootstrap import Improvement
from normbench.report.grid import Cell, Grid
from normbench.report.statistics import ALPHA, Difference, t_quantile
from normbench.report.tables import p_text


@dataclass(frozen=True)
class Finding:
    """A sentence, how well it is supported, and the cells that it speaks of.

    Attributes:
        text: The sentence.
        strength: ``significant``, ``suggestive``, ``undetected``, ``untested``, ``overall``,
            ``diverged`` or ``note``.
        cells: The (row, column) of each cell.
    """

    text: str
    strength: str
    cells: tuple[tuple[Any, Any], ...] = ()


_ORDER = ("significant", "overall", "diverged", "suggestive", "undetected", "untested", "note")


def findings(grid: Grid, chances: Mapping[Any, Improvement]) -> list[Finding]:
    """Return what the statistics of a grid support, the strongest first.

    Args:
        grid: One metric over a study.
        chances: The probability of improvement of each row that has one.
    """
    found = _diverged(grid)
    if grid.metric.higher_is_better is not None and grid.baseline is not None:
        family = sum(1 for c in grid.cells.values() if c.baseline is not None and c.baseline.tested)
        for row in grid.study.rows:
            cells = [c for c in grid.cells.values() if c.row == row and c.baseline is not None]
            found += _row(grid, row, cells, family)
        found += _overall(grid, chances)
        found += _power(grid, family)
    elif grid.metric.higher_is_better is not None and len(grid.study.rows) > 1:
        found.append(
            Finding(
                "There is no baseline among the rows, so nothing was tested against one: name "
                "one with --baseline.",
                "note",
            )
        )
    return sorted(found, key=lambda finding: _ORDER.index(finding.strength))


def _row(grid: Grid, row: Any, cells: Sequence[Cell], family: int) -> list[Finding]:
    name, base = grid.study.in_words(row), grid.study.in_words(grid.baseline)
    found = []
    tested = [(c, c.baseline) for c in cells if c.baseline is not None and c.baseline.tested]
    sure = [(c, d) for c, d in tested if d.significant]
    if sure:
        found.append(_significant(grid, sure, name, base, family))
    maybe = [(c, d) for c, d in tested if d.p < ALPHA and not d.significant]
    if maybe:
        each = "; ".join(
            f"{_at(grid, [c])} {_signed(grid, d)} {_unit(grid)}, p = {p_text(d.p)}"
            for c, d in maybe
        )
        found.append(
            Finding(
                f"{name} differs from {base} {each}: taken alone, below 0.05, but not after "
                f"correction for {family} comparisons. A hint, to be settled with more seeds.",
                "suggestive",
                _keys(maybe),
            )
        )
    nothing = [(c, d) for c, d in tested if d.p >= ALPHA and not d.significant]
    if nothing:
        low = min(d.low for _, d in nothing) * grid.metric.scale
        high = max(d.high for _, d in nothing) * grid.metric.scale
        digits = grid.metric.digits
        found.append(
            Finding(
                f"No difference between {name} and {base} is detectable "
                f"{_at(grid, [c for c, _ in nothing])}: the 95 % intervals of the difference lie "
                f"within {low:+.{digits}f} to {high:+.{digits}f} {_unit(grid)}.".replace("  ", " "),
                "undetected",
                _keys(nothing),
            )
        )
    single = [c for c in cells if c.baseline is not None and c.baseline.n == 1 and not c.diverged]
    if single:
        found.append(
            Finding(
                f"{name} and {base} share one seed {_at(grid, single)}: what chance does there "
                "cannot be told, and no difference is claimed.".replace(" :", ":"),
                "untested",
                tuple((c.row, c.column) for c in single),
            )
        )
    return found


def _significant(
    grid: Grid, pairs: Sequence[tuple[Cell, Difference]], name: str, base: str, family: int
) -> Finding:
    """Say where a row beats the baseline and where it falls behind, in one sentence."""
    ahead = bool(grid.metric.higher_is_better)
    better = [(c, d) for c, d in pairs if (d.mean > 0) == ahead]
    worse = [(c, d) for c, d in pairs if (d.mean > 0) != ahead]
    parts = []
    if better:
        parts.append(f"{name} beats {base} {_sizes(grid, better)}")
    if worse:
        parts.append(f"{'it' if better else name} falls behind {base} {_sizes(grid, worse)}")
    seeds = sorted({d.n for _, d in pairs})
    counted = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    largest = max(d.p_corrected for _, d in pairs)
    p = f"p = {p_text(largest)}" if len(pairs) == 1 else f"each p ≤ {p_text(largest)}"
    over = f" over {family} comparisons" if family > 1 else ""
    text = f"{'; '.join(parts)} (95 % intervals, {counted}; {p} after Holm's correction{over})."
    text = text.replace("= <", "<").replace("≤ <", "<")
    return Finding(text, "significant", _keys(pairs))


def _sizes(grid: Grid, pairs: Sequence[tuple[Cell, Difference]]) -> str:
    """Return ``at batch size 8 by 6.83 ± 0.24 points, at 16 by 3.47 ± 0.36``."""
    unit = f" {_unit(grid)} of {grid.metric.label.lower()}".replace("  ", " ")
    told = []
    for place, (cell, difference) in enumerate(pairs):
        where = _at(grid, [cell])
        if place and grid.study.column_factor:
            where = f"at {grid.study.column(cell.column)}"
        size = f"{grid.metric.show(abs(difference.mean))} ± "
        size += grid.metric.show(difference.half_width)
        told.append(f"{where} by {size}{'' if place else unit}".strip())
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _overall(grid: Grid, chances: Mapping[Any, Improvement]) -> list[Finding]:
    found = []
    base = grid.study.in_words(grid.baseline)
    for row, result in chances.items():
        if result.tasks < 2 or math.isnan(result.low):
            continue
        over = labels.several(grid.study.column_factor, result.tasks)
        name = grid.study.in_words(row)
        if result.probability in (0.0, 1.0):
            side = "better" if result.probability else "worse"
            text = f"At each of {over}, every run of {name} did {side} than every run of {base}."
        else:
            verdict = ""
            if result.low <= 0.5 <= result.high:
                verdict = ", which does not rule out an even chance"
            text = (
                f"Over {over}, a run of {name} does better than one of {base} with probability "
                f"{result.probability:.2f} (95 % bootstrap interval {result.low:.2f} to "
                f"{result.high:.2f}){verdict}."
            )
        cells = tuple((row, column) for column in grid.study.columns if grid.get(row, column))
        found.append(Finding(text, "overall", cells))
    return found


def _diverged(grid: Grid) -> list[Finding]:
    found = []
    for row in grid.study.rows:
        cells = [c for c in grid.cells.values() if c.row == row and c.diverged]
        if not cells:
            continue
        factor = labels.factor(grid.study.column_factor).lower() if grid.study.column_factor else ""
        each = ", ".join(
            f"{c.diverged} of {c.sample.n + c.unvalued} runs"
            + (f" at {factor} {grid.study.column(c.column)}" if factor else "")
            for c in cells
        )
        found.append(
            Finding(
                f"{grid.study.in_words(row)} diverged in {each}.",
                "diverged",
                tuple((c.row, c.column) for c in cells),
            )
        )
    return found


def _power(grid: Grid, family: int) -> list[Finding]:
    """Say what the tests could have found: a missing difference may be a lack of seeds."""
    counts = [c.baseline.n for c in grid.cells.values() if c.baseline and c.baseline.tested]
    if not counts or max(counts) > 9:
        return []
    n = max(set(counts), key=counts.count)
    needed = float(t_quantile(1 - ALPHA / 2 / family, n - 1)) / math.sqrt(n)
    return [
        Finding(
            f"With {n} seeds and {family} comparison{'s' if family > 1 else ''}, the first "
            f"difference to pass must be at least {needed:.1f} times its own standard deviation "
            "between seeds: what is not detected here may well exist.",
            "note",
        )
    ]


def _at(grid: Grid, cells: Sequence[Cell]) -> str:
    if not grid.study.column_factor:
        return ""
    names = [grid.study.column(cell.column) for cell in cells]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"at {labels.factor(grid.study.column_factor).lower()} {listed}"


def _signed(grid: Grid, difference: Difference) -> str:
    mean = f"by {difference.mean * grid.metric.scale:+.{grid.metric.digits}f}"
    return f"{mean} ± {grid.metric.show(difference.half_width)}"


def _unit(grid: Grid) -> str:
    return grid.metric.difference_unit


def _keys(pairs: Sequence[tuple[Cell, Difference]]) -> tuple[tuple[Any, Any], ...]:
    return tuple((cell.row, cell.column) for cell, _ in pairs)
