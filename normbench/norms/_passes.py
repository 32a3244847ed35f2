"""Batch Normalization of large inputs on a CPU in passes over memory, which XLA compiles.

Each reads what it needs in its own dtype, and writes no more than its result. What a channel has is
added up in stretches; their sums, which are few, are for the caller to add: XLA would join both
sums into one.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from normbench.norms._statistics import LEAST_ROWS, slices_of

Tensor = Any


def moment_sums(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of x − shift, and of its square: (n, S, C) and (C,) to two float32 (stretches, C)."""
    values = ops.cast(x, "float32") - shift
    return _sums(values), _sums(ops.square(values))


def applied(x: Tensor, shift: Tensor, mean: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
    """Return (x − shift − mean)·scale + β, in x's dtype: of (n, S, C) and four float32 (C,)."""
    values = ops.cast(x, "float32") - shift
    return ops.cast((values - mean) * scale + beta, x.dtype)


def gradient_sums(x: Tensor, dy: Tensor, shift: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of dy, and of dy·(x − shift − mean): to two float32 (stretches, C)."""
    centred = (ops.cast(x, "float32") - shift) - mean
    dy = ops.cast(dy, "float32")
    return _sums(dy), _sums(dy * centred)


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


_STRETCHES = 64
"""What rows are added up in, at most: many, for a sum's roundings are as many as what it adds."""


def _sums(values: Tensor) -> Tensor:
    """Sum stretches of (n, S, C), as many as pay, to (stretches, C)."""
    images, places, channels = values.shape
    slices = slices_of(images * places)
    if slices == 1:
        return ops.sum(values, axis=1)
    # Whole pieces of memory; not of each image, which takes XLA steps.
    rows = sum(ops.unstack(ops.reshape(values, (slices, -1)), slices, axis=0))
    count, stretches = images * places // slices, 1
    while stretches < _STRETCHES and count % (2 * stretches * LEAST_ROWS) == 0:
        stretches *= 2
    return ops.sum(ops.reshape(rows, (stretches, -1, channels)), axis=1)
