"""The rule of ``normbench sweep --until``: :class:`NarrowIntervals` checks each round of seeds.

Its intervals are those of the report on the same store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from normbench.config import Config
from normbench.errors import UserError, unknown
from normbench.report.frames import Frames, is_config, load, planned
from normbench.report.grid import build, default_baseline
from normbench.report.metrics import metric
from normbench.report.sequential import schedule
from normbench.report.study import Study, studies
from normbench.report.tuning import is_aside
from normbench.store.store import Store


class Look(NamedTuple):
    """The result of looking at a round: a line of text, and an entry for the sweep's record."""

    narrow: bool
    text: str
    facts: dict[str, Any]


class NarrowIntervals:
    """Add seeds until the interval of each difference from the baseline is narrow.

    Args:
        width: Half-width of the intervals, in the unit of the metric (points for accuracies).
        baseline: ``KEY=ROW``, such as ``norm=bn``, or only ROW; None for ``bn``.
        by: Rows and columns of the comparison; the key of ``baseline`` replaces the rows.
        metric_name: The metric to compare.
    """

    def __init__(
        self,
        width: float,
        baseline: str | None = None,
        by: Sequence[str] = ("norm", "batch"),
        metric_name: str = "test_acc",
    ) -> None:
        if not 0 < width < math.inf:
            raise UserError(f"--until must be a number above 0, got {width:g}")
        self._width = width
        self._metric = metric(metric_name)
        if self._metric.timed:
            raise UserError(f"--until cannot wait for {metric_name}: times are not tested")
        key, _, row = (baseline or "").rpartition("=")
        self._by = tuple(by)
        if key and key != self._by[0]:
            self._by = (key, *[other for other in self._by[1:] if other != key])
        self._row = row or None

    def baseline_runs(self, configs: Sequence[Config]) -> set[str]:
        frames = planned(config.to_dict() for config in configs)
        if self._by[0] not in frames.runs:
            raise unknown("key of --baseline", self._by[0], filter(is_config, frames.runs))
        names: set[str] = set()
        has_comparison = False
        for study in self._studies(frames):
            row = self._baseline(study)
            if row is not None:
                runs = study.runs
                names |= {configs[int(n)].run_name for n in runs.loc[runs["row"] == row, "name"]}
                has_comparison |= len(study.rows) > 1
        if not has_comparison:
            rows = sorted({str(row) for study in self._studies(frames) for row in study.rows})
            if self._row is not None and self._row not in rows:
                raise unknown("baseline of --until", self._row, rows)
            if len(rows) == 1:
                raise UserError(f"--until compares with a baseline: {rows[0]} is the only row")
            raise UserError(
                "--until needs a baseline in the grid and another row to compare with it: name "
                f"one of {', '.join(rows)} with --baseline"
            )
        return names

    def looks(self, first: int, most: int) -> tuple[int, ...]:
        return schedule(first, most)

    def look(self, store: Store, names: Sequence[str], looks: tuple[int, ...]) -> Look:
        frames = load(store)
        frames = frames.select(frames.runs["name"].isin(names) & ~is_aside(frames.runs))
        frames.runs["looks"] = " ".join(map(str, looks))
        comparisons: list[dict[str, Any]] = []
        for study in self._studies(frames):
            row = self._baseline(study)
            if row is None:
                continue
            for cell in build(study, self._metric, row).cells.values():
                if cell.baseline is None:
                    continue
                # With a diverged run there is no interval, and more seeds would not change that.
                is_diverged = math.isnan(cell.baseline.half_width)
                spread = cell.baseline.tested
                comparisons.append(
                    {
                        "study": study.title,
                        "row": str(cell.row),
                        "column": str(cell.column),
                        "n": cell.baseline.n,
                        "difference": cell.baseline.mean * self._metric.scale,
                        "half_width": None
                        if is_diverged or not spread
                        else cell.baseline.half_width * self._metric.scale,
                        "diverged": is_diverged,
                    }
                )
        return self._described(comparisons)

    def _described(self, comparisons: list[dict[str, Any]]) -> Look:
        intervals = [line for line in comparisons if line["half_width"] is not None]
        open_comparisons = [line for line in comparisons if not line["diverged"]]
        wide = [
            line
            for line in open_comparisons
            if line["half_width"] is None or line["half_width"] >= self._width
        ]
        unit = f" {self._metric.difference_unit}".rstrip()
        texts = [
            f"{len(open_comparisons) - len(wide)} of {len(open_comparisons)} intervals are "
            f"narrower than ±{self._width:g}{unit}"
        ]
        if intervals:
            widest = max(intervals, key=lambda line: line["half_width"])
            place = f"{widest['row']} {widest['column']}".strip()
            half = widest["half_width"]
            limit = (self._metric.high - self._metric.low) * self._metric.scale
            size = f"wider than ±{limit:g}" if half > limit else f"±{half:.{self._metric.digits}f}"
            texts.append(f"the widest is {size} ({place})")
        if missing_count := len(comparisons) - len(open_comparisons):
            texts.append(f"{missing_count} without an interval, because a run diverged")
        text = ", ".join(texts)
        facts = {
            "width": self._width,
            "baseline": self._row or "bn",
            "by": list(self._by),
            "metric": self._metric.name,
            "text": text,
            "comparisons": comparisons,
        }
        return Look(not wide, text, facts)

    def _studies(self, frames: Frames) -> list[Study]:
        return studies(frames, self._by)

    def _baseline(self, study: Study) -> Any:
        if self._row is not None and self._row not in map(str, study.rows):
            return None
        return default_baseline(study, self._row)
