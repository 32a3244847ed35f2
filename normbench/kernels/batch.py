"""Batch Normalization of arrays: :func:`batch_standardize` and :func:`apply_statistics`.

TensorFlow's fused operations are used where they are faster and accurate, otherwise
:mod:`normbench.kernels.standardize`. The CPU code is in :mod:`normbench.kernels.batch_cpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from normbench.kernels.compile import has_gpu, on_cpu
from normbench.kernels.standardize import standardize
from normbench.kernels.sums import count_in_batch

Tensor = Any


def batch_standardize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    across: Callable[[Tensor], Tensor] | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Standardize each channel over images and spatial positions, then scale and shift.

    Args:
        x: The mini-batch: any float dtype, (N, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.
        across: Sums a tensor over the replicas that share the mini-batch.
        valid: Positions to take statistics over, bool (N, S, 1); by default all.

    Returns:
        y, of x's shape and dtype; the mini-batch's mean and biased variance, float32 (C,), through
        which no gradient flows; and the number of values per channel, a float if it is known, else
        a tensor.
    """
    if valid is None and across is None and on_cpu():
        from normbench.kernels.batch_cpu import standardize_shards

        (y,), mean, variance, count = standardize_shards([x], gamma, beta, epsilon)
        return y, mean, variance, count
    count = count_in_batch(x, valid)
    if valid is None and across is None and _on_gpu():
        return *_standardize_on_gpu(x, gamma, beta, epsilon, count), count
    y, mean, variance = standardize(
        ops.expand_dims(x, 0),
        gamma,
        beta,
        int(x.shape[-1]),
        epsilon,
        across=across,
        valid=None if valid is None else valid[None],
    )
    return ops.squeeze(y, 0), mean[0], variance[0], across(count) if across else count


def apply_statistics(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> Tensor:
    """Return (x − mean)·γ/√(variance + ε) + β in x's dtype, computed in float32.

    Args:
        x: Any float dtype, (N, S, C).
        mean: float32, (C,), like ``variance``, ``gamma`` and ``beta``.
        variance: Biased or unbiased.
        gamma: Scale.
        beta: Shift.
        epsilon: Added to the variance.
    """
    if on_cpu() or _on_gpu():
        from normbench.kernels.batch_cpu import apply_fused

        return apply_fused(x, mean, variance, gamma, beta, epsilon)
    # Center first: x·a + (β − μ·a) would lose digits if |μ| is far above σ.
    centered = ops.cast(x, "float32") - mean
    return ops.cast(centered * (ops.rsqrt(variance + epsilon) * gamma) + beta, x.dtype)


def _on_gpu() -> bool:
    """Return whether TensorFlow computes on a GPU."""
    return keras.backend.backend() == "tensorflow" and has_gpu()


def _standardize_on_gpu(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, count: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, mean and biased variance, using the fused operation (accurate on a GPU)."""
    import tensorflow as tf

    y, mean, unbiased_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.expand_dims(x, 2),
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    variance = tf.stop_gradient(unbiased_variance) * ((count - 1.0) / count)
    return tf.squeeze(y, axis=2), tf.stop_gradient(mean), variance
