"""Standardization with a hand-written gradient: :func:`standardize` and functions built on it.

Images are flattened to (N, S, C): N images, S spatial positions, C channels; (A, B, S, C) is A sets
of B images, with one statistic per set. For values around 1000 with a deviation of 1, float32 sums
are too inaccurate, and E[x²] − E[x]² loses all digits. So each channel is first shifted by a pivot
near its mean, the mean of a few of its positions. Mean and variance are computed from the shifted
values, and a group's statistics are combined from those of its channels without cancellation. A
constant input then gives exactly β. If the pivot is k deviations from the channel's mean, the
variance is off by k² + 1 roundings.

With a mask, the statistics are taken over the valid positions only, and the gradient comes from
automatic differentiation. If a statistic has no values (an empty or fully masked mini-batch), means
are 0 instead of 0/0.

The gradient is that of Ioffe & Szegedy 2015, section 3, written per statistic:
dx = a·dy − r·mean(γ·dy) − (x − μ)·r³·mean(γ·dy·(x − μ)), with r = 1/σ and a = γ·r.
Only first derivatives are defined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from normbench.kernels.arrays import both_gradients, first_gradient, image_sets
from normbench.kernels.compile import compile_shared, exporting
from normbench.kernels.sums import (
    at_least_one,
    count_in_batch,
    count_of,
    count_valid,
    first_of_group,
    group_means,
    spatial_sum,
    spatial_sum_of_squares,
)

Tensor = Any

_SAMPLES = 8
"""Number of images, and of positions in each, that a channel's pivot is computed from."""


def standardize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    subtract_mean: bool = True,
    across: Callable[[Tensor], Tensor] | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardize each of A sets of images over images, positions and the channels of a group.

    Args:
        x: Any float dtype, (A, B, S, C): A sets of B images; computed in float32.
        gamma: Scale, float32 (C,).
        beta: Shift, float32 (C,).
        groups: Groups of neighboring channels; divides C.
        epsilon: Added to the variance.
        subtract_mean: If False, divide x by its root mean square instead.
        across: Sums a tensor over the replicas that share the sets.
        valid: Positions to take statistics over, bool (A, B, S, 1); by default all.

    Returns:
        y, of x's shape and dtype; the mean (0 if not subtracted) and the biased variance (or mean
        square), float32 (A, C), repeated for each channel of a group. No gradient flows through
        the statistics.
    """
    if valid is not None:
        return _standardize_valid(x, gamma, beta, groups, epsilon, subtract_mean, across, valid)
    options = {"groups": groups, "across": across}
    forward, backward = _forward, _backward
    # A sum over replicas must stay in its replica's graph.
    if across is None:
        forward, backward = compile_shared(_forward, x), compile_shared(_backward, x)

    @ops.custom_gradient
    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        y, mean, variance, *residuals = forward(
            x, gamma, beta, epsilon=epsilon, subtract_mean=subtract_mean, **options
        )

        def gradient(*upstream: Tensor):
            return backward(x, first_gradient(upstream), gamma, *residuals, **options)

        return (y, mean, variance), gradient

    return function(x, gamma, beta)


def group_standardize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    subtract_mean: bool = True,
    valid: Tensor | None = None,
) -> Tensor:
    """Standardize each image over positions and the channels of a group, then scale and shift.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        groups: Number of groups; divides C.
        epsilon: Added to the variance.
        subtract_mean: If False, divide x by its root mean square instead.
        valid: Positions to take statistics over, bool (N, S, 1); by default all.

    Returns:
        (N, S, C), of x's dtype.
    """
    # Not x[:, None], whose gradient on TensorFlow is a pass over memory.
    sets, valid = image_sets(x, valid)
    y, _, _ = standardize(sets, gamma, beta, groups, epsilon, subtract_mean, valid=valid)
    return ops.squeeze(y, axis=1)


def position_standardize(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, subtract_mean: bool = True
) -> Tensor:
    """Standardize over the channels at each position, then scale and shift channels.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.
        subtract_mean: If False, divide x by its root mean square instead.

    Returns:
        (N, S, C), of x's dtype.
    """
    dtype = x.dtype
    channels = float(x.shape[-1])

    def mean_of(values: Tensor) -> Tensor:
        return ops.sum(values, axis=-1, keepdims=True) / channels

    def over_images(values: Tensor) -> Tensor:
        # Two steps, positions first: on a CPU, a joint reduction runs on a single core.
        return ops.sum(ops.sum(values, axis=1), axis=0)

    @ops.custom_gradient
    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        centered = ops.cast(x, "float32")
        if subtract_mean:
            centered = centered - rounded(mean_of(centered))
            # Subtract the mean that is left because of rounding.
            centered = centered - mean_of(centered)
        inverse = ops.rsqrt(mean_of(ops.square(centered)) + epsilon)
        normalized = centered * inverse

        def gradient(*upstream: Tensor):
            dy = ops.cast(first_gradient(upstream), "float32")
            weighted = dy * gamma
            dx = weighted - normalized * mean_of(weighted * normalized)
            if subtract_mean:
                dx = dx - mean_of(weighted)
            return (
                ops.cast(dx * inverse, dtype),
                over_images(dy * normalized),
                over_images(dy),
            )

        return ops.cast(normalized * gamma + beta, dtype), gradient

    return function(x, gamma, beta)


def moments(x: Tensor, groups: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of A sets over images, positions and a group's channels.

    Args:
        x: Any float dtype, (A, B, S, C); computed in float32.
        groups: Groups of neighboring channels; divides C.
        valid: Positions to take statistics over, bool (A, B, S, 1); by default all.

    Returns:
        Mean and variance, float32 (A, C), repeated for each channel of a group; both have
        gradients.
    """
    if valid is not None:
        _, mean, variance = center_valid(ops.cast(x, "float32"), valid, groups)
        return mean, variance
    dtype = x.dtype
    count = count_of(x, groups)

    @ops.custom_gradient
    def function(x: Tensor) -> Any:
        values = ops.cast(x, "float32")
        pivot = pivot_of(values)
        offset, mean, variance = _statistics(values - _wide(pivot), pivot, groups=groups)

        def gradient(*upstream: Tensor):
            d_mean, d_variance = both_gradients(upstream)
            slope = group_means(d_variance, groups, count) * 2.0
            constant = group_means(d_mean, groups, count) + offset * slope
            shifted = ops.cast(x, "float32") - _wide(pivot)
            return ops.cast(shifted * _wide(slope) + _wide(constant), dtype)

        return (mean, variance), gradient

    return function(x)


def batch_moments(x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
    """Return mean and biased variance of each channel of a mini-batch over images and positions.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        valid: Positions to take statistics over, bool (N, S, 1); by default all.

    Returns:
        Mean and variance, float32 (C,), with gradients; and :func:`count_in_batch`.
    """
    sets = None if valid is None else valid[None]
    mean, variance = moments(ops.expand_dims(x, 0), int(x.shape[-1]), sets)
    return mean[0], variance[0], count_in_batch(x, valid)


def pooled(
    mean: Tensor, variance: Tensor, axis: int, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of sets merged along ``axis``, which keeps length 1.

    Args:
        mean: Mean of each set, (N, C).
        variance: Biased variance of each set, (N, C).
        axis: 0 merges images, 1 channels.
        counts: Number of values in each image's sets, (N, 1), if images are merged; by default all
            are equal.

    Returns:
        Mean and variance, (1, C) or (N, 1), computed by differentiable operations.
    """
    if counts is not None:
        weights = counts / at_least_one(ops.sum(counts, axis=0, keepdims=True))
        pivot = ops.sum(mean * weights, axis=0, keepdims=True)
        deviation = mean - pivot
        offset = ops.sum(deviation * weights, axis=0, keepdims=True)
        spread = ops.square(deviation - offset) + variance
        return pivot + offset, ops.sum(spread * weights, axis=0, keepdims=True)
    # Differences from one set's mean are exact if all means are equal.
    pivot = mean[:1] if axis == 0 else mean[:, :1]
    may_be_empty = axis == 0 and mean.shape[0] is None
    if may_be_empty:
        pivot = ops.sum(pivot, axis=0, keepdims=True)
    deviation = mean - pivot
    offset = ops.mean(deviation, axis=axis, keepdims=True)
    between = ops.mean(ops.square(deviation - offset), axis=axis, keepdims=True)
    mean_variance = ops.mean(variance, axis=axis, keepdims=True)
    if not may_be_empty:
        return pivot + offset, mean_variance + between
    has_images = ops.shape(mean)[0] > 0  # without images the means are NaN
    return (
        ops.where(has_images, pivot + offset, 0.0),
        ops.where(has_images, mean_variance + between, 0.0),
    )


def _forward(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    groups: int,
    epsilon: float,
    subtract_mean: bool,
    across: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, ...]:
    """Return outputs, mean and variance, followed by the statistics for :func:`_backward`."""
    dtype = x.dtype
    x = ops.cast(x, "float32")
    total = across or (lambda values: values)
    if not subtract_mean:
        variance = group_means(total(spatial_sum_of_squares(x)), groups, total(count_of(x, groups)))
        inverse = ops.rsqrt(variance + epsilon)
        y = x * _wide(inverse * gamma) + beta
        return ops.cast(y, dtype), ops.zeros_like(variance), variance, inverse
    pivot = pivot_of(x, across)
    shifted = x - _wide(pivot)
    offset, mean, variance = _statistics(shifted, pivot, groups=groups, across=across)
    inverse = ops.rsqrt(variance + epsilon)
    scale = inverse * gamma
    y = shifted * _wide(scale) + _wide(offset * scale + beta)
    return ops.cast(y, dtype), mean, variance, pivot, offset, inverse


def _backward(
    x: Tensor,
    dy: Tensor,
    gamma: Tensor,
    *statistics: Tensor,
    groups: int,
    across: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to x, in its dtype, and to γ and β.

    ``statistics`` are pivot and offset, if the mean was subtracted, and 1/σ.
    """
    dtype = x.dtype
    x, dy = ops.cast(x, "float32"), ops.cast(dy, "float32")
    total = across or (lambda values: values)
    count = total(count_of(x, groups))
    *shift, inverse = statistics
    scale = inverse * gamma
    if shift:
        x = x - _wide(shift[0])
    sum_dy = spatial_sum(dy)
    sum_product = spatial_sum(dy * x)
    if shift:
        sum_product = sum_product + shift[1] * sum_dy
    d_gamma = ops.sum(sum_product * inverse, axis=0)
    d_beta = ops.sum(sum_dy, axis=0)

    def weighted_mean(sums: Tensor) -> Tensor:
        """Return γ/σ times the mean over a group."""
        if groups == int(x.shape[-1]):
            # A group is one channel with one γ. This is the same product as in dx's first term, so
            # that the gradient is exactly 0 if a channel has a single value.
            return group_means(total(sums), groups, count) * scale
        return group_means(total(sums * gamma), groups, count) * inverse

    slope = weighted_mean(sum_product) * ops.square(inverse)
    dx = dy * _wide(scale) - x * _wide(slope)
    if shift:
        dx = dx - _wide(weighted_mean(sum_dy) + shift[1] * slope)
    return ops.cast(dx, dtype), d_gamma, d_beta


def _statistics(
    shifted: Tensor,
    pivot: Tensor,
    *,
    groups: int,
    across: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return statistics of x, each (A, C), from x − pivot.

    Args:
        shifted: x − pivot, float32 (A, B, S, C).
        pivot: A value near each channel's mean, (A, C).
        groups: Groups of neighboring channels.
        across: As for :func:`standardize`.

    Returns:
        An offset that, added to x − pivot, centers it on the group's mean; that mean; the group's
        biased variance.
    """
    channels = int(shifted.shape[-1])
    total = across or (lambda values: values)
    count = total(count_of(shifted, channels))
    channel_offset = group_means(total(spatial_sum(shifted)), channels, count)
    mean_square = group_means(total(spatial_sum_of_squares(shifted)), channels, count)
    # Rounding can make the difference slightly negative.
    channel_variance = ops.maximum(mean_square - ops.square(channel_offset), 0.0)
    if groups == channels:
        return -channel_offset, pivot + channel_offset, channel_variance
    # The channels' means, as differences from one pivot, which lose no digits.
    pivot_difference = pivot - first_of_group(pivot, groups)
    offset = pivot_difference - group_means(
        pivot_difference + channel_offset, groups, channels / groups
    )
    variance = group_means(
        channel_variance + ops.square(channel_offset + offset), groups, channels / groups
    )
    return offset, pivot - offset, variance


def pivot_of(x: Tensor, across: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return a value near each channel's mean, (A, C), from a few positions of (A, B, S, C)."""
    total = across or (lambda values: values)
    sample = x[:, _sample_of(x.shape[1]), _sample_of(x.shape[2])]
    channels = int(x.shape[-1])
    count = total(count_of(sample, channels))
    return rounded(group_means(total(spatial_sum(sample)), channels, count))


def _standardize_valid(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    subtract_mean: bool,
    across: Callable[[Tensor], Tensor] | None,
    valid: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`standardize` with statistics of the valid positions."""
    values = ops.cast(x, "float32")
    if subtract_mean:
        values, mean, variance = center_valid(values, valid, groups, across)
    else:
        variance = _mean_of_valid(ops.square(values), valid, groups, across)
        mean = ops.zeros_like(variance)
    y = values * _wide(ops.rsqrt(variance + epsilon) * gamma) + beta
    return ops.cast(y, x.dtype), ops.stop_gradient(mean), ops.stop_gradient(variance)


def center_valid(
    x: Tensor,
    valid: Tensor,
    groups: int,
    across: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Center x on its mean over the valid positions and a group's channels.

    Args:
        x: float32 (A, B, S, C).
        valid: Positions to take the mean over, bool (A, B, S, 1).
        groups: Groups of neighboring channels; divides C.
        across: As for :func:`standardize`.

    Returns:
        x minus the mean, at all positions; the mean and the biased variance, float32 (A, C), 0 if
        no position is valid. All have gradients.
    """
    # Two steps: the mean of the shifted values corrects the rounding of the first mean.
    pivot = rounded(ops.stop_gradient(_mean_of_valid(x, valid, groups, across)))
    shifted = x - _wide(pivot)
    offset = _mean_of_valid(shifted, valid, groups, across)
    centered = shifted - _wide(offset)
    return centered, pivot + offset, _mean_of_valid(ops.square(centered), valid, groups, across)


def _mean_of_valid(
    values: Tensor, valid: Tensor, groups: int, across: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Return the mean of (A, B, S, C) over valid positions and a group's channels: (A, C)."""
    total = across or (lambda sums: sums)
    channels = int(values.shape[-1])
    # ops.where instead of a product with 0, because a masked position may be NaN.
    sums = spatial_sum(ops.where(valid, values, 0.0))
    means = total(sums) / at_least_one(total(count_valid(valid)))
    return means if groups == channels else group_means(means, groups, channels / groups)


def rounded(value: Tensor) -> Tensor:
    """Drop the last three bits of a float32 pivot.

    A compiler that fuses x − sum/count recomputes it at each use, with or without rounding between
    the two operations, so that the shifted values could differ between uses. A pivot with fewer
    bits than a float32 product is the same everywhere.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.reduce_precision(value, exponent_bits=8, mantissa_bits=20)
    if exporting():  # there is no portable operation for this, and few other programs fuse
        return value
    import tensorflow as tf

    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(value, tf.int32), -8), tf.float32)


def _sample_of(length: int | None) -> slice:
    """Return a slice of consecutive indices, from the middle of the axis if its length is known.

    The indices are not spread over the axis, because a strided copy is ten times slower on
    TensorFlow.
    """
    start = 0 if length is None or length <= _SAMPLES else length // 2 - _SAMPLES // 2
    return slice(start, start + _SAMPLES)


def _wide(statistic: Tensor) -> Tensor:
    """Make (A, C) broadcast over (A, B, S, C)."""
    return statistic[:, None, None, :]
