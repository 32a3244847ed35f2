"""The grid of a sweep: :func:`expand` makes one config for each combination of values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normbench.config import Config, compose_parsed, group_options, parse
from normbench.errors import UserError, unknown
from normbench.overrides import values
from normbench.sweep.experiment import unfold

MOST_CELLS = 100_000
"""Largest number of cells of a sweep. More are surely a typo, and would take hours to compose."""


def expand(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[Config]:
    """Expand overrides in Hydra's sweep grammar: choices, ``range(…)``, ``log(…)`` and ``glob(…)``.

    The last override varies fastest. Equal configs are one cell.

    Args:
        overrides: Such as ``norm=bn,gn``, ``seed=range(0,5)``, ``norm=glob(*_ws)``, ``batch=16``;
            or ``+experiment=NAME``, which expands to such a list
            (:mod:`normbench.sweep.experiment`).
        config_dir: Second folder of config groups.

    Returns:
        The configs of the cells.

    Raises:
        UserError: A name is unknown, or an override has an interval instead of a finite set of
            values.
    """
    _, lists = unfold(overrides, config_dir)
    return [config for config, _ in expand_lists(lists, config_dir)]


def expand_lists(
    lists: Sequence[Sequence[str]], config_dir: str | Path | None = None
) -> list[tuple[Config, tuple[Any, ...]]]:
    """Expand lists of overrides, as :func:`expand` does; equal configs are one cell.

    Returns:
        The config of each cell, and the parsed single-value overrides from which it is composed.

    Raises:
        UserError: As for :func:`expand`.
    """
    groups = group_options(config_dir)
    cells: dict[tuple[str, str], tuple[Config, tuple[Any, ...]]] = {}
    contents: dict[str, dict[str, Any]] = {}
    for variant in lists:
        axes = [single_values(override, groups) for override in parse(variant)]
        refuse_too_many(math.prod(map(len, axes)))
        for combination in itertools.product(*axes):
            config = compose_parsed(combination, config_dir, groups, contents)
            cells.setdefault((config.run_name, config.store), (config, combination))
    return list(cells.values())


def single_values(override: Any, groups: dict[str, list[str]]) -> list[Any]:
    """Return an override for each value of an override that may have several."""
    from hydra.core.override_parser.types import ValueType

    if not override.is_sweep_override() or override.key_or_group == "store":
        return [override]
    key = override.get_key_element()
    if override.value_type == ValueType.INTERVAL_SWEEP:
        raise UserError(
            f"{override.input_line!r}: an interval has no finite set of values; "
            "use range(start, stop, step), log(first, last, count) or list them"
        )
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        options = groups.get(override.key_or_group)
        if options is None:
            raise unknown("group for glob", override.key_or_group, groups)
        names = override.value().filter(options)
        if not names:
            raise UserError(f"{override.input_line!r} matches none of {', '.join(options)}")
        return parse([f"{key}={name}" for name in names])
    if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:  # as typed: label=007,1e3 are strings
        return parse([f"{key}={text}" for text in values(override)])
    if override.value_type == ValueType.RANGE_SWEEP:
        _check_range(override)
    return parse([f"{key}={text}" for text in override.sweep_string_iterator()])


def _check_range(override: Any) -> None:
    """Refuse a range with no values, or with more than a sweep can have, before expanding it."""
    sweep = override.value()
    start, stop, step = sweep.start, sweep.stop, sweep.step
    text = override.input_line
    if not all(math.isfinite(number) for number in (start, stop, step)):
        raise UserError(f"{text!r}: start, stop and step must be finite numbers")
    if step == 0:
        raise UserError(f"{text!r}: a step of 0 never leaves {start}; use a step above or below 0")
    count = math.ceil((stop - start) / step)
    if count < 1:
        raise UserError(
            f"{text!r} has no values: they start at {start}, change by {step} and end before {stop}"
        )
    refuse_too_many(count)


def refuse_too_many(count: int) -> None:
    """Refuse a sweep of more than :data:`MOST_CELLS` cells."""
    if count > MOST_CELLS:
        raise UserError(f"a sweep has at most {MOST_CELLS:,} runs, but this one has {count:,}")
