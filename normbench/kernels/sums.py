"""Sums over images, spatial positions and channels, and counts of their values.

A set is a number of images that share a statistic. Arrays are (A, B, S, C): A sets of B images, S
spatial positions, C channels. A sum is (A, C).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.compile import exporting, inside_xla

Tensor = Any

LEAST_ROWS = 64
"""Minimum number of rows that XLA on a CPU sums at memory speed; with fewer it is ten times
slower."""

_SLICES = (8, 4, 2)


def spatial_sum(values: Tensor) -> Tensor:
    """Sum (A, B, S, C) to (A, C)."""
    # Two steps, spatial positions first: on a CPU, a joint reduction runs on a single core.
    sums = sum_of_rows(values)
    return sums[:, 0] if values.shape[1] == 1 else ops.sum(sums, axis=1)


def spatial_sum_of_squares(values: Tensor) -> Tensor:
    """Sum the squares of float32 (A, B, S, C) to (A, C)."""
    if keras.backend.backend() != "tensorflow" or exporting() or inside_xla():
        return spatial_sum(ops.square(values))
    import tensorflow as tf

    # One pass that does not write the squares to memory. XLA lacks this operation but fuses.
    sums = ops.square(tf.raw_ops.EuclideanNorm(input=values, axis=2))
    return sums[:, 0] if values.shape[1] == 1 else ops.sum(sums, axis=1)


def sum_of_rows(values: Tensor) -> Tensor:
    """Sum (..., S, C) to (..., C)."""
    rows = values.shape[-2]
    if keras.backend.backend() == "tensorflow" and inside_xla() and rows:
        slices = slices_of(rows)
        if slices > 1:
            values = sum(ops.split(values, slices, axis=-2))
    return ops.sum(values, axis=-2)


def slices_of(rows: int) -> int:
    """Return the number of slices into which to divide a sum over rows for XLA on a CPU.

    XLA adds slices in parallel, several rows at a time, and the remaining sum row by row.
    """
    return next((n for n in _SLICES if rows % n == 0 and rows // n >= LEAST_ROWS), 1)


def group_means(sums: Tensor, groups: int, count: Any) -> Tensor:
    """Turn sums (A, C) into means over a group, repeated for each of its channels: (A, C).

    Args:
        sums: (A, C).
        groups: Groups of neighboring channels; divides C.
        count: Values in a group, a float or a tensor.
    """
    channels = int(sums.shape[-1])
    count = at_least_one(count)
    if groups == channels:
        return sums / count
    size = channels // groups
    means = ops.sum(ops.reshape(sums, (-1, groups, size)), axis=-1, keepdims=True) / count
    shape = (ops.shape(sums)[0], groups, size)
    return ops.reshape(ops.broadcast_to(means, shape), (-1, channels))


def first_of_group(values: Tensor, groups: int) -> Tensor:
    """Return each group's first channel of (A, C), repeated for each of its channels."""
    size = int(values.shape[-1]) // groups
    return ops.repeat(values[:, ::size], size, axis=1)


def count_of(x: Tensor, groups: int) -> Any:
    """Return the number of values in a group of one set of (A, B, S, C).

    The number is a float, or a tensor if a dimension is only known at run time.
    """
    _, images, positions, channels = x.shape
    size = int(channels) // groups
    if images is not None and positions is not None:
        return float(images * positions * size)
    return ops.cast(ops.shape(x)[1] * ops.shape(x)[2] * size, "float32")


def count_valid(valid: Tensor) -> Tensor:
    """Return the number of valid positions of each set, bool (A, B, S, 1): float32 (A, 1)."""
    return spatial_sum(ops.cast(valid, "float32"))


def count_in_batch(x: Tensor, valid: Tensor | None = None) -> Any:
    """Return the number of values per channel of a mini-batch (N, S, C), a float or a tensor."""
    if valid is None:
        return count_of(x[None], int(x.shape[-1]))
    return count_valid(valid[None])[0]


def at_least_one(count: Any) -> Any:
    """Return a count (a float or a tensor), replacing 0 by 1 to avoid 0/0."""
    return max(count, 1.0) if isinstance(count, float) else ops.maximum(count, 1.0)
