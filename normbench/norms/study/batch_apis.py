"""Batch Normalization with the APIs of TensorFlow and Keras, for comparison with ours."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.arrays import as_tensor
from normbench.kernels.standardize import batch_moments
from normbench.kernels.sums import count_in_batch
from normbench.norms.base import BatchStatistics

__all__ = ["KerasBatchNormalization", "MomentsBatchNormalization"]


@keras.saving.register_keras_serializable("normbench")
class KerasBatchNormalization(keras.layers.BatchNormalization):
    """Keras's own ``BatchNormalization``.

    It computes in float32 under half precision. Its moving variance averages the biased variance,
    the paper's (Ioffe & Szegedy 2015, algorithm 2, step 10) the unbiased one.

    Args:
        momentum: Weight of the old moving statistics.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β"
    computed_over = "batch, space"
    parameters = "γ, β: per channel"
    state = "moving mean, moving variance: per channel"
    source = "keras.layers.BatchNormalization"

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, center=center, scale=scale, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        # An empty mini-batch would turn Keras's moving averages into NaN for good.
        if inputs.shape[0] is not None or not training:
            return super().call(inputs, training=training and 0 not in inputs.shape, mask=mask)
        averages = (self.moving_mean, self.moving_variance)
        old_values = [as_tensor(average) for average in averages]
        outputs = super().call(inputs, training=training, mask=mask)
        for average, old_value in zip(averages, old_values, strict=True):
            average.assign(ops.where(ops.shape(inputs)[0] > 0, average, old_value))
        return outputs


@keras.saving.register_keras_serializable("normbench")
class MomentsBatchNormalization(BatchStatistics):
    """``tf.nn.moments``, ``tf.nn.batch_normalization``, and hand-written moving averages.

    Many tutorials do this, with the same default decay of 0.9 and epsilon of 0.001. The gradient
    comes from automatic differentiation through both functions. On other backends than TensorFlow,
    the same formulas are computed with ``keras.ops``.

    ``tf.nn.batch_normalization`` computes x·(γ/σ) + (β − μ·γ/σ), which loses digits if a channel's
    mean is far above its deviation; centering first would not.

    Args:
        momentum: Weight of the old moving statistics ("decay").
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean`` and ``moving_variance`` (biased), float32 (C,).
    """

    formula = "y = x·(γ/√(σ² + ε)) + (β − μ·γ/√(σ² + ε))"
    state = "moving mean, moving variance: per channel"
    source = "tf.nn.moments and tf.nn.batch_normalization (TensorFlow)"

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)

    def create_weights(self, channels: int) -> None:
        self.moving_mean = self.moving_average("moving_mean", channels, "zeros")
        self.moving_variance = self.moving_average("moving_variance", channels, "ones")

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        if self.takes_batch(x, training):
            if valid is None:
                mean, variance = _moments(x, [0, 1])
                count = count_in_batch(x)
                if not isinstance(count, float):  # it may be 0 at run time: avoid 0/0
                    mean, variance = (
                        ops.where(count > 0, value, 0.0) for value in (mean, variance)
                    )
            else:
                mean, variance, count = batch_moments(x, valid)
            self.update_average(self.moving_mean, mean, count=count)
            self.update_average(self.moving_variance, variance, count=count)
        else:
            mean = ops.convert_to_tensor(self.moving_mean)
            variance = ops.convert_to_tensor(self.moving_variance)
        return _normalized(x, mean, variance, beta, gamma, self.epsilon)


def _moments(x: Any, axes: list[int]) -> tuple[Any, Any]:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.moments(x, axes)
    return ops.moments(x, axes)


def _normalized(x: Any, mean: Any, variance: Any, beta: Any, gamma: Any, epsilon: float) -> Any:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
    factor = ops.rsqrt(variance + epsilon) * gamma
    return x * factor + (beta - mean * factor)
