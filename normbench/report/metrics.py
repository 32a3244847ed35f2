"""The numbers a report can be about: how each is named, scaled, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from normbench.errors import unknown

if TYPE_CHECKING:
    from normbench.report.statistics import Sample


@dataclass(frozen=True)
class Metric:
    """A column of the runs frame, as tables and figures show it.

    Attributes:
        name: The column in the runs frame.
        label: Words for an axis or a heading, unit not included.
        unit: Unit after scaling, as ``%``; empty for a pure number.
        scale: What a stored value is multiplied by to be shown in ``unit``.
        digits: Digits after the decimal point.
        higher_is_better: None where neither direction is better.
        worst: Value that a diverged run enters with; ``chance`` for an accuracy, ``1 - chance``
            for an error, None where a diverged run has no value and is left out, counted.
        low, high: Limits of the possible values, in stored units; intervals end there.
        timed: Whether the machine and its load decide the value, so that no test is made.
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

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: points, where the value is a percentage."""
        return "points" if self.unit == "%" else self.unit

    @property
    def axis(self) -> str:
        """The label of an axis, with the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def show(self, value: float) -> str:
        """Format a stored value in the unit of the metric, without the unit."""
        return f"{value * self.scale:.{self.digits}f}"

    def within(self, sample: Sample) -> Sample:
        """Return the sample with its interval cut at the limits of the metric."""
        return replace(sample, low=max(sample.low, self.low), high=min(sample.high, self.high))

    def cuts(self, sample: Sample) -> bool:
        """Return whether the interval of a sample would pass a limit of the metric."""
        half = sample.half_width
        return sample.mean - half < self.low or sample.mean + half > self.high

    def estimate(self, sample: Sample) -> str:
        """Format a mean with its interval, if there is one, as ``96.20 ± 0.41``.

        An interval that would pass a limit is written by its ends, ``52 [0, 118]``; not that of a
        percentage, whose limits every reader knows.
        """
        mean = self.show(sample.mean)
        if math.isnan(sample.half_width):
            return mean
        if self.unit != "%" and self.cuts(sample):
            return f"{mean} [{self.show(sample.low)}, {self.show(sample.high)}]"
        return f"{mean} ± {self.show(sample.half_width)}"


def _accuracy(name: str, label: str) -> Metric:
    return Metric(name, label, "%", 100.0, 2, True, "chance", 0.0, 1.0)


def _error(name: str, label: str) -> Metric:
    return Metric(name, label, "%", 100.0, 2, False, "1 - chance", 0.0, 1.0)


def _loss(name: str, label: str) -> Metric:
    return Metric(name, label, "", 1.0, 4, False, low=0.0)


def _timed(name: str, label: str, unit: str, digits: int, higher: bool) -> Metric:
    return Metric(name, label, unit, 1.0, digits, higher, low=0.0, timed=True)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _accuracy("test_acc", "Test accuracy"),
        _accuracy("val_acc", "Validation accuracy"),
        _accuracy("train_acc", "Training accuracy"),
        _accuracy("best_val_acc", "Best validation accuracy"),
        _accuracy("best_val_test_acc", "Test accuracy at the best validation epoch"),
        _error("test_err", "Test error"),
        _error("val_err", "Validation error"),
        _error("best_val_test_err", "Test error at the best validation epoch"),
        _loss("test_loss", "Test loss"),
        _loss("val_loss", "Validation loss"),
        _loss("train_loss", "Training loss"),
        _loss("best_val_test_loss", "Test loss at the best validation epoch"),
        Metric("gap", "Generalization gap", "points", 100.0, 2, None),
        _timed("images_per_s", "Throughput", "images/s", 0, True),
        _timed("train_seconds", "Training time", "s", 1, False),
        _timed("wall_seconds", "Wall time", "s", 1, False),
        Metric("steps_to_target", "Steps to the target", "", 1.0, 0, False, low=0.0),
        Metric("epochs_to_target", "Epochs to the target", "", 1.0, 1, False, low=0.0),
        _timed("seconds_to_target", "Training time to the target", "s", 1, False),
        Metric("parameters", "Parameters", "", 1.0, 0, None, low=0.0),
        Metric("best_val_epoch", "Best validation epoch", "", 1.0, 1, None, low=0.0),
    )
}


def metric(name: str, columns: Iterable[str] = ()) -> Metric:
    """Return the metric of that name; with ``columns``, only one that they hold.

    Raises:
        UserError: No such metric, with the nearest one's name.
    """
    present = set(columns)
    offered = [known for known in METRICS if not present or known in present]
    if name not in offered:
        raise unknown("metric", name, offered)
    return METRICS[name]
