"""Batch statistics by the backend's own fused operation where it has one, else by ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from normbench.norms._compiled import has_gpu, is_large
from normbench.norms._statistics import count_of, standardize

Tensor = Any

_SAMPLE = 256
"""Places of the first image that are looked at to see whether a channel is nearly constant."""


def batch_standardize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    across: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Standardize each channel over images and places, then scale and shift.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.
        across: Sums a tensor over the replicas that hold parts of the mini-batch.

    Returns:
        y, (N, S, C) of x's dtype; the mini-batch's mean and biased variance, float32 (C,), through
        which no gradient flows; and the values a channel has, a float where that is known.
    """
    count = count_of(x[None], int(x.shape[-1]))
    if across is None and _has_fused(x):
        return *_fused(x, gamma, beta, epsilon, count), count
    y, mean, variance = standardize(
        ops.expand_dims(x, 0), gamma, beta, int(x.shape[-1]), epsilon, across=across
    )
    return ops.squeeze(y, 0), mean[0], variance[0], across(count) if across else count


def apply_statistics(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> Tensor:
    """Return (x − mean)·γ/sqrt(variance + ε) + β for x of (N, S, C) and the others of (C,).

    The dtype is x's; computed in float32.
    """
    if _has_fused(x):
        import tensorflow as tf

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
    # Centred first: x·a + (β − μ·a) would lose digits where |μ| is far above σ.
    centred = ops.cast(x, "float32") - mean
    return ops.cast(centred * (ops.rsqrt(variance + epsilon) * gamma) + beta, x.dtype)


def _has_fused(x: Tensor) -> bool:
    """Whether a fused operation beats ours: not for small inputs on a CPU."""
    if keras.backend.backend() != "tensorflow":
        return False
    return None in x.shape or is_large(x) or has_gpu()


def _fused(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, count: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """TensorFlow's own operation, which needs the fewest passes over memory."""
    import tensorflow as tf

    shifted, shift = (x, 0.0) if has_gpu() else _shifted(x)
    y, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.expand_dims(shifted, 2),
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    mean, unbiased = tf.stop_gradient(mean), tf.stop_gradient(unbiased)
    return (
        tf.squeeze(y, axis=2),
        mean + tf.cast(shift, tf.float32),
        unbiased * ((count - 1.0) / count),
    )


def _shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shift channels that look nearly constant towards 0; the shift itself, (C,).

    On a CPU TensorFlow's operation sums a channel's values in one go, in float32: of 50,000 values
    that are all 1.7 its mean is off by 4e-4, which its division by a deviation of 0 makes an
    output of 0.1 instead of 0.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def function(x: Tensor) -> Any:
        shift = _near(x)
        # Seldom needed, and a pass over memory.
        shifted = tf.cond(tf.reduce_any(shift != 0), lambda: x - shift, lambda: x)
        return (shifted, shift), lambda d_shifted, d_shift: d_shifted

    return function(x)


def _near(x: Tensor) -> Tensor:
    """A value near all of a channel's, (C,), or 0 where the first image's differ too much.

    Where it is not 0, x minus it is exact for all values within a factor of two of it, in any
    float dtype, and no farther off than x's deviation where it is not.
    """
    sample = x[0, :_SAMPLE]
    candidate = sample[0]
    spread = ops.max(ops.abs(sample - candidate), axis=0)
    return ops.where(spread < ops.abs(candidate) / 2, candidate, ops.zeros_like(candidate))
