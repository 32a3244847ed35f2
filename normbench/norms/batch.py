"""Batch Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._base import ChannelAffine
from normbench.norms._statistics import batch_standardize, flatten_places

__all__ = ["BatchNormalization"]


@keras.saving.register_keras_serializable("normbench")
class BatchNormalization(ChannelAffine):
    """Batch Normalization (Ioffe & Szegedy 2015, algorithms 1 and 2).

    In training each channel is standardized with the mean and the biased variance of the
    mini-batch over images and places; in inference with moving averages of both.

    Keras's layer keeps the biased variance in its moving average; the paper (algorithm 2, step
    10) and PyTorch the unbiased one, m/(m−1) times it. ``unbiased`` chooses.

    Args:
        momentum: Weight of the old moving statistics, as in Keras (PyTorch's is one minus it).
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: Whether the moving variance averages the unbiased variance. Of a mini-batch of
            one value a channel there is none; it is then refused.

    Input and output: (N, ..., C), any float dtype; computed in float32.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        unbiased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0..1, got {momentum}")
        self.momentum = float(momentum)
        self.unbiased = bool(unbiased)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        channels = int(input_shape[-1] or 0)
        self.moving_mean = self._channel_weight("moving_mean", channels, "zeros", trainable=False)
        self.moving_variance = self._channel_weight(
            "moving_variance", channels, "ones", trainable=False
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = flatten_places(inputs)
        gamma, beta = self.affine(int(inputs.shape[-1]))
        if training and self.trainable:
            outputs, mean, variance = batch_standardize(x, gamma, beta, self.epsilon)
            self._update(mean, variance, x)
        else:
            inverse = ops.rsqrt(ops.convert_to_tensor(self.moving_variance) + self.epsilon)
            # Centred first: x·a + (β − μ·a) would lose digits where |μ| is far above σ.
            outputs = (x - ops.convert_to_tensor(self.moving_mean)) * (inverse * gamma) + beta
        return ops.cast(ops.reshape(outputs, ops.shape(inputs)), self.compute_dtype)

    def _update(self, mean: Any, variance: Any, x: Any) -> None:
        if self.unbiased:
            variance = variance * self._correction(x)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = ops.convert_to_tensor(moving)
            moving.assign(old * self.momentum + new * (1.0 - self.momentum))

    def _correction(self, x: Any) -> Any:
        """m/(m−1) for the m values that each channel has in the mini-batch."""
        if x.shape[0] is None or x.shape[1] is None:
            count = ops.cast(ops.shape(x)[0] * ops.shape(x)[1], "float32")
            return count / ops.maximum(count - 1.0, 1.0)
        count = x.shape[0] * x.shape[1]
        if count == 1:
            raise ValueError(
                f"{self.name} has one value a channel in a mini-batch, so no unbiased variance: "
                "use a larger batch or unbiased=False"
            )
        return count / (count - 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum, "unbiased": self.unbiased}
