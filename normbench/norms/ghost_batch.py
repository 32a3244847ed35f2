"""Ghost Batch Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.standardize import standardize
from normbench.kernels.sums import count_of, count_valid
from normbench.norms.batch import BatchNormalization

__all__ = ["GhostBatchNormalization"]


@keras.saving.register_keras_serializable("normbench")
class GhostBatchNormalization(BatchNormalization):
    """Ghost Batch Normalization (Hoffer et al. 2017, algorithm 1).

    Applies Batch Normalization separately to each ``virtual_batch`` consecutive images of the
    mini-batch, so that a large mini-batch is normalized like small ones. Inference uses moving
    averages.

    As in the paper, the moving averages are updated by one virtual batch after another, so that
    ``momentum`` has the same meaning for any mini-batch size. The paper averages the deviation;
    this layer averages the variance, like Batch Normalization.

    Args:
        virtual_batch: Images normalized together; must divide the mini-batch.
        momentum: Weight of the old moving statistics at each virtual batch.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: As for :class:`BatchNormalization`.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``virtual_batch`` is below 1 or does not divide the mini-batch, or ``momentum``
            is outside [0, 1]. If TensorFlow only knows the mini-batch's size at run time,
            ``tf.errors.InvalidArgumentError`` is raised instead.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of a virtual batch"
    source = "Hoffer, Hubara & Soudry 2017, algorithm 1 (arXiv 1705.08741)"

    def __init__(
        self,
        virtual_batch: int = 32,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        unbiased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, unbiased, **kwargs)
        if not isinstance(virtual_batch, int) or virtual_batch < 1:
            raise ValueError(
                f"virtual_batch must be a whole number of at least 1, got {virtual_batch!r}"
            )
        self.virtual_batch = virtual_batch

    def standardize(
        self, x: Any, gamma: Any, beta: Any, valid: Any = None
    ) -> tuple[Any, Any, Any, Any]:
        images, positions, channels = x.shape
        size = self.virtual_batch
        refusal = f"virtual_batch={size} does not divide the mini-batch of {self.name}"
        if images is None:
            x = _checked(x, size, refusal)
        elif images % size:
            raise ValueError(
                f"{refusal}, {images} images: choose a batch that is a multiple of {size}, or a "
                "virtual_batch that divides it"
            )
        shape = (
            -1 if images is None else images // size,
            size,
            ops.shape(x)[1] if positions is None else positions,
            channels,
        )
        sets = ops.reshape(x, shape)
        if valid is None:
            count = count_of(sets, int(channels))
        else:
            valid = ops.reshape(valid, (*shape[:-1], 1))
            count = count_valid(valid)
        y, mean, variance = standardize(sets, gamma, beta, int(channels), self.epsilon, valid=valid)
        return ops.reshape(y, ops.shape(x)), mean, variance, count

    def update(self, mean: Any, variance: Any, count: Any) -> None:
        if self.unbiased:
            variance = variance * self.unbiased_factor(count)
        # Equivalent to one update per virtual batch: the last one has weight 1 − momentum, the one
        # before it momentum times as much, and so on.
        if isinstance(count, float) or len(count.shape) == 0:
            batches = ops.shape(mean)[0]
            age = ops.cast(batches - 1 - ops.arange(batches), "float32")[:, None]
            weight = (1.0 - self.momentum) * ops.power(self.momentum, age)
            old_weight = ops.power(self.momentum, ops.cast(batches, "float32"))
        else:  # virtual batches without a valid position are skipped
            has_values = ops.cast(count > 0, "float32")
            age = ops.sum(has_values, axis=0) - ops.cumsum(has_values, axis=0)
            weight = (1.0 - self.momentum) * ops.power(self.momentum, age) * has_values
            old_weight = ops.power(self.momentum, ops.sum(has_values))
        for moving, values in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(
                ops.convert_to_tensor(moving) * old_weight
                + ops.sum(ops.stop_gradient(values) * weight, axis=0)
            )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "virtual_batch": self.virtual_batch}


def _checked(x: Any, size: int, refusal: str) -> Any:
    """Make TensorFlow reject, at run time, a mini-batch that ``size`` does not divide."""
    import tensorflow as tf

    remainder = tf.math.floormod(tf.shape(x)[0], size)
    with tf.control_dependencies([tf.debugging.assert_equal(remainder, 0, message=refusal)]):
        return tf.identity(x)
