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

    Trains as Batch Normalization does. A moving average follows weights that have moved on since;
    the paper instead takes the statistics of inference with the weights held still (Ioffe &
    Szegedy 2015, algorithm 2, steps 7–11; "PreciseBN" in Wu & Johnson 2021, section 3). For that,
    in an engine, with the layers from :func:`recomputed_layers`:

    1. call each layer's ``begin()``;
    2. call the model with ``training=True``, without a gradient, on mini-batches of training
       images: meanwhile the state becomes the mean and the biased variance of all values seen so
       far, mini-batches of different sizes weighed by their values;
    3. call each layer's ``finish()``, which makes the variance unbiased where asked for. From here
       on training moves the averages on as usual, from where they are.

    ``begin`` and ``finish`` only assign to the state, so they may be called eagerly or in a
    ``tf.function``. A stateless loop (JAX) calls them between its loops: ``begin`` before it reads
    the non-trainable values into its own state, ``finish`` after it has written them back; in
    between the values travel through ``stateless_call`` like all others. Other layers' state
    (moving averages of other norms, dropout's seeds) moves on in step 2 as in training.

    As in Wu & Johnson (and Detectron2) the variance is that of all values, which is the mean of
    the mini-batches' variances plus the variance of their means; Ioffe & Szegedy average the
    variances alone. Layers after another see it normalize with the mini-batch, as in training.

    Args:
        momentum: Weight of the old moving statistics in training.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: Whether the variance kept for inference is the unbiased one.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask, (N, ...), the
    statistics, moving ones too, are those of the valid positions.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,); ``collected``, float32: how many
    values a channel the statistics have been recomputed from, −1 while they are moving averages.

    Attributes:
        recompute: Tells an engine that this layer's statistics are to be recomputed.

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
        """Let the mini-batches from here on make up the population statistics."""
        self.collected.assign(ops.zeros((), "float32"))

    def finish(self) -> None:
        """Keep the statistics of the mini-batches since ``begin``.

        Raises:
            ValueError: There were none, called where that can be told.
        """
        count = ops.convert_to_tensor(self.collected)
        known = _known(count)
        if known is not None and known <= 0:
            raise ValueError(f"{self.name} has seen no mini-batch in training mode since begin()")
        if self.unbiased:
            variance = ops.convert_to_tensor(self.moving_variance)
            self.moving_variance.assign(variance * self.unbiased_factor(count))
        self.collected.assign(ops.full((), _IDLE, "float32"))

    def update(self, mean: Any, variance: Any, count: Any) -> None:
        collected = ops.convert_to_tensor(self.collected)
        collecting = collected >= 0.0
        old_mean = ops.convert_to_tensor(self.moving_mean)
        old_variance = ops.convert_to_tensor(self.moving_variance)
        mean, variance = ops.stop_gradient(mean), ops.stop_gradient(variance)

        # What these values are of all so far (Chan, Golub & LeVeque 1983, eq. 2.1).
        total = ops.maximum(collected, 0.0) + count
        share = count / (total if isinstance(count, float) else at_least_one(total))
        delta = mean - old_mean
        all_mean = old_mean + delta * share
        all_variance = (
            old_variance
            + (variance - old_variance) * share
            + ops.square(delta) * (share * (1.0 - share))
        )

        factor = self.unbiased_factor(count) if self.unbiased else 1.0
        kept, new = self.momentum, 1.0 - self.momentum
        moved_mean = old_mean * kept + mean * new
        moved_variance = old_variance * kept + variance * factor * new
        if not isinstance(count, float):
            count = ops.max(count)  # a scalar
            moved_mean = ops.where(count > 0, moved_mean, old_mean)
            moved_variance = ops.where(count > 0, moved_variance, old_variance)
            total = ops.max(total)
        self.moving_mean.assign(ops.where(collecting, all_mean, moved_mean))
        self.moving_variance.assign(ops.where(collecting, all_variance, moved_variance))
        self.collected.assign(ops.where(collecting, total, collected))


def recomputed_layers(model: keras.Model) -> list[Any]:
    """Return the layers of a model, nested ones too, whose statistics are to be recomputed."""
    return [layer for layer in model._flatten_layers() if getattr(layer, "recompute", False)]


def _known(tensor: Any) -> float | None:
    """A tensor's value, or None inside a graph or a trace."""
    if keras.backend.backend() == "jax":
        from jax.core import Tracer

        return None if isinstance(tensor, Tracer) else float(tensor)
    import tensorflow as tf

    return float(tensor) if tf.executing_eagerly() else None
