"""A mini-batch, in one part or several, standardized on a CPU with TensorFlow.

TensorFlow's fused Batch Normalization takes its statistics by adding up a channel's values in one
go, in float32: of 128 images of 32×32 the variance is off by 7e-4, and of equal values it is noise.
So the statistics are ours, sums of parts before their sum. What applies them, and goes back, is the
fused operation where inputs are small, else a few passes over memory that XLA compiles. Where a
channel's mean is far above its deviation, its values are shifted by it first, for E[x²] − E[x]²
loses digits there.

The parts are taken side by side; what is taken over all of them is a few numbers a channel.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from normbench.norms._compiled import is_large, per_shape
from normbench.norms._passes import applied, gradient_sums, input_gradient, moment_sums
from normbench.norms._statistics import (
    at_least_one,
    count_of,
    over_places,
    squares_over_places,
)

Tensor = Any

_FAR = 2.0
"""Deviations between a channel's mean and 0 from which on it is shifted: another pass over memory.

Up to there the difference of squares has at most 1 + 2² times their roundings. What convolutions
of ResNet-20 and MobileNetV2 give stays below it, at the start and in training on CIFAR-10.
"""

_LANES = 32
"""Numbers that a row, which XLA makes a loop of, should have at least."""


def standardize_parts(
    parts: list[Tensor], gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Standardize each channel over the images and places of all parts, then scale and shift.

    Args:
        parts: Each any float dtype, (n, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.

    Returns:
        y, the parts in their dtype; the mini-batch's mean and biased variance, float32 (C,),
        through which no gradient flows; and the values a channel has, a float where it is known.
        Of y only first derivatives are defined.
    """
    passes = is_large(parts[0])
    forward = per_shape(_forward_in_passes if passes else _forward, parts[0], by_xla=False)
    backward = per_shape(_backward_in_passes if passes else _backward, parts[0], by_xla=False)

    @tf.custom_gradient
    def function(gamma: Tensor, beta: Tensor, *parts: Tensor) -> Any:
        *outputs, shift, mean, variance = forward(gamma, beta, *parts, epsilon=epsilon)

        def gradient(*upstream: Tensor) -> Any:
            d_outputs = upstream[: len(parts)]
            return backward(gamma, shift, mean, variance, *parts, *d_outputs, epsilon=epsilon)

        return (*outputs, shift + mean, variance), gradient

    *outputs, mean, variance = function(gamma, beta, *parts)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance), _count(parts)


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


def _forward(gamma: Tensor, beta: Tensor, *parts: Tensor, epsilon: float) -> tuple[Tensor, ...]:
    """Outputs; then a shift, and mean and variance of the parts less the shift."""
    values = [tf.cast(each, tf.float32) for each in parts]
    mean, variance = _moments(values)
    shift = _shift(mean, variance)

    def shifted() -> tuple[Tensor, ...]:
        less = [each - shift for each in values]
        return (*less, *_moments(less))

    *values, mean, variance = tf.cond(
        tf.reduce_any(shift != 0), shifted, lambda: (*values, mean, variance)
    )
    outputs = [apply_fused(each, mean, variance, gamma, beta, epsilon) for each in values]
    outputs = [tf.cast(y, x.dtype) for y, x in zip(outputs, parts, strict=True)]
    return (*outputs, shift, mean, variance)


def _backward(
    gamma: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *tensors: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    """Gradients to γ and β, and to the parts; given the parts, and the gradients of the outputs."""
    half = len(tensors) // 2
    parts = tensors[:half]
    values = [tf.cast(each, tf.float32) for each in parts]
    upstream = [tf.cast(each, tf.float32) for each in tensors[half:]]
    values = tf.cond(
        tf.reduce_any(shift != 0), lambda: [each - shift for each in values], lambda: values
    )
    whole = half == 1
    terms = [
        tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=tf.expand_dims(dy, 2),
            x=tf.expand_dims(x, 2),
            scale=gamma,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=tf.zeros([0]),  # a GPU's
            epsilon=epsilon,
            # Else mean and variance are taken for constants: dx is γ/σ·dy.
            is_training=whole,
        )
        for x, dy in zip(values, upstream, strict=True)
    ]
    gradients = [tf.squeeze(each.x_backprop, axis=2) for each in terms]
    d_gamma = tf.add_n([each.scale_backprop for each in terms])
    d_beta = tf.add_n([each.offset_backprop for each in terms])
    if not whole:
        scale = gamma * tf.math.rsqrt(variance + epsilon) / _count(values)
        gradients = [
            own - apply_fused(x, mean, variance, scale * d_gamma, scale * d_beta, epsilon)
            for own, x in zip(gradients, values, strict=True)
        ]
    gradients = [tf.cast(dx, x.dtype) for dx, x in zip(gradients, parts, strict=True)]
    return (d_gamma, d_beta, *gradients)


def _forward_in_passes(
    gamma: Tensor, beta: Tensor, *parts: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    """As :func:`_forward`."""
    rows = _Rows(parts)
    folded = [rows.folded(each) for each in parts]

    def moments(shift: Tensor) -> tuple[Tensor, Tensor]:
        lanes = rows.lanes(shift)
        sums = [per_shape(moment_sums, each, by_xla=True)(each, lanes) for each in folded]
        return _with_variance(*rows.means(sums))

    near = moments(tf.zeros_like(gamma))
    shift = _shift(*near)
    mean, variance = tf.cond(tf.reduce_any(shift != 0), lambda: moments(shift), lambda: near)
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    lanes = [rows.lanes(each) for each in (shift, mean, scale, beta)]
    outputs = [per_shape(applied, each, by_xla=True)(each, *lanes) for each in folded]
    outputs = [tf.reshape(y, x.shape) for y, x in zip(outputs, parts, strict=True)]
    return (*outputs, shift, mean, variance)


def _backward_in_passes(
    gamma: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *tensors: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    """As :func:`_backward`."""
    half = len(tensors) // 2
    parts = tensors[:half]
    rows = _Rows(parts)
    folded = [rows.folded(each) for each in tensors]
    pairs = list(zip(folded[:half], folded[half:], strict=True))
    lanes = [rows.lanes(each) for each in (shift, mean)]
    sums = [per_shape(gradient_sums, x, by_xla=True)(x, dy, *lanes) for x, dy in pairs]
    mean_dy, mean_product = rows.means(sums)
    deviation = tf.math.rsqrt(variance + epsilon)
    slope = tf.square(deviation) * mean_product
    lanes += [rows.lanes(each) for each in (gamma * deviation, mean_dy, slope)]
    gradients = [per_shape(input_gradient, x, by_xla=True)(x, dy, *lanes) for x, dy in pairs]
    gradients = [tf.reshape(dx, x.shape) for dx, x in zip(gradients, parts, strict=True)]
    return (deviation * mean_product * rows.count, mean_dy * rows.count, *gradients)


class _Rows:
    """Parts, (n, S, C), as rows long enough for a processor's vectors: of some places, not one."""

    def __init__(self, parts: Any) -> None:
        _, places, self._channels = parts[0].shape
        self._times = 1
        while self._times * self._channels < _LANES and places % (2 * self._times) == 0:
            self._times *= 2
        self.count = _count(list(parts))

    def folded(self, x: Tensor) -> Tensor:
        """Each row of S/t of what had C."""
        images, places, channels = x.shape
        return tf.reshape(x, (images, places // self._times, self._times * channels))

    def lanes(self, values: Tensor) -> Tensor:
        """What a row meets of (C,)."""
        return tf.tile(values, [self._times])

    def means(self, sums: list[Any]) -> tuple[Tensor, Tensor]:
        """Means, (C,), of two sums of each stretch of each part's rows."""
        first, second = (
            tf.add_n([tf.reduce_sum(tf.reshape(e, (-1, self._channels)), 0) for e in each])
            for each in zip(*sums, strict=True)
        )
        return first / self.count, second / self.count


def _shift(mean: Tensor, variance: Tensor) -> Tensor:
    """What a channel is to be shifted by: its mean where that is far from 0, else 0."""
    far = tf.square(mean) > _FAR**2 * variance
    # A product: choosing takes ten times as long.
    return mean * tf.cast(far, tf.float32)


def _moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, from E[x²] − E[x]²."""
    count = at_least_one(_count(parts))
    mean = tf.add_n([over_places(each[None])[0] for each in parts]) / count
    square = tf.add_n([squares_over_places(each[None])[0] for each in parts]) / count
    return _with_variance(mean, square)


def _with_variance(mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """A mean, and the variance it makes with the mean of the squares."""
    return mean, tf.maximum(square - tf.square(mean), 0.0)


def _count(parts: list[Tensor]) -> Any:
    """The values a channel has in all parts: a float, or a tensor."""
    return sum(count_of(each[None], int(each.shape[-1])) for each in parts)
