"""Scaling, shifting and centering channels with hand-written gradients.

Automatic differentiation would sum over images and spatial positions in one reduction, which
TensorFlow runs on a single CPU core. Here the sum over positions comes first.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from normbench.kernels.arrays import first_gradient
from normbench.kernels.standardize import center_valid, pivot_of
from normbench.kernels.sums import at_least_one, count_of, spatial_sum

Tensor = Any


def per_channel(x: Tensor, mean: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """Return (x − mean)·scale + shift, with gradients to all four.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        mean: float32, (C,), (1, C) or (N, C); None for 0.
        scale: As ``mean``.
        shift: As ``mean``.

    Returns:
        (N, S, C), of x's dtype.
    """
    dtype = x.dtype
    shapes = [value.shape for value in (mean, scale, shift) if value is not None]

    @ops.custom_gradient
    def function(x: Tensor, *parameters: Tensor) -> Any:
        def centered_x() -> Tensor:
            values = ops.cast(x, "float32")
            return values if mean is None else values - _wide(parameters[0])

        scale, shift = _wide(parameters[-2]), _wide(parameters[-1])
        y = ops.cast(centered_x() * scale + shift, dtype)

        def gradient(*upstream: Tensor):
            dy = ops.cast(first_gradient(upstream), "float32")
            dx = dy * scale
            sum_dy = ops.sum(dy, axis=1)
            sums = [ops.sum(dy * centered_x(), axis=1), sum_dy]
            if mean is not None:
                sums.insert(0, -sum_dy * scale[:, 0])
            return (
                ops.cast(dx, dtype),
                *(_sum_like(value, shape) for value, shape in zip(sums, shapes, strict=True)),
            )

        return y, gradient

    parameters = (scale, shift) if mean is None else (mean, scale, shift)
    return function(x, *parameters)


def batch_center(x: Tensor, beta: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Subtract each channel's mean over images and positions, then add β.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        beta: float32, (C,).
        valid: Positions to take the mean over, bool (N, S, 1); by default all.

    Returns:
        y, of x's shape and dtype; the mean, float32 (C,), through which no gradient flows.
    """
    dtype = x.dtype
    if valid is not None:
        values = ops.cast(x, "float32")[None]
        centered, mean, _ = center_valid(values, valid[None], int(x.shape[-1]))
        return ops.cast(centered[0] + beta, dtype), ops.stop_gradient(mean[0])
    count = count_of(x[None], int(x.shape[-1]))

    def mean_of(values: Tensor) -> Tensor:
        return spatial_sum(values[None])[0] / at_least_one(count)

    @ops.custom_gradient
    def function(x: Tensor, beta: Tensor) -> Any:
        values = ops.cast(x, "float32")
        pivot = pivot_of(values[None])[0]
        shifted = values - pivot
        offset = mean_of(shifted)

        def gradient(*upstream: Tensor):
            dy = ops.cast(first_gradient(upstream), "float32")
            mean_dy = mean_of(dy)
            return ops.cast(dy - mean_dy, dtype), mean_dy * count

        return (ops.cast(shifted + (beta - offset), dtype), pivot + offset), gradient

    return function(x, beta)


def _wide(value: Tensor) -> Tensor:
    """Make (C,), (1, C) or (N, C) broadcast over (N, S, C)."""
    return value[None, None] if len(value.shape) == 1 else value[:, None]


def _sum_like(sums: Tensor, shape: Any) -> Tensor:
    """Sum (N, C) over images if, according to its ``shape``, all images share the parameter."""
    if len(shape) == 1:
        return ops.sum(sums, axis=0)
    return ops.sum(sums, axis=0, keepdims=True) if shape[0] == 1 else sums
