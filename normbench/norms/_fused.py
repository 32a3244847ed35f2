"""Batch Normalization by TensorFlow's own fused operations where it computes, else by ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from normbench.norms._compiled import has_gpu, on_cpu
from normbench.norms._statistics import count_in_batch, standardize

Tensor = Any


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
        from normbench.norms._parts import standardize_parts

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
        from normbench.norms._parts import apply_fused

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
