"""What a report says, before it is written: for each study its tables, figures and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from normbench.errors import unknown
from normbench.report import grid as improvement
from normbench.report import names as labels
from normbench.report import tables, where
from normbench.report import tables as lists
from normbench.report import tables as probed
from normbench.report import tables as targets
from normbench.report.caveats import allowing, listed, words
from normbench.report.findings import Finding, findings
from normbench.report.frames import Frames
from normbench.report.grid import Grid, build, default_baseline
from normbench.report.metrics import METRICS, Metric, metric
from normbench.report.references import matching
from normbench.report.study import Study, parse_by, studies
from normbench.report.table import Table
from normbench.report.where import parse as parse_filter

if TYPE_CHECKING:
    from normbench.report.figures.style import Drawing
    from normbench.report.statistics import Improvement

AT_BEST = {
    "test_acc": "best_val_test_acc",
    "test_err": "best_val_test_err",
    "test_loss": "best_val_test_loss",
}
"""Metrics of the final epoch, and the same at the best validation epoch."""

_MIRRORED = {"test_acc": "test_err", "val_acc": "val_err"}
_CURVES = (
    ("val_acc", "train_acc", False),
    ("val_loss", "train_loss", True),
    ("grad_norm", "", True),
)

DRAWN = 12
"""Studies that get figures; the tables of all are written."""


@dataclass
class Section:
    """One study of a report."""

    study: Study
    grid: Grid
    tables: list[Table]
    findings: list[Finding]
    chances: dict[Any, Improvement]
    drawings: list[Drawing] = field(default_factory=list)

    @property
    def main(self) -> list[Table]:
        """The tables that a terminal shows."""
        return self.tables[:2]


@dataclass(frozen=True)
class Request:
    """The options of a report, checked as far as can be without the store."""

    where: str | None = None
    by: tuple[str, ...] = ("norm", "batch")
    metric: str = "test_acc"
    baseline: str | None = None
    target: float | None = None
    allowed: tuple[str, ...] = ()


def request(
    where: str | None,
    by: str | Sequence[str],
    metric_name: str,
    baseline: str | None,
    target: float | None,
    allowed: str | Sequence[str] = (),
) -> Request:
    """Gather what was asked for, and check it as far as can be without the store.

    Raises:
        UserError: The metric is unknown, the filter cannot be read, or the target is no accuracy.
    """
    metric(metric_name)
    if where is not None:
        parse_filter(where)
    if target is not None:
        targets.check(target)
    return Request(where, parse_by(by), metric_name, baseline, target, parse_by(allowed))


def chosen(frames: Frames, asked: Request) -> tuple[Frames, list[str]]:
    """Return the runs that were asked for, and notes on what was asked for and is not there.

    Raises:
        UserError: The filter or the target cannot be read.
    """
    notes: list[str] = []
    if asked.target is not None:
        frames = targets.add(frames, asked.target)
    if asked.where is not None:
        kept = where.select(asked.where, frames.runs)
        notes += kept.notes
        frames = frames.select(kept.kept)
    return frames, notes


def sections(frames: Frames, asked: Request) -> tuple[list[Section], list[str]]:
    """Part the runs into studies and make the tables and findings of each; figures are separate.

    Raises:
        UserError: A column of ``by`` is unknown, no study has the baseline, or the metric needs
            a target.
    """
    found = studies(frames, asked.by, asked.allowed)
    shown = metric(asked.metric, frames.runs.columns)
    notes: list[str] = []
    if asked.baseline is not None and found:
        rows = {str(row) for study in found for row in study.rows}
        if asked.baseline not in rows:
            raise unknown("baseline", asked.baseline, rows)
    made = []
    for study in found:
        has = asked.baseline is None or asked.baseline in map(str, study.rows)
        baseline = default_baseline(study, asked.baseline) if has else None
        if not has:
            notes.append(f"{study.title}: no run of the baseline {asked.baseline!r}")
        made.append(_section(study, shown, baseline, asked.target))
        notes += _confounds(study)
    return made, notes


def draw(section: Section) -> list[Drawing]:
    """Draw the figures of a study, the main ones first."""
    from normbench.report.figures import (
        batch,
        curves,
        depth,
        heatmap,
        layers,
        percentiles,
        profile,
        rate,
        smoothness,
        time,
    )

    study, grid = section.study, section.grid
    shown, runs = grid.metric, study.runs
    known = matching(runs) if shown.name in ("test_acc", "test_err") else []
    drawings = [batch.draw(grid, known)]
    if shown.name in _MIRRORED:
        drawings.append(batch.draw(build(study, METRICS[_MIRRORED[shown.name]]), known))
    compared = grid.baseline is not None and shown.higher_is_better is not None
    if compared and any(c.baseline is not None and c.baseline.n for c in grid.cells.values()):
        drawings.append(heatmap.draw(grid))
    seconds = build(study, METRICS["train_seconds"])
    timed = any(cell.sample.n for cell in seconds.cells.values())
    if timed and shown.name != "train_seconds":
        drawings.append(time.draw(grid, seconds))
    if runs["images_per_s"].notna().any() and shown.name != "images_per_s":
        drawings.append(batch.draw(build(study, METRICS["images_per_s"]), zero=True))
    if compared and len(study.columns) > 1:
        chances = section.chances
        drawings += [profile.draw_improvements(grid, chances)] if chances else []
    if shown.higher_is_better is not None and len(study.rows) > 1:
        shares = improvement.profiles(grid)
        drawings += [profile.draw_profiles(grid, shares)] if shares else []
    ended = runs.loc[runs["status"].isin(["finished", "diverged"]), "name"]
    drawn = study.curves[study.curves["run"].isin(ended)]
    if drawn["lr"].notna().any():
        drawings.append(rate.draw(study))
    for name, second, log in _CURVES:
        if drawn[name].notna().any():
            drawings.append(curves.draw(study, name, second, log=log))
    for name, (_, log) in curves.PROBED.items():
        if name in drawn and drawn[name].notna().any():
            drawings.append(curves.draw(study, name, log=log))
    drawings += smoothness.draw(study) + layers.draw(study)
    drawings += percentiles.draw(study) + depth.draw(study)
    # Names of layers that differ in case or in punctuation alone would share a file.
    slugs = labels.slugs([each.slug for each in drawings], [each.caption for each in drawings])
    for drawing, slug in zip(drawings, slugs, strict=True):
        drawing.slug = slug
    return drawings


def _confounds(study: Study) -> list[str]:
    """Say how to name the confounds of a study as intended."""
    keys = [condition.key for condition in study.confounds]
    if not keys:
        return []
    return [
        f"{study.title}: rows also differ in {listed([words(key) for key in keys])}; if that is "
        f"intended, add --allow-confound {allowing(keys)}"
    ]


def _section(study: Study, shown: Metric, baseline: object, target: float | None) -> Section:
    grid = build(study, shown, baseline)
    chances = improvement.improvements(grid)
    made = [tables.matrix(grid)]
    if shown.name in AT_BEST:
        made.append(tables.matrix(build(study, METRICS[AT_BEST[shown.name]], baseline)))
    if baseline is not None and len(study.rows) > 1:
        made += [tables.differences(grid), tables.comparisons(grid)]
        made += [tables.improvement(grid, chances)] if chances else []
    selection = lists.selection(study)
    made += [selection] if selection else []
    others = ["val_acc", "gap", "images_per_s", "train_seconds"]
    if target is not None:
        others = ["steps_to_target", "epochs_to_target", "seconds_to_target", *others]
    for name in others:
        if name != shown.name and _present(study.runs, name):
            made.append(_titled(tables.matrix(build(study, METRICS[name])), name, target))
    shifts = probed.estimation_shift(study)
    made += [shifts] if shifts else []
    made.append(lists.summary(study))
    return Section(study, grid, made, findings(grid, chances), chances)


def _present(runs: pd.DataFrame, name: str) -> bool:
    return name.endswith("_to_target") or bool(runs[name].notna().any())


def _titled(table: Table, name: str, target: float | None) -> Table:
    """Say in the table which target was to be reached, and who is missing."""
    if target is None or not name.endswith("_to_target"):
        return table
    note = (
        f"Target: validation accuracy of {100 * target:g} %, looked at after each epoch. Runs "
        "that never reach it have no value; the mean is over those that do."
    )
    return Table(
        table.slug,
        table.title.replace("the target", f"{100 * target:g} % validation accuracy"),
        table.headers,
        table.rows,
        [*table.notes, note],
        table.data,
        table.span,
    )
