"""Marks for parametrized tests: `slow_except()` keeps a few values in the default suite."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Mark all values of a parametrization as slow except the `quick` ones.

    A parametrization over many norms, networks or precisions keeps its representative members in
    the default suite this way::

        @pytest.mark.parametrize("norm", slow_except(("bn", "gn_ws"), NORMS))

    A tuple supplies several arguments, as in `pytest.mark.parametrize`. A quick value that is not
    among the values is an error, so that a renamed value cannot silently leave the default suite.
    """
    quick, values = list(quick), list(values)
    unknown = [value for value in quick if value not in values]
    if unknown:
        raise ValueError(f"not among the values: {unknown}")
    return [
        value if value in quick else slow(*value) if isinstance(value, tuple) else slow(value)
        for value in values
    ]


def slow(*values: Any) -> Any:
    """Mark one case of a parametrization as slow; give one value per argument."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_except_on_jax(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Apply `slow_except()` only on JAX, which takes about a second to compile each case."""
    values = list(values)
    on_jax = os.environ["KERAS_BACKEND"] == "jax"  # set by tests/conftest.py
    return slow_except(quick if on_jax else values, values)
