"""Findings: :func:`findings` writes sentences that claim no more than their test supports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from normbench.formats import counted
from normbench.report import names as labels
from normbench.report.caveats import join_names, words
from normbench.report.grid import Grid, GridCell
from normbench.report.statistics import ALPHA, Difference, t_quantile
from normbench.report.study import Study
from normbench.report.tables import TIMED, p_words
from normbench.report.tuning import CellTuning, tuned_keys, value_text
from normbench.report.tuning_tables import ordered, rules

Pairs = Sequence[tuple[GridCell, Difference]]

STRENGTHS = (
    "caution",  # qualifies all findings: training had not converged, no rate was tuned
    "tuned",  # the tuned keys, how their values were chosen, and the chosen values
    "significant",  # significant after Holm's correction, and only the factor differs
    "overall",  # over all columns, an interval or an exact test that excludes chance
    "diverged",
    "confounded",  # a difference between runs that also differ in something else
    "suggestive",  # p < 0.05 uncorrected, but not after correction
    "undetected",  # tested, not significant
    "inconclusive",  # over all columns, not distinguishable from chance
    "untested",  # too few seeds, or differences without spread
    "note",
)
"""Strengths of findings, in the order of listing."""


@dataclass(frozen=True)
class Finding:
    """A sentence, its strength, and the cells it describes.

    Attributes:
        text: The sentence.
        strength: One of :data:`STRENGTHS`.
        cells: The (row, column) of each cell.
    """

    text: str
    strength: str
    cells: tuple[tuple[Any, Any], ...] = ()


def findings(grid: Grid) -> list[Finding]:
    """Return the findings that the statistics of a grid support, in the order of STRENGTHS."""
    sentences = _diverged(grid)
    has_comparison = grid.metric.higher_is_better is not None and len(grid.study.rows) > 1
    if grid.metric.higher_is_better is not None and not grid.metric.timed:
        sentences += cautions(grid.study)
    sentences += tuned(grid.study)
    if has_comparison and grid.metric.timed:
        sentences.append(Finding(TIMED, "note"))
    elif has_comparison and grid.baseline is not None:
        family = sum(1 for c in grid.cells.values() if c.baseline is not None and c.baseline.tested)
        for row in grid.study.rows:
            cells = [c for c in grid.cells.values() if c.row == row and c.baseline is not None]
            sentences += _row(grid, row, cells, family)
        sentences += _overall(grid)
        sentences += _power(grid, family)
    elif has_comparison:
        sentences.append(
            Finding(
                "No baseline among the rows, so nothing was tested: name one with --baseline.",
                "note",
            )
        )
    return sorted(sentences, key=lambda finding: STRENGTHS.index(finding.strength))


def cautions(study: Study) -> list[Finding]:
    """Report rows whose training had not converged or whose learning rate was not tuned."""
    texts = []
    training = study.training
    if training.unconverged:
        texts.append(_convergence(study))
    if len(study.rows) > 1 and "optimizer.lr" not in study.by:
        texts += _tuning(study)
    return [Finding(text, "caution") for text in texts]


def _convergence(study: Study) -> str:
    """Count the runs that were still improving at their last epoch."""
    training = study.training
    rows = [row for row, count in training.finished.items() if count]
    if len(training.unconverged) == len(rows):
        best, total = sum(training.last_best.values()), sum(training.finished.values())
        where, noun = f"{best} of {total} run{'' if total == 1 else 's'}", "training"
    else:
        where = join_names(
            [
                f"{training.last_best[row]} of {training.finished[row]} runs of {study.row(row)}"
                for row in training.unconverged
            ]
        )
        noun = "its training" if len(training.unconverged) == 1 else "their training"
    order = ", and the order may change" if len(study.groups) > 1 else ""
    return f"In {where} the last epoch is the best on validation: {noun} had not converged{order}."


def _tuning(study: Study) -> list[str]:
    """Name the rows that were trained at a single learning rate."""
    is_chosen = any(c.key == "optimizer.lr" and c.intended for c in study.conditions)
    rates = _rates(study)
    single_rows = [study.row(row) for row, count in rates.items() if count == 1]
    if is_chosen or not single_rows:
        return []
    if len(single_rows) == len(rates):
        return [
            "Each row was trained at one learning rate; none was tuned, and rows may have "
            "different best rates."
        ]
    tuned_rows = [study.row(row) for row, count in rates.items() if count > 1]
    verb = "was" if len(single_rows) == 1 else "were each"
    return [
        f"The store has several learning rates of {join_names(tuned_rows)}; "
        f"{join_names(single_rows)} {verb} trained at one, which was not tuned."
    ]


def _rates(study: Study) -> dict[Any, int]:
    """Return for each row the number of learning rates tried in trials or other runs."""
    rates = {row: count for row, count in study.training.rates.items() if count}
    for cell in study.tuned:
        if "optimizer.lr" in cell.cell.keys:
            rates[cell.row] = max(rates.get(cell.row, 0), len(cell.along("optimizer.lr")))
    return rates


def _untuned(study: Study) -> str:
    """Return the sentence added to each claim if no learning rate was tuned."""
    rates = _rates(study)
    if "optimizer.lr" in study.by or not rates or max(rates.values()) > 1:
        return ""
    if any(condition.key == "optimizer.lr" and condition.rows for condition in study.conditions):
        return ""  # stated with the conditions
    return " The learning rate was the same for all rows, and not tuned."


def tuned(study: Study) -> list[Finding]:
    """Report how values of tuned keys were chosen, which ones, and which lists were too short."""
    if not study.tuned:
        return []
    cells = ordered(study)
    sentences = []
    for key in tuned_keys(cells):
        name = words(key)
        key_cells = [cell for cell in cells if key in cell.cell.keys]
        chosen_cells = [cell for cell in key_cells if cell.cell.chosen is not None]
        write = _value_of(key)
        if chosen_cells:
            texts = _by_cell(study, chosen_cells, write)
            sentences.append(
                Finding(f"Chosen {name}: {texts}.", "tuned", _places(study, chosen_cells))
            )
        for end in ("largest", "smallest"):
            edge = [cell for cell in chosen_cells if cell.cell.edges.get(key) == end]
            if edge:
                texts = _by_cell(study, edge, write)
                is_sampled = all(cell.cell.sampler is not None for cell in edge)
                remedy = (
                    "Widen the range." if is_sampled else "Add values to the list, or --extend it."
                )
                sentences.append(
                    Finding(
                        f"The best {name} is the {end} tried for {texts}: a better one may lie "
                        f"beyond it. {remedy}",
                        "caution",
                        _places(study, edge),
                    )
                )
    open_cells = [cell for cell in cells if cell.cell.chosen is None]
    for cell in open_cells:
        reason = cell.cell.problem or "its trials have not all ended"
        where = _by_cell(study, [cell], lambda _: "")
        sentences.append(Finding(f"Nothing was chosen for {where}: {reason}.", "caution"))
    contradictions = [name for cell in cells for name in cell.contradicted]
    if contradictions:
        rest = f" and {len(contradictions) - 3} more" if len(contradictions) > 3 else ""
        sentences.append(
            Finding(
                "Trials whose runs no longer have the result by which their value was chosen: "
                f"{', '.join(contradictions[:3])}{rest}.",
                "caution",
            )
        )
    keys = join_names([words(key) for key in tuned_keys(cells)])
    rule = " ".join(rules(study))
    sentences.insert(0, Finding(f"Tuned for each cell: {keys}, {_budget(cells)}. {rule}", "tuned"))
    return sentences


def _value_of(key: str) -> Callable[[CellTuning], str]:
    return lambda cell: value_text((cell.cell.chosen or {}).get(key))


def _budget(cells: Sequence[CellTuning]) -> str:
    """Return the number of values that the cells tried."""
    counts = sorted({len(cell.tried) for cell in cells})
    added_count = sum(len(cell.cell.added) for cell in cells)
    has_combinations = any(len(cell.cell.keys) > 1 for cell in cells)
    noun = "combination" if has_combinations else "value"
    text = counted(counts[-1], noun)
    if len(counts) > 1:
        text = f"{counts[0]} to {text}"
    return text + (f" ({added_count} of all cells' added by --extend)" if added_count else "")


def _by_cell(study: Study, cells: Sequence[CellTuning], text: Callable[[CellTuning], str]) -> str:
    """Format a text for each cell, as ``BN 0.1 at batch size 16, 0.2 at 128; GN …``."""
    factor = labels.factor(study.column_factor).lower() if study.column_factor else ""
    rows: dict[Any, list[str]] = {}
    for cell in cells:
        parts = rows.setdefault(cell.row, [])
        where = f"{'at' if parts else f'at {factor}'} {study.column(cell.column)}" if factor else ""
        parts.append(f"{text(cell)} {where}".strip())
    return "; ".join(f"{study.in_words(row)} {', '.join(parts)}" for row, parts in rows.items())


def _places(study: Study, cells: Sequence[CellTuning]) -> tuple[tuple[Any, Any], ...]:
    return tuple((c.row, c.column) for c in cells if (c.row, c.column) in study.groups)


def _row(grid: Grid, row: Any, cells: Sequence[GridCell], family: int) -> list[Finding]:
    sentences = []
    tested_pairs = [(c, c.baseline) for c in cells if c.baseline is not None and c.baseline.tested]
    claims = [(c, d) for c, d in tested_pairs if d.p < ALPHA or d.significant]
    for is_confounded in (False, True):
        part = [pair for pair in claims if _is_confounded(grid, row, pair[0]) == is_confounded]
        significant_pairs = [(c, d) for c, d in part if d.significant]
        if significant_pairs:
            sentences.append(_significant(grid, row, significant_pairs, family))
        suggestive_pairs = [(c, d) for c, d in part if not d.significant]
        if suggestive_pairs:
            sentences.append(_suggestive(grid, row, suggestive_pairs, family))
    undetected_pairs = [(c, d) for c, d in tested_pairs if d.p >= ALPHA and not d.significant]
    if undetected_pairs:
        sentences.append(_undetected(grid, row, undetected_pairs))
    return sentences + _untested(grid, row, cells)


def _significant(grid: Grid, row: Any, pairs: Pairs, family: int) -> Finding:
    """Write a sentence on where a row beats the baseline and where it falls behind."""
    name, base = _names(grid, row)
    is_higher_better = bool(grid.metric.higher_is_better)
    better_pairs = [(c, d) for c, d in pairs if (d.mean > 0) == is_higher_better]
    worse_pairs = [(c, d) for c, d in pairs if (d.mean > 0) != is_higher_better]
    parts = []
    if better_pairs:
        parts.append(f"{name} beats {base} {_sizes(grid, better_pairs)}")
    if worse_pairs:
        parts.append(
            f"{'it' if better_pairs else name} falls behind {base} {_sizes(grid, worse_pairs)}"
        )
    largest = p_words(max(d.p_corrected for _, d in pairs))
    p = largest if len(pairs) == 1 else f"each {largest.replace('=', '≤')}"
    correction = f" after Holm's correction for {family} comparisons" if family > 1 else ""
    text = f"{'; '.join(parts)} (95 % intervals, {_seeds(pairs)}; {p}{correction})."
    return _qualified(grid, row, pairs, text, "significant")


def _suggestive(grid: Grid, row: Any, pairs: Pairs, family: int) -> Finding:
    name, base = _names(grid, row)
    sizes = "; ".join(f"{_at(grid, [c])}{_signed(grid, d)}, {p_words(d.p)}" for c, d in pairs)
    text = (
        f"{name} differs from {base} {sizes} ({_seeds(pairs)}): below 0.05 alone, but not after "
        f"Holm's correction for {family} comparisons. More seeds could settle it."
    )
    return _qualified(grid, row, pairs, text, "suggestive")


def _undetected(grid: Grid, row: Any, pairs: Pairs) -> Finding:
    name, base = _names(grid, row)
    ends = [grid.metric.ends(difference) for _, difference in pairs]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    interval = "interval of the difference spans"
    if len(pairs) > 1:
        interval = "intervals of the differences span"
    where = _at(grid, [c for c, _ in pairs])
    text = (
        f"No significant difference between {name} and {base} {where}({_seeds(pairs)}): the 95 % "
        f"{interval} {_number(grid, low)} to {_number(grid, high)}{_unit(grid)}."
    )
    return _qualified(grid, row, pairs, text, "undetected")


def _untested(grid: Grid, row: Any, cells: Sequence[GridCell]) -> list[Finding]:
    """Name the cells whose difference from the baseline was not tested."""
    name, base = _names(grid, row)
    single_cells, apart_cells, identical_cells, equal_cells = [], [], [], []
    for cell in cells:
        against = grid.get(grid.baseline, cell.column)
        if cell.baseline is None or cell.baseline.tested or against is None:
            continue
        if grid.metric.worst and (cell.diverged or against.diverged):
            continue
        if cell.baseline.n > 1 and cell.baseline.low == cell.baseline.high == 0:
            identical_cells.append(cell)
        elif cell.baseline.n > 1:
            equal_cells.append(cell)
        elif cell.baseline.n == 1:
            single_cells.append(cell)
        elif cell.sample.n and against.sample.n:
            apart_cells.append(cell)
    texts = (
        (single_cells, f"{name} and {base} share one seed", ": no test is possible."),
        (apart_cells, f"{name} and {base} share no seed", ": they were not compared."),
        (identical_cells, f"{name} and {base} have equal values in each shared seed", "."),
        (equal_cells, f"{name} and {base} differ equally in each seed", ": no test is possible."),
    )
    return [
        Finding(f"{text} {_at(grid, group)}".rstrip() + end, "untested", _keys(group))
        for group, text, end in ((cells, text, end) for cells, text, end in texts if cells)
    ]


def _overall(grid: Grid) -> list[Finding]:
    """Write how likely, over all columns, a run of each row is to beat one of the baseline."""
    sentences = []
    for row, result in grid.improvements.items():
        if result.tasks < 2 or math.isnan(result.low):
            continue
        name, base = _names(grid, row)
        tasks = labels.several(grid.study.column_factor, result.tasks)
        cells = [
            cell
            for column in grid.study.columns
            if (cell := grid.get(row, column)) and grid.get(grid.baseline, column)
        ]
        if result.probability in (0.0, 1.0):
            p = _separation(grid, cells)
            side = "better" if result.probability else "worse"
            is_sure = p < ALPHA
            text = (
                f"Every run of {name} did {side} than every run of {base} at each of {tasks} "
                f"({p_words(p)}, exact test)"
                f"{'' if is_sure else ': too few runs to exclude chance'}."
            )
        else:
            is_sure = not result.low <= 0.5 <= result.high
            side = "more" if result.probability > 0.5 else "less"
            verdict = f"{name} is {side} likely to win" if is_sure else "no evidence either way"
            text = (
                f"P({name} beats {base}) = {result.probability:.2f} (95 % bootstrap interval "
                f"{result.low:.2f} to {result.high:.2f}) over {tasks}: {verdict}."
            )
        strength = "overall" if is_sure else "inconclusive"
        sentences.append(_qualified(grid, row, [(cell, None) for cell in cells], text, strength))
    return sentences


def _separation(grid: Grid, cells: Sequence[GridCell]) -> float:
    """Return the two-sided probability that chance alone separates the runs in all columns."""
    p = 2.0
    for cell in cells:
        base = grid.cells[grid.baseline, cell.column]
        if cell.sample.n and base.sample.n:
            p /= math.comb(cell.sample.n + base.sample.n, cell.sample.n)
    return p


def _qualified(
    grid: Grid, row: Any, pairs: Sequence[tuple[GridCell, Any]], text: str, strength: str
) -> Finding:
    """Return a finding that names other differences of its runs; confounds lower its strength."""
    cells = [cell for cell, _ in pairs]
    differences = grid.study.differing(row, grid.baseline, [cell.column for cell in cells])
    confounds = [text for condition, text in differences if condition.confounds]
    intended_texts = [text for condition, text in differences if condition.intended]
    if confounds:
        text += f" Confounded: the rows also differ in {join_names(confounds)}, "
        if strength in ("undetected", "inconclusive"):
            text += "which may hide a difference."
        else:
            text += f"so the difference cannot be attributed to the {grid.study.compared}."
        if strength in ("significant", "overall", "suggestive"):
            strength = "confounded"
    if intended_texts:
        text += f" The rows also differ in {join_names(intended_texts)}, as intended."
    text += _untuned(grid.study)
    return Finding(text, strength, _keys(cells))


def _is_confounded(grid: Grid, row: Any, cell: GridCell) -> bool:
    differences = grid.study.differing(row, grid.baseline, [cell.column])
    return any(condition.confounds for condition, _ in differences)


def _diverged(grid: Grid) -> list[Finding]:
    sentences = []
    for row in grid.study.rows:
        cells = [c for c in grid.cells.values() if c.row == row and c.diverged]
        if not cells:
            continue
        factor = labels.factor(grid.study.column_factor).lower() if grid.study.column_factor else ""
        counts = ", ".join(
            f"{c.diverged} of {c.sample.n + c.unvalued}"
            + (f" at {factor} {grid.study.column(c.column)}" if factor else "")
            for c in cells
        )
        text = f"Diverged runs of {grid.study.in_words(row)}: {counts}."
        sentences.append(Finding(text, "diverged", _keys(cells)))
    return sentences


def _power(grid: Grid, family: int) -> list[Finding]:
    """Note the smallest difference that can be significant with so few seeds."""
    counts = [c.baseline.n for c in grid.cells.values() if c.baseline and c.baseline.tested]
    if not counts or max(counts) > 9:
        return []
    n = max(set(counts), key=counts.count)
    looks = max(c.baseline.looks for c in grid.cells.values() if c.baseline and c.baseline.tested)
    ratio = float(t_quantile(1 - ALPHA / 2 / family / looks, n - 1)) / math.sqrt(n)
    return [
        Finding(
            f"With {n} seeds and {family} comparison{'s' if family > 1 else ''}, only differences "
            f"above {ratio:.1f} standard deviations (of the difference between seeds) can be "
            "significant.",
            "note",
        )
    ]


def _names(grid: Grid, row: Any) -> tuple[str, str]:
    return grid.study.in_words(row), grid.study.in_words(grid.baseline)


def _seeds(pairs: Pairs) -> str:
    counts = sorted({d.n for _, d in pairs})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _sizes(grid: Grid, pairs: Pairs) -> str:
    """Return ``at batch size 8 by 6.83 ± 0.24 points, at 16 by 3.47 ± 0.36``."""
    unit = f"{_unit(grid)} of {grid.metric.label.lower()}"
    sizes = []
    for place, (cell, difference) in enumerate(pairs):
        where = _at(grid, [cell])
        if place and grid.study.column_factor:
            where = f"at {grid.study.column(cell.column)} "
        size = grid.metric.difference(difference, sign=False)
        sizes.append(f"{where}by {size}{'' if place else unit}")
    return join_names(sizes)


def _at(grid: Grid, cells: Sequence[GridCell]) -> str:
    """Return ``at batch size 8 and 16 `` with a trailing space; empty without columns."""
    if not grid.study.column_factor:
        return ""
    names = [grid.study.column(cell.column) for cell in cells]
    return f"at {labels.factor(grid.study.column_factor).lower()} {join_names(names)} "


def _signed(grid: Grid, difference: Difference) -> str:
    return f"by {grid.metric.difference(difference)}{_unit(grid)}".replace("-", "−")


def _number(grid: Grid, value: float) -> str:
    """Return a difference with its sign."""
    return f"{value * grid.metric.scale:+.{grid.metric.digits}f}".replace("-", "−")


def _unit(grid: Grid) -> str:
    return f" {grid.metric.difference_unit}" if grid.metric.difference_unit else ""


def _keys(cells: Sequence[GridCell]) -> tuple[tuple[Any, Any], ...]:
    return tuple((cell.row, cell.column) for cell in cells)
