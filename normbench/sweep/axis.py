"""The keys of ``--tune``: :class:`Axis` is a key with its values; :func:`axes_of` parses them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from normbench.config import parse
from normbench.errors import UserError
from normbench.overrides import rounded
from normbench.sweep.experiment import Experiment
from normbench.sweep.grid import single_values

_SENSELESS = {
    "seed": "the best of several seeds is luck; --tune-seeds sets the seeds of the trials",
    "epochs": "every value has the same budget; --tune-epochs sets the epochs of the trials",
    "batch": "it tells the compared cells apart; put its values into the grid",
    "norm": "it tells the compared cells apart; put its values into the grid",
    "arch": "it tells the compared cells apart; put its values into the grid",
    "dataset": "results on different data cannot be compared; put its values into the grid",
    **dict.fromkeys(
        ("store", "label", "probe", "logger", "executor", "stream"), "it does not affect results"
    ),
}


_COUNTED = 10_000
_EDGE = 0.1  # fraction of a range, at either end, that counts as its edge


@dataclass(frozen=True)
class Span:
    """A range of numbers from which a sampler takes values.

    Attributes:
        low, high: Its limits; whole numbers if all its values are.
        log: True if values are drawn on a log scale.
    """

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    def value(self, sampled: float) -> float:
        """Return the value for a number that was sampled from the range.

        It is rounded to three significant digits, so that typing it gives the same number and
        therefore the same run.
        """
        if self.whole:
            return int(sampled)
        return min(max(float(f"{sampled:.3g}"), self.low), self.high)

    @property
    def count(self) -> int:
        """The number of its values; beyond 10,000, a lower bound."""
        steps = min(int(self.high - self.low), _COUNTED) if self.whole else _COUNTED
        width = self.high - self.low
        return len({self.value(self.low + width * step / steps) for step in range(steps + 1)})

    def at_edge(self, value: float) -> bool:
        """Return whether a value is in the first or the last tenth of the range."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return not _EDGE < (value - low) / (high - low) < 1 - _EDGE

    def __str__(self) -> str:
        """Return the range as it could be typed."""
        low, high = (repr(limit).removesuffix(".0") for limit in (self.low, self.high))
        if self.log:  # with two whole limits, all values would be whole numbers
            is_integer = isinstance(self.low, float) and low.isdigit() and high.isdigit()
            return f"log({low}.0,{high}.0)" if is_integer else f"log({low},{high})"
        text = f"interval({low},{high})"
        return f"int({text})" if self.whole else text


@dataclass
class Axis:
    """A tuned key with a list of values, numbers in ascending order, or with a range.

    Attributes:
        key: The key or the group, such as ``optimizer.lr``.
        overrides: A parsed override for each value.
        values: The values, as JSON types; empty for a range.
        span: The range; None for a list of values.
    """

    key: str
    overrides: list[Any]
    values: list[Any]
    span: Span | None = None

    @property
    def listed(self) -> str:
        """The values or the range, as they could be typed."""
        return ",".join(map(str, self.values)) if self.span is None else str(self.span)

    def override(self, value: Any) -> Any:
        """Return the parsed override for a value of the list or a number of the range."""
        if self.span is None:
            return self.overrides[self.values.index(value)]
        return parse([f"{self.key}={value!r}"])[0]

    @property
    def numeric(self) -> bool:
        return all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in self.values
        )

    def beyond(self, edge: str) -> float | None:
        """Return the next value beyond the ``smallest`` or ``largest``, by the list's own step.

        The step is the difference if all differences are equal, else the ratio if all ratios are,
        up to rounding. For two values above 0 it is the ratio.

        Returns:
            The value; None if the list has no step, or the next value has another sign.
        """
        values = self.values
        if not self.numeric or len(values) < 2:
            return None
        last = values[-1] if edge == "largest" else values[0]
        sign = 1 if edge == "largest" else -1
        count = len(values) - 1
        pairs = list(itertools.pairwise(values))
        difference = (values[-1] - values[0]) / count
        if (count > 1 or values[0] <= 0) and all(
            math.isclose(b - a, difference, rel_tol=1e-6) for a, b in pairs
        ):
            next_value = last + sign * difference
            if abs(next_value) < 1e-9 * abs(difference):
                next_value = 0.0  # 0.1 - (0.3 - 0.1) / 2 is 1e-17
        elif values[0] > 0:
            ratio = (values[-1] / values[0]) ** (1 / count)
            if not all(math.isclose(b / a, ratio, rel_tol=0.02) for a, b in pairs):
                return None
            next_value = last * ratio**sign
        else:
            return None
        if all(isinstance(value, int) for value in values):
            next_value = round(next_value)  # below the smallest value, a ratio gives fractions
        else:
            next_value = rounded(next_value)
        if (values[0] > 0 and next_value <= 0) or (values[-1] < 0 and next_value >= 0):
            return None
        return None if next_value in values else next_value

    def add(self, value: float) -> None:
        """Insert a number into the sorted list."""
        index = sum(other < value for other in self.values)
        self.values.insert(index, value)
        self.overrides.insert(index, parse([f"{self.key}={value!r}"])[0])


def axes_of(texts: Sequence[str], groups: dict[str, list[str]]) -> list[Axis]:
    """Read the tuned keys and their values or ranges.

    Args:
        texts: Such as ``optimizer.lr=0.05,0.1`` or ``optimizer.lr=log(0.01,1)``, one per key.
        groups: The options of each config group, by group.

    Raises:
        UserError: A key cannot be tuned, is given twice, or has fewer than two values or an empty
            range.
    """
    axes: dict[str, Axis] = {}
    for override in parse(texts):
        key, text = str(override.key_or_group), override.typed
        if override.is_delete() or override.is_add():
            raise UserError(f"--tune {text}: write {key}=VALUE,VALUE")
        group = "dataset" if key.startswith("dataset.") else key
        reason = _SENSELESS.get(group, "")
        if reason:
            raise UserError(f"--tune {text}: {key} cannot be tuned: {reason}")
        if key in axes:
            raise UserError(f"--tune names {key} twice: write its values in one list")
        span = _span(override)
        if span is not None:
            axes[key] = Axis(key, [], [], span)
            continue
        axis = Axis(key, [], [])
        for single in single_values(override, groups):
            value = _plain(single.value())
            if value not in axis.values:
                axis.overrides.append(single)
                axis.values.append(value)
        if len(axis.values) < 2:
            raise UserError(
                f"--tune {text}: one value leaves nothing to choose; write several values, or "
                f"{key}={axis.values[0]} without --tune"
            )
        if axis.numeric:
            order = sorted(range(len(axis.values)), key=axis.values.__getitem__)
            axis.overrides = [axis.overrides[index] for index in order]
            axis.values = [axis.values[index] for index in order]
        axes[key] = axis
    return list(axes.values())


def _span(override: Any) -> Span | None:
    """Return the range of an override; None if it has a list of values."""
    from hydra.core.override_parser.types import ValueType

    if override.value_type != ValueType.INTERVAL_SWEEP:
        return None
    sweep = override.value()
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--tune {override.typed}: the first limit must be below the second one")
    if log and low <= 0:
        raise UserError(f"--tune {override.typed}: a log scale needs limits above 0")
    return Span(low, high, log)


def _plain(value: Any) -> Any:
    if type(value).__name__ == "QuotedString":
        return value.text
    return [_plain(item) for item in value] if isinstance(value, list) else value


def lists_without(
    experiment: Experiment | None, lists: Sequence[list[str]], keys: Sequence[str]
) -> list[list[str]]:
    """Remove tuned keys from an experiment's lists if all lists have the same single value.

    Like an override typed after an experiment, --tune replaces the experiment's own value.
    """
    if experiment is None:
        return list(lists)
    tuned_keys = {str(override.key_or_group) for override in parse(keys)}
    texts: dict[str, set[str]] = {key: set() for key in tuned_keys}
    for overrides in lists:
        for override in parse(overrides):
            if str(override.key_or_group) in tuned_keys:
                is_sweep = override.is_sweep_override()
                texts[str(override.key_or_group)] |= {override.typed, *(["several"] * is_sweep)}
    dropped_keys = {key for key, key_texts in texts.items() if len(key_texts) == 1}
    return [
        [o.typed for o in parse(overrides) if str(o.key_or_group) not in dropped_keys]
        for overrides in lists
    ]


def refuse_in_grid(axes: Sequence[Axis], lists: Sequence[Sequence[str]]) -> None:
    """Refuse a tuned key that the grid's lists of overrides set, too."""
    tuned_keys = {axis.key for axis in axes}
    for overrides in lists:
        for override in parse(overrides):
            if str(override.key_or_group) in tuned_keys:
                raise UserError(
                    f"{override.typed!r} and --tune {override.key_or_group}=… set the same key: "
                    "put it in the grid or tune it, not both"
                )


def refuse_extend(extend: int, axes: Sequence[Axis]) -> None:
    """Refuse ``--extend`` unless the lists of numbers have a step by which to continue them."""
    if extend < 0:
        raise UserError(f"--extend must be at least 0, got {extend}")
    for axis in axes:
        if axis.numeric and axis.beyond("largest") is None and axis.beyond("smallest") is None:
            raise UserError(
                f"--extend continues a list by its step, but {axis.key}={axis.listed} has neither "
                "a constant ratio nor a constant difference"
            )
    if not any(axis.numeric for axis in axes):
        keys = ", ".join(axis.key for axis in axes)
        raise UserError(f"--extend needs a tuned key with numbers, but {keys} has none")
