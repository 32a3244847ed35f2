"""Normalization of a kernel's filters: :func:`standardize_filters` and :func:`scale_filters`.

A filter is the weights of one output channel. A kernel of shape (..., I, O) has O filters; a
depthwise kernel (..., C, M) has C·M. :func:`as_matrix` turns either into a matrix (K, F) of F
filters with K weights, one filter per column.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from normbench.kernels.arrays import first_gradient
from normbench.kernels.compile import compile_shared
from normbench.kernels.sums import sum_of_rows

Tensor = Any


def filters_of(shape: tuple[int, ...], depthwise: bool) -> int:
    """Return the number F of filters in a kernel of ``shape``."""
    return math.prod(shape[-2:]) if depthwise else shape[-1]


def as_matrix(kernel: Tensor, depthwise: bool) -> Tensor:
    """Return a kernel as a matrix (K, F)."""
    return ops.reshape(kernel, (-1, filters_of(tuple(kernel.shape), depthwise)))


def lengths(matrix: Tensor, centered: bool) -> Tensor:
    """Return the length of each filter of (K, F), its mean subtracted first if ``centered``."""
    if centered:
        matrix = matrix - ops.mean(matrix, axis=0, keepdims=True)
    return ops.sqrt(ops.sum(ops.square(matrix), axis=0))


def standardize_filters(matrix: Tensor, epsilon: float) -> Tensor:
    """Standardize each filter w of (K, F): c/√(mean(c²) + ε), where c = w − mean(w)."""
    forward, backward = compile_shared(_standardized, matrix), compile_shared(_gradient, matrix)

    @ops.custom_gradient
    def standardize(w: Tensor):
        y, inverse = forward(w, epsilon=epsilon)
        return y, lambda *upstream: backward(first_gradient(upstream), y, inverse)

    return standardize(matrix)


def _standardized(w: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the standardized filters, and 1/√(mean(c²) + ε), (F,)."""
    c = w - _mean(w)
    inverse = ops.rsqrt(_mean(ops.square(c)) + epsilon)
    return c * inverse, inverse


def _gradient(dy: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient to w."""
    return (dy - _mean(dy) - y * _mean(dy * y)) * inverse


def _mean(matrix: Tensor) -> Tensor:
    """Return the mean of each filter of (K, F): (F,)."""
    return sum_of_rows(matrix) / int(matrix.shape[0])


def scale_filters(matrix: Tensor, length: Tensor, centered: bool, least: float) -> Tensor:
    """Scale each filter w to a given length: length·c/√max(Σc², least).

    c is w − mean(w) if ``centered``, else w.

    Args:
        matrix: (K, F).
        length: (F,).
        centered: Whether to subtract a filter's mean.
        least: Lower bound of the squared length in the divisor.

    Returns:
        (K, F).
    """

    @ops.custom_gradient
    def scale(w: Tensor, length: Tensor):
        c = w - ops.mean(w, axis=0, keepdims=True) if centered else w
        square = ops.sum(ops.square(c), axis=0, keepdims=True)
        inverse = ops.rsqrt(ops.maximum(square, least))
        unit = c * inverse
        varies = ops.cast(square > least, w.dtype)  # elsewhere the divisor is a constant

        def gradient(*upstream: Tensor):
            dy = first_gradient(upstream)
            d_length = ops.sum(dy * unit, axis=0)
            dw = dy - unit * (d_length * varies)
            if centered:
                dw = dw - ops.mean(dy, axis=0, keepdims=True)
            return dw * (inverse * length), d_length

        return unit * length, gradient

    return scale(matrix, length)
