"""Kernels seen as a matrix with a filter a column, and their normalization.

A kernel of shape (..., I, O) has O filters, a depthwise one (..., C, M) has C·M, each of K
weights: the matrix is (K, F) either way, and a filter is what makes one output channel.
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
    """The number F of filters in a kernel of ``shape``."""
    return math.prod(shape[-2:]) if depthwise else shape[-1]


def as_matrix(kernel: Tensor, depthwise: bool) -> Tensor:
    """Turn a kernel into (K, F)."""
    return ops.reshape(kernel, (-1, filters_of(tuple(kernel.shape), depthwise)))


def lengths(matrix: Tensor, centred: bool) -> Tensor:
    """The Euclidean length of each filter of (K, F), its mean taken off first if ``centred``."""
    if centred:
        matrix = matrix - ops.mean(matrix, axis=0, keepdims=True)
    return ops.sqrt(ops.sum(ops.square(matrix), axis=0))


def standardized(matrix: Tensor, epsilon: float) -> Tensor:
    """Each filter of (K, F) to mean 0 and deviation 1: c/√(mean(c²) + ε), c = w − mean(w)."""
    forward, backward = compile_shared(_standardized, matrix), compile_shared(_gradient, matrix)

    @ops.custom_gradient
    def standardize(w: Tensor):
        y, inverse = forward(w, epsilon=epsilon)
        return y, lambda *upstream: backward(first_gradient(upstream), y, inverse)

    return standardize(matrix)


def _standardized(w: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """What :func:`standardized` returns, and 1/√(mean(c²) + ε), (F,)."""
    c = w - _mean(w)
    inverse = ops.rsqrt(_mean(ops.square(c)) + epsilon)
    return c * inverse, inverse


def _gradient(dy: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    """The gradient to w."""
    return (dy - _mean(dy) - y * _mean(dy * y)) * inverse


def _mean(matrix: Tensor) -> Tensor:
    """Of each filter of (K, F): (F,)."""
    return sum_of_rows(matrix) / int(matrix.shape[0])


def scaled_to(matrix: Tensor, length: Tensor, centred: bool, least: float) -> Tensor:
    """Give each filter a length: length·c/√max(Σc², least), c = w, less its mean if ``centred``.

    Args:
        matrix: (K, F).
        length: (F,).
        centred: Whether a filter's mean is taken off.
        least: Below this square of a filter's length, the division is by √least.

    Returns:
        (K, F).
    """

    @ops.custom_gradient
    def scale(w: Tensor, length: Tensor):
        c = w - ops.mean(w, axis=0, keepdims=True) if centred else w
        square = ops.sum(ops.square(c), axis=0, keepdims=True)
        inverse = ops.rsqrt(ops.maximum(square, least))
        unit = c * inverse
        free = ops.cast(square > least, w.dtype)  # where not, the divisor is a constant

        def gradient(*upstream: Tensor):
            dy = first_gradient(upstream)
            d_length = ops.sum(dy * unit, axis=0)
            dw = dy - unit * (d_length * free)
            if centred:
                dw = dw - ops.mean(dy, axis=0, keepdims=True)
            return dw * (inverse * length), d_length

        return unit * length, gradient

    return scale(matrix, length)
