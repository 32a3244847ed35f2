"""Batch Normalization over all replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from normbench.kernels.batch import batch_standardize
from normbench.norms.batch import BatchNormalization

__all__ = ["SynchronizedBatchNormalization"]


@keras.saving.register_keras_serializable("normbench")
class SynchronizedBatchNormalization(BatchNormalization):
    """Batch Normalization with the statistics of all replicas' mini-batches (Peng et al. 2018).

    If a mini-batch is split over devices, Batch Normalization normalizes each device's share
    separately; this layer sums the statistics, and the sums in the gradient, over all of them. The
    shares may differ in size. On one device it is Batch Normalization.

    Sums are taken over replicas

    * on TensorFlow, if the layer runs in a replica of a ``tf.distribute`` strategy, such as
      ``MirroredStrategy``, with more than one replica in sync;
    * on JAX, if the axis ``axis_name`` is mapped by ``jax.pmap``, ``jax.vmap`` or
      ``jax.shard_map(check_vma=False)``. Under ``jax.jit`` with a sharded batch (Keras's
      ``DataParallel``) this is not needed: an array there is the full mini-batch, and plain Batch
      Normalization is already synchronized.

    Gradients to γ and β are local to each replica, to be summed like all others.

    Keras's layer with ``synchronized=True`` does this on TensorFlow only, and with E[x²] − E[x]²,
    which in float32 loses the variance if |mean| is far above the deviation. PyTorch's
    ``SyncBatchNorm`` needs GPUs.

    Args:
        momentum: Weight of the old moving statistics.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        unbiased: As for :class:`BatchNormalization`, over the values on all replicas.
        axis_name: The mapped axis on JAX.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² over all replicas"
    source = "Peng et al. 2018, section 3.3 (arXiv 1711.07240)"

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        unbiased: bool = False,
        axis_name: str = "replicas",
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, unbiased, **kwargs)
        self.axis_name = axis_name

    def standardize(
        self, x: Any, gamma: Any, beta: Any, valid: Any = None
    ) -> tuple[Any, Any, Any, Any]:
        across = self._sum_over_replicas()
        return batch_standardize(x, gamma, beta, self.epsilon, across=across, valid=valid)

    def _sum_over_replicas(self) -> Callable[[Any], Any] | None:
        """Return a function that sums a tensor over the replicas, or None for one replica."""
        if keras.backend.backend() == "jax":
            import jax

            try:
                jax.lax.axis_size(self.axis_name)
            except NameError:  # the axis is not mapped
                return None
            return lambda values: jax.lax.psum(values, self.axis_name)
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return None
        return lambda values: context.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(values)
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis_name": self.axis_name}
