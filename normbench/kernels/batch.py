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

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from normbench.kernels.compile import compile_shared, has_gpu, is_large, on_cpu
from normbench.kernels.standardize import (
    LEAST_ROWS,
    at_least_one,
    count_in_batch,
    count_of,
    slices_of,
    spatial_sum,
    spatial_sum_of_squares,
    standardize,
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
    forward = compile_shared(_forward_in_passes if passes else _forward, parts[0], by_xla=False)
    backward = compile_shared(_backward_in_passes if passes else _backward, parts[0], by_xla=False)

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
        sums = [compile_shared(moment_sums, each, by_xla=True)(each, lanes) for each in folded]
        return _with_variance(*rows.means(sums))

    near = moments(tf.zeros_like(gamma))
    shift = _shift(*near)
    mean, variance = tf.cond(tf.reduce_any(shift != 0), lambda: moments(shift), lambda: near)
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    lanes = [rows.lanes(each) for each in (shift, mean, scale, beta)]
    outputs = [compile_shared(applied, each, by_xla=True)(each, *lanes) for each in folded]
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
    sums = [compile_shared(gradient_sums, x, by_xla=True)(x, dy, *lanes) for x, dy in pairs]
    mean_dy, mean_product = rows.means(sums)
    deviation = tf.math.rsqrt(variance + epsilon)
    slope = tf.square(deviation) * mean_product
    lanes += [rows.lanes(each) for each in (gamma * deviation, mean_dy, slope)]
    gradients = [compile_shared(input_gradient, x, by_xla=True)(x, dy, *lanes) for x, dy in pairs]
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
    mean = tf.add_n([spatial_sum(each[None])[0] for each in parts]) / count
    square = tf.add_n([spatial_sum_of_squares(each[None])[0] for each in parts]) / count
    return _with_variance(mean, square)


def _with_variance(mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """A mean, and the variance it makes with the mean of the squares."""
    return mean, tf.maximum(square - tf.square(mean), 0.0)


def _count(parts: list[Tensor]) -> Any:
    """The values a channel has in all parts: a float, or a tensor."""
    return sum(count_of(each[None], int(each.shape[-1])) for each in parts)


# --- Batch Normalization of large inputs on a CPU in passes over memory, which XLA compiles ----
# Each function reads its inputs in their own dtypes and writes only its result. A channel's
# values are added up in stretches; the caller adds the few sums: XLA would join both into one.


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


# --- Batch Normalization by TensorFlow's own fused operations where it computes, else by ours -----


def batch_standardize(
    parts: list[Tensor],
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    across: Callable[[Tensor], Tensor] | None = None,
    valid: Tensor | None = None,
) -> tuple[list[Tensor], Tensor, Tensor, Any]:
    """Standardize each channel over images and places, then scale and shift.

    Args:
        parts: The mini-batch: each any float dtype, (n, S, C); computed in float32. More than
            one only where TensorFlow computes on a CPU, and without ``across``.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.
        across: Sums a tensor over the replicas that hold parts of the mini-batch.
        valid: The positions that statistics are taken over, bool (N, S, 1), of a mini-batch in
            one part; by default all.

    Returns:
        y, of the parts' shapes and dtypes; the mini-batch's mean and biased variance, float32
        (C,), through which no gradient flows; and the values a channel has, a float where that is
        known.
    """
    if valid is None and across is None and on_cpu():
        from normbench.kernels.batch import standardize_parts

        return standardize_parts(parts, gamma, beta, epsilon)
    (x,) = parts
    channels = int(x.shape[-1])
    if valid is not None:
        count = count_in_batch(x, valid)
        (y,), mean, variance = standardize(
            x[None], gamma, beta, channels, epsilon, across=across, valid=valid[None]
        )
        return [y], mean[0], variance[0], across(count) if across else count
    count = count_in_batch(x)
    if across is None and _on_gpu():
        y, mean, variance = _fused(x, gamma, beta, epsilon, count)
        return [y], mean, variance, count
    y, mean, variance = standardize(
        ops.expand_dims(x, 0), gamma, beta, channels, epsilon, across=across
    )
    return [ops.squeeze(y, 0)], mean[0], variance[0], across(count) if across else count


def apply_statistics(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> Tensor:
    """Return (x − mean)·γ/sqrt(variance + ε) + β for x of (N, S, C) and the others of (C,).

    The dtype is x's; computed in float32.
    """
    if on_cpu() or _on_gpu():
        from normbench.kernels.batch import apply_fused

        return apply_fused(x, mean, variance, gamma, beta, epsilon)
    # Centred first: x·a + (β − μ·a) would lose digits where |μ| is far above σ.
    centred = ops.cast(x, "float32") - mean
    return ops.cast(centred * (ops.rsqrt(variance + epsilon) * gamma) + beta, x.dtype)


def _on_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    return keras.backend.backend() == "tensorflow" and has_gpu()


def _fused(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, count: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """A GPU's own operation: outputs, mean and biased variance."""
    import tensorflow as tf

    y, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.expand_dims(x, 2),
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    variance = tf.stop_gradient(unbiased) * ((count - 1.0) / count)
    return tf.squeeze(y, axis=2), tf.stop_gradient(mean), variance
