"""Batch Normalization with TensorFlow on a CPU, for a mini-batch in one or several shards.

The entry point is :func:`standardize_shards`. Shards are computed in parallel; only a few numbers
per channel are combined across them.

TensorFlow's fused operation sums all values of a channel sequentially in float32: for 128 images of
32×32 the variance is off by 7e-4, and the variance of equal values is noise. So the statistics are
computed here, as sums of partial sums. The outputs and gradients come from the fused operation for
small inputs, and otherwise from a few passes over memory compiled by XLA. If a channel's mean is
far above its deviation, its values are shifted by the mean first, because E[x²] − E[x]² would lose
digits.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import ops

from normbench.kernels.compile import compile_shared, is_large
from normbench.kernels.sums import (
    LEAST_ROWS,
    at_least_one,
    count_of,
    slices_of,
    spatial_sum,
    spatial_sum_of_squares,
)

Tensor = Any

_FAR = 2.0
"""Distance of a channel's mean from 0, in deviations, above which the channel is shifted.

Shifting costs another pass over memory. Up to this distance the rounding error of E[x²] − E[x]² is
at most 1 + 2² times that of its terms. Convolution outputs in ResNet-20 and MobileNetV2 stay below
it throughout training (CIFAR-10).
"""

_LEAST_ROW = 32
"""Minimum row length. XLA compiles a row to a loop, and a short loop leaves the processor's vector
registers unused."""

_STRETCHES = 64
"""Maximum number of partial sums per channel: many, because every addition rounds."""


def standardize_shards(
    shards: list[Tensor], gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Standardize each channel over the images and positions of all shards, then scale and shift.

    Args:
        shards: The mini-batch; each shard any float dtype, (n, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.

    Returns:
        y, as a list of shards of the same dtype; the mini-batch's mean and biased variance, float32
        (C,), through which no gradient flows; and the number of values per channel, a float if it
        is known, else a tensor. Only first derivatives of y are defined.
    """
    passes = is_large(shards[0])
    forward = compile_shared(_forward_in_passes if passes else _forward, shards[0], by_xla=False)
    backward = compile_shared(_backward_in_passes if passes else _backward, shards[0], by_xla=False)

    @tf.custom_gradient
    def function(gamma: Tensor, beta: Tensor, *shards: Tensor) -> Any:
        *outputs, shift, mean, variance = forward(gamma, beta, *shards, epsilon=epsilon)

        def gradient(*upstream: Tensor) -> Any:
            d_outputs = upstream[: len(shards)]
            return backward(gamma, shift, mean, variance, *shards, *d_outputs, epsilon=epsilon)

        return (*outputs, shift + mean, variance), gradient

    *outputs, mean, variance = function(gamma, beta, *shards)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance), _count(shards)


def apply_fused(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> Tensor:
    """Return (x − mean)·γ/sqrt(variance + ε) + β for x of (N, S, C) and the others of (C,)."""
    y, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.expand_dims(x, 2),
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=False,
    )
    return tf.squeeze(y, axis=2)


def _forward(gamma: Tensor, beta: Tensor, *shards: Tensor, epsilon: float) -> tuple[Tensor, ...]:
    """Return the outputs, a shift, and mean and variance of the shifted shards."""
    values = [tf.cast(x, tf.float32) for x in shards]
    mean, variance = _moments(values)
    shift = _shift(mean, variance)

    def shifted() -> tuple[Tensor, ...]:
        differences = [x - shift for x in values]
        return (*differences, *_moments(differences))

    *values, mean, variance = tf.cond(
        tf.reduce_any(shift != 0), shifted, lambda: (*values, mean, variance)
    )
    outputs = [apply_fused(x, mean, variance, gamma, beta, epsilon) for x in values]
    outputs = [tf.cast(y, x.dtype) for y, x in zip(outputs, shards, strict=True)]
    return (*outputs, shift, mean, variance)


def _backward(
    gamma: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *tensors: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    """Return the gradients to γ, to β and to the shards.

    ``tensors`` are the shards, followed by the gradients of their outputs.
    """
    count = len(tensors) // 2
    shards = tensors[:count]
    values = [tf.cast(x, tf.float32) for x in shards]
    upstream = [tf.cast(dy, tf.float32) for dy in tensors[count:]]
    values = tf.cond(tf.reduce_any(shift != 0), lambda: [x - shift for x in values], lambda: values)
    is_single = count == 1
    terms = [
        tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=tf.expand_dims(dy, 2),
            x=tf.expand_dims(x, 2),
            scale=gamma,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=tf.zeros([0]),  # a GPU's
            epsilon=epsilon,
            # With several shards the operation must treat mean and variance as constants, so that
            # its dx is γ/σ·dy. The terms that flow through them are subtracted below.
            is_training=is_single,
        )
        for x, dy in zip(values, upstream, strict=True)
    ]
    gradients = [tf.squeeze(term.x_backprop, axis=2) for term in terms]
    d_gamma = tf.add_n([term.scale_backprop for term in terms])
    d_beta = tf.add_n([term.offset_backprop for term in terms])
    if not is_single:
        scale = gamma * tf.math.rsqrt(variance + epsilon) / _count(values)
        gradients = [
            dx - apply_fused(x, mean, variance, scale * d_gamma, scale * d_beta, epsilon)
            for dx, x in zip(gradients, values, strict=True)
        ]
    gradients = [tf.cast(dx, x.dtype) for dx, x in zip(gradients, shards, strict=True)]
    return (d_gamma, d_beta, *gradients)


def _forward_in_passes(
    gamma: Tensor, beta: Tensor, *shards: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    """Compute :func:`_forward` in passes over memory compiled by XLA."""
    rows = _Rows(shards)
    folded = [rows.folded(x) for x in shards]

    def moments(shift: Tensor) -> tuple[Tensor, Tensor]:
        tiled = rows.tile_channels(shift)
        sums = [compile_shared(moment_sums, x, by_xla=True)(x, tiled) for x in folded]
        return _with_variance(*rows.means(sums))

    raw_moments = moments(tf.zeros_like(gamma))
    shift = _shift(*raw_moments)
    mean, variance = tf.cond(tf.reduce_any(shift != 0), lambda: moments(shift), lambda: raw_moments)
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    tiled = [rows.tile_channels(value) for value in (shift, mean, scale, beta)]
    outputs = [compile_shared(normalized, x, by_xla=True)(x, *tiled) for x in folded]
    outputs = [tf.reshape(y, x.shape) for y, x in zip(outputs, shards, strict=True)]
    return (*outputs, shift, mean, variance)


def _backward_in_passes(
    gamma: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *tensors: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    """Compute :func:`_backward` in passes over memory compiled by XLA."""
    count = len(tensors) // 2
    shards = tensors[:count]
    rows = _Rows(shards)
    folded = [rows.folded(tensor) for tensor in tensors]
    pairs = list(zip(folded[:count], folded[count:], strict=True))
    tiled = [rows.tile_channels(value) for value in (shift, mean)]
    sums = [compile_shared(gradient_sums, x, by_xla=True)(x, dy, *tiled) for x, dy in pairs]
    mean_dy, mean_product = rows.means(sums)
    deviation = tf.math.rsqrt(variance + epsilon)
    slope = tf.square(deviation) * mean_product
    tiled += [rows.tile_channels(value) for value in (gamma * deviation, mean_dy, slope)]
    gradients = [compile_shared(input_gradient, x, by_xla=True)(x, dy, *tiled) for x, dy in pairs]
    gradients = [tf.reshape(dx, x.shape) for dx, x in zip(gradients, shards, strict=True)]
    return (deviation * mean_product * rows.count, mean_dy * rows.count, *gradients)


class _Rows:
    """Shards (n, S, C) folded into rows of t spatial positions each, (n, S/t, t·C).

    t is the smallest power of 2 that makes rows at least :data:`_LEAST_ROW` long, or the largest
    smaller one that divides S.
    """

    def __init__(self, shards: Any) -> None:
        _, positions, self._channels = shards[0].shape
        self._times = 1
        while self._times * self._channels < _LEAST_ROW and positions % (2 * self._times) == 0:
            self._times *= 2
        self.count = _count(list(shards))

    def folded(self, x: Tensor) -> Tensor:
        """Return (n, S, C) as (n, S/t, t·C)."""
        images, positions, channels = x.shape
        return tf.reshape(x, (images, positions // self._times, self._times * channels))

    def tile_channels(self, values: Tensor) -> Tensor:
        """Repeat a per-channel vector (C,) to the folded row length t·C."""
        return tf.tile(values, [self._times])

    def means(self, sums: list[Any]) -> tuple[Tensor, Tensor]:
        """Return two means (C,) over all shards, given each shard's two arrays of partial sums."""
        first, second = (
            tf.add_n([tf.reduce_sum(tf.reshape(rows, (-1, self._channels)), 0) for rows in shards])
            for shards in zip(*sums, strict=True)
        )
        return first / self.count, second / self.count


def _shift(mean: Tensor, variance: Tensor) -> Tensor:
    """Return each channel's shift: its mean if that is far from 0, else 0."""
    far = tf.square(mean) > _FAR**2 * variance
    # A product, because tf.where takes ten times as long.
    return mean * tf.cast(far, tf.float32)


def _moments(shards: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, from E[x²] − E[x]²."""
    count = at_least_one(_count(shards))
    mean = tf.add_n([spatial_sum(x[None])[0] for x in shards]) / count
    square = tf.add_n([spatial_sum_of_squares(x[None])[0] for x in shards]) / count
    return _with_variance(mean, square)


def _with_variance(mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance, E[x²] − E[x]² clipped at 0."""
    return mean, tf.maximum(square - tf.square(mean), 0.0)


def _count(shards: list[Tensor]) -> Any:
    """Return the number of values per channel in all shards, a float or a tensor."""
    return sum(count_of(x[None], int(x.shape[-1])) for x in shards)


# --- the passes that XLA compiles -----------------------------------------------------------------
# Each function reads its inputs in their own dtypes and writes only its result. Sums are partial,
# over stretches of rows. The caller adds up the partial sums outside of XLA, which would otherwise
# fuse both steps into one long sum.


def moment_sums(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return partial sums of x − shift, (n, S, C), and of its square: float32 (stretches, C)."""
    values = ops.cast(x, "float32") - shift
    return _sums(values), _sums(ops.square(values))


def normalized(x: Tensor, shift: Tensor, mean: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
    """Return (x − shift − mean)·scale + β in x's dtype; x is (n, S, C), the others float32 (C,)."""
    values = ops.cast(x, "float32") - shift
    return ops.cast((values - mean) * scale + beta, x.dtype)


def gradient_sums(x: Tensor, dy: Tensor, shift: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return partial sums of dy and of dy·(x − shift − mean): float32 (stretches, C)."""
    centered = (ops.cast(x, "float32") - shift) - mean
    dy = ops.cast(dy, "float32")
    return _sums(dy), _sums(dy * centered)


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
    centered = (ops.cast(x, "float32") - shift) - mean
    gradient = (ops.cast(dy, "float32") - mean_dy) - centered * slope
    return ops.cast(gradient * scale, x.dtype)


def _sums(values: Tensor) -> Tensor:
    """Sum (n, S, C) to (stretches, C), one sum per stretch of consecutive rows."""
    images, positions, channels = values.shape
    slices = slices_of(images * positions)
    if slices == 1:
        return ops.sum(values, axis=1)
    # Slices are contiguous in memory. Slices of each image would make XLA loop over images.
    rows = sum(ops.unstack(ops.reshape(values, (slices, -1)), slices, axis=0))
    count, stretches = images * positions // slices, 1
    while stretches < _STRETCHES and count % (2 * stretches * LEAST_ROWS) == 0:
        stretches *= 2
    return ops.sum(ops.reshape(rows, (stretches, -1, channels)), axis=1)
