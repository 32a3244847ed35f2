"""Batch Normalization of large inputs on a CPU in passes over memory, which XLA compiles.

Each reads what it needs once, in its own dtype, and writes no more than its result. What a channel
has is added up for each image; the images' sums, which are few, are for the caller to add: XLA
would join both sums into one, which reads memory column by column.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from normbench.norms._statistics import sum_of_rows

Tensor = Any


def moment_sums(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Sum x − shift, and its square, over places: (n, S, C) and (C,) to two float32 (n, C)."""
    values = ops.cast(x, "float32") - shift
    return sum_of_rows(values), sum_of_rows(ops.square(values))


def applied(x: Tensor, shift: Tensor, mean: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
    """Return (x − shift − mean)·scale + β, in x's dtype: of (n, S, C) and four float32 (C,)."""
    values = ops.cast(x, "float32") - shift
    return ops.cast((values - mean) * scale + beta, x.dtype)


def gradient_sums(x: Tensor, dy: Tensor, shift: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sum dy, and dy·(x − shift − mean), over places: to two float32 (n, C)."""
    centred = (ops.cast(x, "float32") - shift) - mean
    dy = ops.cast(dy, "float32")
    return sum_of_rows(dy), sum_of_rows(dy * centred)


def input_gradient(
    x: Tensor,
    dy: Tensor,
    shift: Tensor,
    mean: Tensor,
    scale: Tensor,
    mean_dy: Tensor,
    slope: Tensor,
) -> Tensor:
    """Return (dy − mean_dy − (x − shift − mean)·slope)·scale, in x's dtype."""
    centred = (ops.cast(x, "float32") - shift) - mean
    gradient = (ops.cast(dy, "float32") - mean_dy) - centred * slope
    return ops.cast(gradient * scale, x.dtype)
