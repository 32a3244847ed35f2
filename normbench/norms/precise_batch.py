"""Batch Normalization with exact population statistics."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.sums import at_least_one
from normbench.norms.batch import BatchNormalization

__all__ = ["PreciseBatchNormalization", "recomputed_layers"]

_IDLE = -1.0


@keras.saving.register_keras_serializable("normbench")
class PreciseBatchNormalization(BatchNormalization):
    """Batch Normalization whose population statistics are recomputed before an evaluation.

    Training is that of Batch Normalization. Moving averages lag behind the weights; the paper
    instead computes the inference statistics with fixed weights (Ioffe & Szegedy 2015, algorithm
    2, steps 7–11; "PreciseBN" in Wu & Johnson 2021, section 3). To do so, a training loop takes the
    layers from :func:`recomputed_layers` and

    1. calls each layer's ``begin()``;
    2. calls the model with ``training=True``, without a gradient, on mini-batches of training
       images. The state becomes the mean and biased variance of all values seen so far;
       mini-batches are weighted by their number of values;
    3. calls each layer's ``finish()``, which makes the variance unbiased if ``unbiased`` is set.
       Training then continues the moving averages from these values.

    ``begin`` and ``finish`` only assign to the state, so they can be called eagerly or in a
    ``tf.function``. A stateless loop (JAX) calls ``begin`` before it reads the non-trainable values
    into its own state, and ``finish`` after it has written them back; in between, the values pass
    through ``stateless_call`` like all others. In step 2, the state of other layers (moving
    averages of other norms, dropout's seeds) is updated as in training.

    As in Wu & Johnson (and Detectron2), the variance is that of all values, which is the mean of
    the mini-batches' variances plus the variance of their means; Ioffe & Szegedy average the
    variances alone. During step 2 every layer normalizes with the mini-batch, as in training, so
    later layers see their training-time inputs.

    Args:
        momentum: Weight of the old moving statistics in training.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: Whether the variance used in inference is the unbiased one.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,); ``collected``, float32, the number
    of values per channel collected since ``begin``, or −1 when not recomputing.

    Attributes:
        recompute: Marks the layer as one whose statistics are to be recomputed.

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of the training set in inference"
    state = "mean, variance: per channel; values collected"
    source = "Wu & Johnson 2021, section 3 (arXiv 2105.07576)"
    recompute = True

    def create_weights(self, channels: int) -> None:
        super().create_weights(channels)
        self.collected = self.float_weight(
            "collected", (), keras.initializers.Constant(_IDLE), trainable=False
        )

    def begin(self) -> None:
        """Start collecting population statistics from the following mini-batches."""
        self.collected.assign(ops.zeros((), "float32"))

    def finish(self) -> None:
        """Use the statistics of the mini-batches since ``begin`` in inference.

        Raises:
            ValueError: There were no mini-batches (checked only outside a graph or trace).
        """
        count = ops.convert_to_tensor(self.collected)
        total = _known(count)
        if total is not None and total <= 0:
            raise ValueError(f"{self.name} has seen no mini-batch in training mode since begin()")
        if self.unbiased:
            variance = ops.convert_to_tensor(self.moving_variance)
            self.moving_variance.assign(variance * self.unbiased_factor(count))
        self.collected.assign(ops.full((), _IDLE, "float32"))

    def update(self, mean: Any, variance: Any, count: Any) -> None:
        total_so_far = ops.convert_to_tensor(self.collected)
        collecting = total_so_far >= 0.0
        old_mean = ops.convert_to_tensor(self.moving_mean)
        old_variance = ops.convert_to_tensor(self.moving_variance)
        mean, variance = ops.stop_gradient(mean), ops.stop_gradient(variance)

        # Merge with the values so far (Chan, Golub & LeVeque 1983, eq. 2.1).
        total = ops.maximum(total_so_far, 0.0) + count
        share = count / (total if isinstance(count, float) else at_least_one(total))
        delta = mean - old_mean
        all_mean = old_mean + delta * share
        all_variance = (
            old_variance
            + (variance - old_variance) * share
            + ops.square(delta) * (share * (1.0 - share))
        )

        factor = self.unbiased_factor(count) if self.unbiased else 1.0
        old_weight, new_weight = self.momentum, 1.0 - self.momentum
        moved_mean = old_mean * old_weight + mean * new_weight
        moved_variance = old_variance * old_weight + variance * factor * new_weight
        if not isinstance(count, float):
            count = ops.max(count)  # a scalar
            moved_mean = ops.where(count > 0, moved_mean, old_mean)
            moved_variance = ops.where(count > 0, moved_variance, old_variance)
            total = ops.max(total)
        self.moving_mean.assign(ops.where(collecting, all_mean, moved_mean))
        self.moving_variance.assign(ops.where(collecting, all_variance, moved_variance))
        self.collected.assign(ops.where(collecting, total, total_so_far))


def recomputed_layers(model: keras.Model) -> list[Any]:
    """Return the layers of a model, including nested ones, that need recomputed statistics."""
    return [layer for layer in model._flatten_layers() if getattr(layer, "recompute", False)]


def _known(tensor: Any) -> float | None:
    """Return a tensor's value, or None inside a graph or trace."""
    if keras.backend.backend() == "jax":
        from jax.core import Tracer

        return None if isinstance(tensor, Tracer) else float(tensor)
    import tensorflow as tf

    return float(tensor) if tf.executing_eagerly() else None
