"""Batch Normalization and its two halves, centering alone and scaling alone."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.affine import batch_center, per_channel
from normbench.kernels.batch import apply_statistics, batch_standardize
from normbench.kernels.standardize import batch_moments
from normbench.kernels.sums import count_in_batch
from normbench.norms.base import BatchStatistics

__all__ = ["BatchCentering", "BatchNormalization", "BatchScaling"]


@keras.saving.register_keras_serializable("normbench")
class BatchNormalization(BatchStatistics):
    """Batch Normalization (Ioffe & Szegedy 2015, algorithms 1 and 2).

    y = γ·(x − μ)/sqrt(σ² + ε) + β. In training, μ and σ² are each channel's mean and biased
    variance in the mini-batch, over images and positions; in inference, moving averages of both.

    Keras's moving average is of the biased variance; the paper (algorithm 2, step 10) and PyTorch
    use the unbiased one, m/(m−1) times larger. ``unbiased`` selects one. Like Keras and PyTorch,
    this layer uses moving averages, whereas the paper averages over several mini-batches after
    training; see :class:`PreciseBatchNormalization` for that.

    Args:
        momentum: Weight of the old moving statistics, as in Keras (one minus PyTorch's).
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: Whether the moving variance averages the unbiased variance. If so, a mini-batch
            with one value per channel is rejected, because it has no unbiased variance.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only, as in
    Keras's layer; masked positions are normalized with the same statistics.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β"
    state = "moving mean, moving variance: per channel"
    source = "Ioffe & Szegedy 2015, algorithms 1 and 2 (arXiv 1502.03167)"

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        unbiased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)
        self.unbiased = bool(unbiased)

    def create_weights(self, channels: int) -> None:
        self.moving_mean = self.moving_average("moving_mean", channels, "zeros")
        self.moving_variance = self.moving_average("moving_variance", channels, "ones")

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        gamma, beta = self.affine()
        if self.takes_batch(x, training):
            y, mean, variance, count = self.standardize(x, gamma, beta, valid)
            self.update(mean, variance, count)
            return y
        mean = ops.convert_to_tensor(self.moving_mean)
        variance = ops.convert_to_tensor(self.moving_variance)
        return apply_statistics(x, mean, variance, gamma, beta, self.epsilon)

    def standardize(
        self, x: Any, gamma: Any, beta: Any, valid: Any = None
    ) -> tuple[Any, Any, Any, Any]:
        """Return outputs, mean, biased variance and count of a mini-batch, x of (N, S, C)."""
        return batch_standardize(x, gamma, beta, self.epsilon, valid=valid)

    def update(self, mean: Any, variance: Any, count: Any) -> None:
        """Update the state from a mini-batch's mean and biased variance over ``count`` values."""
        if self.unbiased:
            variance = variance * self.unbiased_factor(count)
        self.update_average(self.moving_mean, mean, count=count)
        self.update_average(self.moving_variance, variance, count=count)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unbiased": self.unbiased}


@keras.saving.register_keras_serializable("normbench")
class BatchCentering(BatchStatistics):
    """Batch Normalization without the variance ("mean-only", Salimans & Kingma 2016, section 4).

    y = x − μ + β. In training, μ is each channel's mean in the mini-batch, over images and
    positions; in inference, a moving average of it. The gradient is centered too:
    dx = dy − mean(dy).

    This is not Keras's ``BatchNormalization(scale=False)``, which omits γ but still divides by the
    standard deviation. Versions found online take the mean over the batch axis alone, which is only
    right for (N, C) inputs, and default to ``momentum=0.01`` as the weight of the old value, so
    that the moving mean is almost entirely the last mini-batch's.

    Args:
        momentum: Weight of the old moving mean.
        center: Whether to add β.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = x − μ + β"
    parameters = "β: per channel"
    state = "moving mean: per channel"
    source = "Salimans & Kingma 2016, section 4 (arXiv 1602.07868)"

    def __init__(self, momentum: float = 0.99, center: bool = True, **kwargs: Any) -> None:
        super().__init__(momentum, epsilon=0.0, center=center, scale=False, **kwargs)

    def create_weights(self, channels: int) -> None:
        self.moving_mean = self.moving_average("moving_mean", channels, "zeros")

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        gamma, beta = self.affine()
        if self.takes_batch(x, training):
            y, mean = batch_center(x, beta, valid)
            self.update_average(self.moving_mean, mean, count=count_in_batch(x, valid))
            return y
        return per_channel(x, ops.convert_to_tensor(self.moving_mean), gamma, beta)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["epsilon"], config["scale"]
        return config


@keras.saving.register_keras_serializable("normbench")
class BatchScaling(BatchStatistics):
    """Batch Normalization without the mean: divides by the standard deviation only.

    y = γ·x/sqrt(σ² + ε) + β. In training, σ² is each channel's biased variance in the mini-batch,
    over images and positions, about the mean (which is not subtracted); in inference, a moving
    average of it. The counterpart of :class:`BatchCentering` in ablations of Batch Normalization.

    Args:
        momentum: Weight of the old moving variance.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: Whether the moving variance averages the unbiased variance, as for
            :class:`BatchNormalization`.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = γ·x/√(σ² + ε) + β"
    state = "moving variance: per channel"
    source = "ours, for taking Ioffe & Szegedy 2015, algorithm 1, apart (arXiv 1502.03167)"

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        unbiased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)
        self.unbiased = bool(unbiased)

    def create_weights(self, channels: int) -> None:
        self.moving_variance = self.moving_average("moving_variance", channels, "ones")

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        variance = ops.convert_to_tensor(self.moving_variance)
        if self.takes_batch(x, training):
            _, variance, count = batch_moments(x, valid)
            factor = self.unbiased_factor(count) if self.unbiased else 1.0
            self.update_average(self.moving_variance, variance * factor, count=count)
        return per_channel(x, None, gamma * ops.rsqrt(variance + self.epsilon), beta)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unbiased": self.unbiased}
