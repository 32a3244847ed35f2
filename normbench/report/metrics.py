"""The metrics of a report: :data:`METRICS` defines the name, scale and tables of each.

Every list of metrics in the report comes from METRICS: the columns of the data frames, the tables,
the comparison of two runs, the curves. A new metric needs one entry there, and the key that the
training session records. :func:`known_metrics` adds the values measured by probes, and
:func:`find_metric` parses a metric as a user types it: ``test_acc``, or a metric of epochs with a
reduction over epochs, ``grad_norm:max``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from normbench.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from normbench.report.statistics import Difference, Sample


@dataclass(frozen=True)
class Metric:
    """A column of the data frames, and how tables and figures show it.

    Attributes:
        name: The column in the runs frame; for a metric of epochs also in the curves frame,
            unless ``source`` names another.
        label: Text for an axis or a heading, without the unit.
        unit: Unit after scaling, such as ``%``; empty for a pure number.
        scale: Factor from stored values to values in ``unit``.
        digits: Digits after the decimal point.
        higher_is_better: None if neither direction is better.
        worst: Value of a diverged run: ``chance`` for an accuracy, ``1 - chance`` for an error;
            None if a diverged run has no value, so that it is left out and counted.
        low, high: Limits of the possible values, in stored units; intervals are cut there.
        timed: Whether the value depends on the machine and its load, so that it is not tested.
        summary: Whether it is a key of ``summary.json``.
        epoch: Whether each line of ``metrics.jsonl`` has it.
        source: The column of the curves frame that ``over`` reduces, if it is not ``name``.
        over: The reduction over epochs, such as ``max`` (:data:`OVER_EPOCHS`); empty for a value
            that the run itself recorded.
        of, formula: Names of the metrics that it is computed from, and the function of their
            values.
        curve: Axis scale in the figure against epochs, ``linear`` or ``log``; empty if there is no
            such figure.
        heading: Its heading, with the unit, in tables that list cells or runs.
        tables: The tables that list it, separated by spaces: ``cells`` (all cells of a study),
            ``runs`` (all runs), ``report`` (its own table in each report), ``diff`` (two runs),
            ``target`` (its own table if a target is given).
    """

    name: str
    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    higher_is_better: bool | None = None
    worst: str | None = None
    low: float = -math.inf
    high: float = math.inf
    timed: bool = False
    summary: bool = False
    epoch: bool = False
    source: str = ""
    over: str = ""
    of: tuple[str, ...] = ()
    formula: Callable[..., float] | None = None
    curve: str = ""
    heading: str = ""
    tables: str = ""

    @property
    def column(self) -> str:
        """The column of the curves frame."""
        return self.source or self.name

    @property
    def slug(self) -> str:
        """The name for files: ``gradients-angle-max`` for ``probe/gradients/angle:max``."""
        return re.sub(r"[^\w.-]+", "-", self.name.removeprefix("probe/"))[:100]

    @property
    def of_run(self) -> bool:
        """Whether a run has a single value of it, so that runs can be compared by it."""
        return self.summary or not self.epoch

    @property
    def at_best(self) -> Metric | None:
        """This test metric at the best validation epoch; None for all other metrics."""
        return METRICS.get(f"best_val_{self.name}") if self.name.startswith("test_") else None

    @property
    def complement(self) -> Metric | None:
        """The error corresponding to an accuracy; None for all other metrics."""
        return next((other for other in METRICS.values() if other.of == (self.name,)), None)

    @property
    def in_training(self) -> Metric | None:
        """This validation metric on training images, drawn in the same figure."""
        split, _, quantity = self.name.partition("_")
        return METRICS.get(f"train_{quantity}") if split == "val" else None

    def derive(self, values: Mapping[str, Any]) -> float | None:
        """Compute the metric from others, by name; None if one of them has no value."""
        inputs = [values.get(name) for name in self.of]
        return None if self.formula is None or None in inputs else self.formula(*inputs)

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: points if the value is a percentage."""
        return "points" if self.unit == "%" else self.unit

    @property
    def axis(self) -> str:
        """The axis label, with the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def show(self, value: float) -> str:
        """Format a stored value in the unit of the metric, without the unit."""
        return f"{value * self.scale:.{self.digits}f}"

    def within(self, sample: Sample) -> Sample:
        """Return the sample with its interval cut at the limits of the metric."""
        return replace(sample, low=max(sample.low, self.low), high=min(sample.high, self.high))

    def cuts(self, sample: Sample) -> bool:
        """Return whether the interval of a sample exceeds a limit of the metric."""
        half = sample.half_width
        return sample.mean - half < self.low or sample.mean + half > self.high

    def by_ends(self, mean: float, half: float) -> bool:
        """Return whether an interval is written by its ends, cut at the limits of the metric.

        This applies to intervals that exceed a limit. For a percentage, whose limits are obvious,
        it applies only to intervals wider than the full scale.

        Args:
            mean: The center of the interval, in stored units.
            half: Its half-width.
        """
        if self.unit == "%":
            return 2 * half > self.high - self.low
        return mean - half < self.low or mean + half > self.high

    def estimate(self, sample: Sample) -> str:
        """Format a mean with its interval: ``96.20 ± 0.41``, or ``54.86 [0.00, 100.00]``."""
        return self.around(sample.mean, sample.half_width)

    def around(self, mean: float, half: float) -> str:
        """Format a mean with the half-width of its interval, as :meth:`estimate` does.

        Args:
            mean: The mean, in stored units.
            half: The half-width of its interval; NaN if there is none.
        """
        text = self.show(mean)
        if math.isnan(half):
            return text
        if self.by_ends(mean, half):
            low, high = max(mean - half, self.low), min(mean + half, self.high)
            return f"{text} [{self.show(low)}, {self.show(high)}]"
        return f"{text} ± {self.show(half)}"

    def ends(self, found: Difference) -> tuple[float, float]:
        """Return the interval of a difference, cut at the largest possible difference."""
        limit = self.high - self.low
        return max(found.low, -limit), min(found.high, limit)

    def difference(self, found: Difference, sign: bool = True) -> str:
        """Format a difference with its interval, if there is one, as ``+1.20 ± 0.41``.

        Two accuracies differ by at most 100 points. An interval that exceeds this is written by its
        ends, ``+12.00 [-100.00, +80.00]``.

        Args:
            found: The difference.
            sign: False for the magnitude without a sign, as ``1.20 ± 0.41``.
        """
        turn = -1.0 if not sign and found.mean < 0 else 1.0
        plus = "+" if sign else ""

        def show(value: float) -> str:
            return f"{value * self.scale:{plus}.{self.digits}f}"

        text = show(turn * found.mean)
        if not found.half_width >= 0:
            return text
        ends = self.ends(found)
        if ends == (found.low, found.high):
            return f"{text} ± {self.show(found.half_width)}"
        low, high = sorted(turn * end for end in ends)
        return f"{text} [{show(low)}, {show(high)}]"


def _accuracy(name: str, label: str, **options: Any) -> Metric:
    limits = {"worst": "chance", "low": 0.0, "high": 1.0}
    return Metric(name, label, "%", 100.0, 2, True, **limits, summary=True, **options)


def _error(name: str, label: str) -> Metric:
    accuracy = (name.removesuffix("err") + "acc",)
    limits = {"worst": "1 - chance", "low": 0.0, "high": 1.0}
    return Metric(name, label, "%", 100.0, 2, False, **limits, of=accuracy, formula=_complement)


def _complement(accuracy: float) -> float:
    return 1.0 - accuracy


def _loss(name: str, label: str, **options: Any) -> Metric:
    return Metric(name, label, "", 1.0, 4, False, low=0.0, summary=True, **options)


def _timed(name: str, label: str, unit: str, digits: int, higher: bool, **options: Any) -> Metric:
    return Metric(name, label, unit, 1.0, digits, higher, low=0.0, timed=True, **options)


def _to_target(name: str, label: str, digits: int) -> Metric:
    return Metric(name, label, "", 1.0, digits, False, low=0.0, tables="target")


def _of_epoch(name: str, label: str, unit: str = "", **options: Any) -> Metric:
    return Metric(name, label, unit, epoch=True, **options)


_AT_BEST = "at the best validation epoch"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _accuracy("test_acc", "Test accuracy", heading="Test (%)", tables="cells runs diff"),
        _accuracy(
            "best_val_test_acc",
            f"Test accuracy {_AT_BEST}",
            heading="Test, best val. epoch (%)",
            tables="cells runs diff",
        ),
        _accuracy(
            "val_acc",
            "Validation accuracy",
            epoch=True,
            curve="linear",
            heading="Val. (%)",
            tables="cells runs diff report",
        ),
        _accuracy(
            "train_acc", "Training accuracy", epoch=True, heading="Train (%)", tables="runs diff"
        ),
        _accuracy("best_val_acc", "Best validation accuracy"),
        _error("test_err", "Test error"),
        _error("best_val_test_err", f"Test error {_AT_BEST}"),
        _error("val_err", "Validation error"),
        _loss("test_loss", "Test loss", tables="diff"),
        _loss("val_loss", "Validation loss", epoch=True, curve="log", tables="diff"),
        _loss("train_loss", "Training loss", epoch=True, tables="diff"),
        _loss("best_val_test_loss", f"Test loss {_AT_BEST}"),
        Metric(
            "gap",
            "Generalization gap",
            "points",
            100.0,
            low=-1.0,
            high=1.0,
            of=("train_acc", "test_acc"),
            formula=operator.sub,
            heading="Gap (points)",
            tables="cells diff report",
        ),
        Metric(
            "best_val_epoch",
            "Best validation epoch",
            digits=1,
            low=0.0,
            summary=True,
            tables="diff",
        ),
        _to_target("steps_to_target", "Steps to the target", 0),
        _to_target("epochs_to_target", "Epochs to the target", 1),
        _timed("seconds_to_target", "Training time to the target", "s", 1, False, tables="target"),
        _timed(
            "images_per_s",
            "Throughput",
            "images/s",
            0,
            True,
            summary=True,
            epoch=True,
            heading="Images/s",
            tables="cells runs diff report",
        ),
        _timed(
            "train_seconds",
            "Training time",
            "s",
            1,
            False,
            summary=True,
            epoch=True,
            heading="Training (s)",
            tables="cells runs diff report",
        ),
        _timed("wall_seconds", "Wall time", "s", 1, False, summary=True, tables="diff"),
        Metric("parameters", "Parameters", digits=0, low=0.0, summary=True, tables="diff"),
        _of_epoch("lr", "Learning rate", digits=4, low=0.0, curve="linear"),
        _of_epoch("grad_norm", "Gradient norm", digits=3, low=0.0, curve="log"),
        _of_epoch("grad_norm_max", "Largest gradient norm", digits=3, low=0.0),
        _of_epoch("eval_seconds", "Evaluation time", "s", digits=1, low=0.0),
    )
}
"""All metrics by name, in the order of tables and figures."""


def listed(table: str) -> list[Metric]:
    """Return the metrics that a kind of table lists (:attr:`Metric.tables`)."""
    return [metric for metric in METRICS.values() if table in metric.tables.split()]


OVER_EPOCHS = ("last", "best", "mean", "min", "max")
"""Reductions of a run's values over epochs."""

_WORDS = {
    "last": "{}, last epoch",
    "best": "{}, best epoch",
    "mean": "{}, mean over epochs",
    "min": "{}, smallest of all epochs",
    "max": "{}, largest of all epochs",
}


def known_metrics(
    columns: Iterable[str], described: Mapping[str, Mapping[str, Any]]
) -> dict[str, Metric]:
    """Return METRICS plus a metric of epochs for each value measured by a probe.

    Args:
        columns: The columns of the curves frame; those of probes are ``probe/<probe>/<name>``.
        described: Names, scales and drawing options of probe values, by column or by a pattern
            such as ``probe/activations/*/p50`` (:class:`normbench.engine.observer.ProbeValue`).
    """
    metrics = dict(METRICS)
    for column in columns:
        if column.startswith("probe/") and column not in metrics:
            metrics[column] = _of_probe(column, described)
    return metrics


def _of_probe(column: str, displays: Mapping[str, Mapping[str, Any]]) -> Metric:
    facts = displays.get(column)
    if facts is None:
        matches = (displays[pattern] for pattern in displays if fnmatchcase(column, pattern))
        facts = next(matches, None)
    _, probe, name = column.split("/", 2)
    layer = name.rpartition("/")[0]
    if facts is None:
        lists = any(pattern.startswith(f"probe/{probe}/") for pattern in displays)
        # Values of single layers are not drawn: there would be a figure for every layer.
        curve = "" if lists or layer else "linear"
        return _of_epoch(column, f"{name} ({probe})", digits=3, curve=curve)
    label, percent = facts["label"], facts.get("unit") == "%"
    return _of_epoch(
        column,
        f"{label} of {layer}" if layer and column not in displays else label,
        facts.get("unit", ""),
        scale=facts.get("scale", 1.0),
        digits=facts.get("digits", 3),
        higher_is_better=facts.get("higher_is_better"),
        curve=facts.get("curve", ""),
        low=0.0 if percent else -math.inf,
        high=100.0 / facts.get("scale", 1.0) if percent else math.inf,
    )


def find_metric(name: str, known: Mapping[str, Metric], columns: Collection[str] = ()) -> Metric:
    """Return the metric of runs that a user names.

    Args:
        name: A metric of runs, or a metric of epochs followed by ``:`` and one of OVER_EPOCHS
            (default: the last epoch's value). The prefix ``probe/`` may be omitted.
        known: All metrics, from :func:`known_metrics`.
        columns: Columns of the runs and curves frames; if given, one of them must be the metric's.

    Raises:
        UserError: There is no such metric (the message suggests the nearest), or the best epoch is
            requested but neither direction is better.
    """
    base, colon, reduction = name.rpartition(":")
    if not colon:
        base, reduction = name, ""
    if base not in known and f"probe/{base}" in known:
        base = f"probe/{base}"
    column_names = set(columns)
    options = [m.name for m in known.values() if not column_names or m.name in column_names]
    if base not in options:
        raise unknown("metric", base, options, see="normbench report --metrics")
    metric = known[base]
    if not colon and metric.of_run:
        return metric
    reduction = reduction or "last"
    if reduction not in OVER_EPOCHS:
        raise unknown(f"value of {base} over epochs", reduction, OVER_EPOCHS)
    if not metric.epoch:
        raise UserError(
            f"metric {base} has one value per run, not per epoch: leave out :{reduction}"
        )
    if reduction == "best" and metric.higher_is_better is None:
        raise UserError(f"metric {base} has no better direction: use {base}:min or {base}:max")
    return replace(
        metric,
        name=f"{base}:{reduction}",
        label=_WORDS[reduction].format(metric.label),
        source=base,
        over=reduction,
        epoch=False,
        summary=False,
        curve="",
        heading="",
        tables="",
    )


def over_epochs(metric: Metric, curves: pd.DataFrame) -> pd.Series:
    """Return the value of a metric such as ``grad_norm:max`` for each run, by the run's name."""
    values = curves.groupby("run", sort=False)[metric.source]
    reduction = metric.over
    if reduction == "best":
        reduction = "max" if metric.higher_is_better else "min"
    return getattr(values, reduction)()  # these skip epochs without a value


def metric(name: str) -> Metric:
    """Return the metric of runs with that name in METRICS.

    Raises:
        UserError: There is no such metric; the message suggests the nearest.
    """
    options = [candidate.name for candidate in METRICS.values() if candidate.of_run]
    if name not in options:
        raise unknown("metric", name, options)
    return METRICS[name]
