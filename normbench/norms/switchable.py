"""Switchable Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.affine import per_channel
from normbench.kernels.arrays import as_tensor, image_sets
from normbench.kernels.standardize import moments, pooled
from normbench.kernels.sums import count_in_batch, count_valid
from normbench.norms.base import BatchStatistics

__all__ = ["SwitchableNormalization"]


@keras.saving.register_keras_serializable("normbench")
class SwitchableNormalization(BatchStatistics):
    """Switchable Normalization (Luo et al. 2019, eq. 3–5).

    y = γ·(x − Σ w_k·μ_k)/sqrt(Σ w'_k·σ²_k + ε) + β, where k runs over Instance, Layer and Batch
    Normalization, in this order, with their means and biased variances. The weights w and w' are
    softmaxes of three learned numbers each, shared by all channels and initially equal.

    In inference, Batch Normalization's statistics are moving averages, as in the authors' code; the
    paper averages over mini-batches with fixed weights. The code uses the unbiased variance of an
    instance, the paper and this layer the biased one.

    Args:
        momentum: Weight of the old moving statistics.
        epsilon: Added to the mixed variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = γ·(x − Σ w_k·μ_k)/√(Σ w'_k·σ²_k + ε) + β, k of in, ln, bn"
    computed_over = "batch, space, channels"
    parameters = "γ, β: per channel; λ, λ' behind w, w': three each"
    state = "moving mean, moving variance: per channel"
    source = "Luo et al. 2019, equations 3–5 (arXiv 1806.10779)"

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)

    def create_weights(self, channels: int) -> None:
        self.mean_logits = self.float_weight("mean_logits", (3,), "ones")
        self.variance_logits = self.float_weight("variance_logits", (3,), "ones")
        self.moving_mean = self.moving_average("moving_mean", channels, "zeros")
        self.moving_variance = self.moving_average("moving_variance", channels, "ones")

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        sets, valid_sets = image_sets(x, valid)
        mean, variance = moments(sets, self.channels, valid_sets)
        layer_mean, layer_variance = pooled(mean, variance, axis=1)
        if self.takes_batch(x, training):
            counts = None if valid_sets is None else count_valid(valid_sets)
            batch_mean, batch_variance = pooled(mean, variance, axis=0, counts=counts)
            count = count_in_batch(x, valid)
            self.update_average(self.moving_mean, batch_mean[0], count=count)
            self.update_average(self.moving_variance, batch_variance[0], count=count)
        else:
            batch_mean = ops.convert_to_tensor(self.moving_mean)[None]
            batch_variance = ops.convert_to_tensor(self.moving_variance)[None]
        # Because the weights sum to 1, this is Σ w_k·μ_k, and exact if all three means are equal.
        w = ops.softmax(as_tensor(self.mean_logits))
        mixed_mean = mean + w[1] * (layer_mean - mean) + w[2] * (batch_mean - mean)
        w = ops.softmax(as_tensor(self.variance_logits))
        mixed = w[0] * variance + w[1] * layer_variance + w[2] * batch_variance
        scale = gamma * ops.rsqrt(mixed + self.epsilon)
        return per_channel(x, mixed_mean, scale, beta)
