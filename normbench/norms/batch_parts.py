"""The two halves of Batch Normalization: subtracting the mean, and dividing by the deviation."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._base import BatchStatistics
from normbench.norms._channelwise import batch_centre, per_channel
from normbench.norms._statistics import batch_moments, count_in_batch, flatten_places

__all__ = ["BatchCentering", "BatchScaling"]


@keras.saving.register_keras_serializable("normbench")
class BatchCentering(BatchStatistics):
    """Batch Normalization without the variance ("mean-only", Salimans & Kingma 2016, section 4).

    y = x − μ + β. In training μ is each channel's mean in the mini-batch, over images and places;
    in inference a moving average of it. The gradient is centred in turn: dx = dy − mean(dy).

    Keras's ``BatchNormalization(scale=False)`` is something else: it leaves out γ and still
    divides by the deviation. Layers of this kind that circulate take the mean over the batch axis
    alone, which does for (N, C) inputs only, and give ``momentum`` a default of 0.01 where it
    weighs the old value, so that the moving mean is all but the last mini-batch's.

    Args:
        momentum: Weight of the old moving mean.
        center: Whether to add β.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask, (N, ...), the
    statistics, moving ones too, are those of the valid positions.
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

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.moving_mean = self.channel_weight(
            "moving_mean", int(input_shape[-1] or 0), "zeros", trainable=False
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        valid = self.valid_positions(mask, inputs)
        x = flatten_places(inputs)
        gamma, beta = self.affine(int(inputs.shape[-1]))
        if self.takes_batch(inputs, training):
            outputs, mean = batch_centre(x, beta, valid)
            self.follow(self.moving_mean, mean, count=count_in_batch(x, valid))
        else:
            outputs = per_channel(x, ops.convert_to_tensor(self.moving_mean), gamma, beta)
        return self.as_input(outputs, inputs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["epsilon"], config["scale"]
        return config


@keras.saving.register_keras_serializable("normbench")
class BatchScaling(BatchStatistics):
    """Batch Normalization without the mean: only divided by the deviation.

    y = γ·x/sqrt(σ² + ε) + β. In training σ² is each channel's biased variance in the mini-batch,
    over images and places, about the mean that is not subtracted; in inference a moving average
    of it. The counterpart of :class:`BatchCentering`, for taking Batch Normalization apart.

    Args:
        momentum: Weight of the old moving variance.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: Whether the moving variance averages the unbiased variance, as for
            :class:`BatchNormalization`.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask, (N, ...), the
    statistics, moving ones too, are those of the valid positions.
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

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.moving_variance = self.channel_weight(
            "moving_variance", int(input_shape[-1] or 0), "ones", trainable=False
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        valid = self.valid_positions(mask, inputs)
        x = ops.cast(flatten_places(inputs), "float32")
        gamma, beta = self.affine(int(inputs.shape[-1]))
        variance = ops.convert_to_tensor(self.moving_variance)
        if self.takes_batch(inputs, training):
            _, variance, count = batch_moments(x, valid)
            factor = self.unbiased_factor(count) if self.unbiased else 1.0
            self.follow(self.moving_variance, variance * factor, count=count)
        outputs = per_channel(x, None, gamma * ops.rsqrt(variance + self.epsilon), beta)
        return self.as_input(outputs, inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unbiased": self.unbiased}
