"""The content of a report before it is written: :func:`sections` builds one for each study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pandas as pd

from normbench.errors import UserError, unknown
from normbench.formats import counted
from normbench.report import tables, tuning, tuning_tables, where
from normbench.report.caveats import allowing, join_names, words
from normbench.report.findings import Finding, findings
from normbench.report.frames import Frames
from normbench.report.grid import Grid, build, default_baseline
from normbench.report.metrics import METRICS, Metric, find_metric, listed
from normbench.report.sorting import choose_rows, parse_rows, sort_rows
from normbench.report.study import Study, parse_by, studies
from normbench.report.table import Table
from normbench.report.venues import DEFAULT, VENUES, Venue, find_venue, parse_formats
from normbench.report.where import parse as parse_filter

if TYPE_CHECKING:
    from normbench.report.figures.style import Drawing

DRAWN = 12
"""Maximum number of studies with figures; tables are written for all."""


@dataclass
class Section:
    """The tables and findings of one study; figures are added later."""

    study: Study
    grid: Grid
    tables: list[Table]
    findings: list[Finding]
    drawings: list[Drawing] = field(default_factory=list)

    @property
    def main(self) -> list[Table]:
        """The tables shown in the terminal."""
        return self.tables[:2]


@dataclass(frozen=True)
class Request:
    """The options of a report."""

    where: str | None = None
    by: tuple[str, ...] = ("norm", "batch")
    metric: str = "test_acc"
    baseline: str | None = None
    target: float | None = None
    allowed: tuple[str, ...] = ()
    superseded: bool = False
    sort: str | None = None
    reverse: bool = False
    against: str | None = None
    rows: tuple[str, ...] = ()
    style: str = DEFAULT
    formats: tuple[str, ...] = VENUES[DEFAULT].formats

    @property
    def venue(self) -> Venue:
        """The venue of the figures and LaTeX tables."""
        return VENUES[self.style]


def request(
    where: str | None,
    by: str | Sequence[str],
    metric_name: str,
    baseline: str | None,
    target: float | None,
    allowed: str | Sequence[str] = (),
    superseded: bool = False,
    sort: str | None = None,
    reverse: bool = False,
    against: str | None = None,
    rows: str | Sequence[str] = (),
    style: str = DEFAULT,
    formats: str | None = None,
) -> Request:
    """Collect the options of a report and check them as far as possible without the store.

    Raises:
        UserError: The metric, the style or a format is unknown, the filter cannot be parsed, the
            target is not an accuracy, or both ``rows`` and another order are requested.
    """
    if "/" not in metric_name:  # all but the values of probes, which the store's runs decide
        find_metric(metric_name, METRICS)
    if where is not None:
        parse_filter(where)
    if target is not None:
        tables.check_target(target)
    by, allowed_keys, names = parse_by(by), parse_by(allowed), parse_rows(rows)
    if names and (sort is not None or reverse):
        option = "--sort" if sort is not None else "--reverse"
        raise UserError(f"--rows gives the order of the rows: leave {option} out")
    file_formats = parse_formats(formats, find_venue(style))
    return Request(
        where=where,
        by=by,
        metric=metric_name,
        baseline=baseline,
        target=target,
        allowed=allowed_keys,
        superseded=superseded,
        sort=sort,
        reverse=reverse,
        against=against,
        rows=names,
        style=style,
        formats=file_formats,
    )


def choose(frames: Frames, asked: Request) -> tuple[Frames, list[str]]:
    """Apply filter and target; return the runs with notes.

    Notes name values in the filter that no run has, and superseded runs, which stay in the frames
    but are left out of tables unless requested.

    Raises:
        UserError: The filter cannot be parsed, or the target is invalid.
    """
    notes: list[str] = []
    if asked.target is not None:
        frames = tables.add_target(frames, asked.target)
    if asked.where is not None:
        selection = where.select(asked.where, frames.runs)
        notes += selection.notes
        frames = frames.select(selection.mask)
    if asked.superseded:
        frames = tuning.with_superseded(frames)
    return frames, notes + tuning.superseded_note(frames)


def sections(frames: Frames, asked: Request) -> tuple[list[Section], list[str]]:
    """Split the runs into studies and build the tables and findings of each; also return notes.

    Raises:
        UserError: A column of ``by`` is unknown, no study has the baseline or one of the rows, or
            the metric needs a target.
    """
    frames, metric = frames.with_metric(asked.metric)
    study_list = studies(frames, asked.by, asked.allowed)
    if asked.sort is not None or asked.reverse:
        study_list = [sort_rows(study, asked.sort, asked.reverse, metric) for study in study_list]
    if asked.rows and study_list:
        study_list = choose_rows(study_list, asked.rows)
    notes: list[str] = []
    if asked.baseline is not None and study_list:
        rows = {str(row) for study in study_list for row in study.rows}
        if asked.baseline not in rows:
            raise unknown("baseline", asked.baseline, rows)
    result = []
    notes += _trials_alone(frames)
    for study in study_list:
        has_baseline = asked.baseline is None or asked.baseline in map(str, study.rows)
        baseline = default_baseline(study, asked.baseline) if has_baseline else None
        if not has_baseline:
            notes.append(f"{study.title}: no run of the baseline {asked.baseline!r}")
        result.append(_section(study, metric, baseline, asked.target))
        notes += _confounds(study)
    return result, notes


def _trials_alone(frames: Frames) -> list[str]:
    """Return a note if only tuning trials and superseded runs are left to report."""
    is_aside = tuning.is_aside(frames.runs)
    if not frames.tuned or not len(is_aside) or not is_aside.all():
        return []
    superseded = tuning.is_superseded(frames.runs)
    kinds = "superseded" if superseded.all() else "trials of tuning"
    if superseded.any() and not superseded.all():
        kinds = "trials of tuning or superseded"
    return [
        f"all {counted(len(is_aside), 'run')} are {kinds}, shown as ordinary runs: there are no "
        "final runs"
    ]


def _confounds(study: Study) -> list[str]:
    """Tell the user how to mark the confounds of a study as intended."""
    keys = [condition.key for condition in study.confounds]
    if not keys:
        return []
    names = join_names([words(key) for key in keys])
    return [
        f"{study.title}: rows also differ in {names}; if that is intended, add "
        f"--allow-confound {allowing(keys)}"
    ]


def _section(study: Study, metric: Metric, baseline: object, target: float | None) -> Section:
    grid = build(study, metric, baseline)
    listing = [tuning_tables.with_chosen(tables.matrix(grid), study)]
    if metric.at_best is not None:
        listing.append(tables.matrix(build(study, metric.at_best, baseline)))
    if baseline is not None and len(study.rows) > 1:
        listing += [tables.differences(grid), tables.comparisons(grid)]
        listing += [tables.improvement(grid)] if grid.improvements else []
    listing += tuning_tables.tables(study)
    selection = tables.selection(study)
    listing += [selection] if selection else []
    for other_metric in [*(listed("target") if target is not None else []), *listed("report")]:
        if other_metric is not metric and _present(study.runs, other_metric.name):
            listing.append(
                _titled(tables.matrix(build(study, other_metric)), other_metric.name, target)
            )
    shifts = tables.estimation_shift(study)
    listing += [shifts] if shifts else []
    listing.append(tables.summary(study))
    return Section(study, grid, listing, findings(grid))


def _present(runs: pd.DataFrame, name: str) -> bool:
    return name.endswith("_to_target") or bool(runs[name].notna().any())


def _titled(table: Table, name: str, target: float | None) -> Table:
    """Name the target in the title of a table, and note the runs that did not reach it."""
    if target is None or not name.endswith("_to_target"):
        return table
    note = (
        f"Target: validation accuracy of {100 * target:g} %, checked after each epoch. Runs that "
        "never reach it have no value; the mean is over those that do."
    )
    title = table.title.replace("the target", f"{100 * target:g} % validation accuracy")
    return replace(table, title=title, notes=[*table.notes, note])
