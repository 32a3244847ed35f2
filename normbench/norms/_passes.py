"""Batch Normalization of large inputs on a CPU in passes over memory, which XLA compiles.

Each reads what it needs in its own dtype, and writes no more than its result.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def moment_sums(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Sum x − shift, and its square, over (n, S): (n, S, C) and (C,) to two float32 (C,)."""
    values = ops.cast(x, "float32") - shift
    return _sum(values), _sum(ops.square(values))


def applied(x: Tensor, shift: Tensor, mean: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
    """Return (x − shift − mean)·scale + β, in x's dtype: of (n, S, C) and four float32 (C,)."""
    values = ops.cast(x, "float32") - shift
    return ops.cast((values - mean) * scale + beta, x.dtype)


def gradient_sums(x: Tensor, dy: Tensor, shift: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sum dy, and dy·(x − shift − mean), over (n, S): to two float32 (C,)."""
    centred = (ops.cast(x, "float32") - shift) - mean
    dy = ops.cast(dy, "float32")
    return _sum(dy), _sum(dy * centred)


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


_SLICES = 8
"""Of all rows, added side by side."""


def _sum(values: Tensor) -> Tensor:
    """Sum (n, S, C) to (C,)."""
    images, places, channels = values.shape
    if images * places % _SLICES == 0:
        # Whole stretches of memory, one beside the other; else XLA may go through it in steps.
        values = sum(ops.unstack(ops.reshape(values, (_SLICES, -1)), _SLICES, axis=0))
    return ops.sum(ops.reshape(values, (-1, channels)), axis=0)
