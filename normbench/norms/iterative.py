"""Iterative Normalization: whitening by Newton's iteration."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from normbench.kernels.affine import batch_center, per_channel
from normbench.kernels.sums import at_least_one, count_in_batch
from normbench.norms.base import BatchStatistics, check_groups, groups_dividing

__all__ = ["IterativeNormalization"]


@keras.saving.register_keras_serializable("normbench")
class IterativeNormalization(BatchStatistics):
    """Iterative Normalization, IterNorm (Huang et al. 2019, algorithm 1): whitens channels.

    y = γ·Σ^(−1/2)·(x − μ) + β. μ is each channel's mean in the mini-batch over images and positions
    and Σ = cov + ε·I the covariance of the channels of a group. Σ^(−1/2) is approximated by
    ``iterations`` steps of Newton's method on Σ_N = Σ/tr(Σ): P ← (3·P − P³·Σ_N)/2 from P = I,
    then P/sqrt(tr(Σ)). The gradient flows through the iteration. In inference, μ and Σ^(−1/2) are
    moving averages.

    With few iterations, directions of low variance are not fully whitened, so the covariance of the
    outputs is not exactly I. This limits the noise of small mini-batches. The recursion amplifies
    rounding: well beyond the usual 5 iterations it diverges in float32. The authors' code silently
    reduces a group to the number of channels; here the group size must divide the channels.

    If neither ``groups`` nor ``channels_per_group`` is given, groups have 64 channels, as in the
    paper's ResNets; ``conf/norm/iternorm.yaml`` sets fewer, for small networks.

    The forward and the backward pass each need C/groups multiplications per value.

    Args:
        groups: Number of groups of channels, each whitened separately.
        momentum: Weight of the old moving statistics.
        epsilon: Added to the covariance's diagonal.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        channels_per_group: Channels per group, as an alternative to ``groups``.
        iterations: Steps of Newton's method, at least 1.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean``, float32 (C,), and ``moving_whitening``, float32 (G, C/G, C/G).

    Raises:
        ValueError: ``iterations`` below 1; otherwise as for :class:`GroupNormalization`.
    """

    formula = "y = γ·Σ^(−1/2)·(x − μ) + β, Σ of a group of channels, by Newton's iteration"
    computed_over = "batch, space, channels"
    state = "moving mean: per channel; moving whitening matrix: per group"
    source = "Huang et al. 2019, algorithm 1 (arXiv 1904.03441)"

    def __init__(
        self,
        groups: int | None = None,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        channels_per_group: int | None = None,
        iterations: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)
        if groups is None and channels_per_group is None:
            channels_per_group = 64
        check_groups(groups, channels_per_group)
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a whole number of at least 1, got {iterations!r}")
        self.groups = groups
        self.channels_per_group = channels_per_group
        self.iterations = iterations

    def create_weights(self, channels: int) -> None:
        groups = self._groups_of(channels)
        self.moving_mean = self.moving_average("moving_mean", channels, "zeros")
        shape = (groups, channels // groups, channels // groups)
        self.moving_whitening = self.float_weight(
            "moving_whitening", shape, _identities, trainable=False
        )

    def _groups_of(self, channels: int) -> int:
        return groups_dividing(self.name, channels, self.groups, self.channels_per_group)

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        groups = self._groups_of(self.channels)
        gamma, beta = self.affine()
        if self.takes_batch(x, training):
            centered, mean = batch_center(x, ops.zeros_like(beta), valid)
            vectors = _by_group(centered, groups)
            valid_vectors = vectors
            if valid is not None:
                valid_vectors = _by_group(ops.where(valid, centered, 0.0), groups)
            count = count_in_batch(x, valid)
            whitening = self._whitening(valid_vectors, count)
            self.update_average(self.moving_mean, mean, count=count)
            self.update_average(self.moving_whitening, whitening, count=count)
        else:
            vectors = _by_group(x - ops.convert_to_tensor(self.moving_mean), groups)
            whitening = ops.convert_to_tensor(self.moving_whitening)
        whitened = ops.transpose(ops.matmul(vectors, whitening), (1, 0, 2))
        return per_channel(ops.reshape(whitened, ops.shape(x)), None, gamma, beta)

    def _whitening(self, vectors: Any, count: Any) -> Any:
        """Return Σ^(−1/2), (G, D, D), symmetric.

        Args:
            vectors: Centered vectors, (G, M, D); masked ones are 0.
            count: Number of the M vectors that are not masked.
        """
        size = int(vectors.shape[-1])
        identity = ops.convert_to_tensor(np.eye(size, dtype=np.float32))
        products = ops.matmul(ops.transpose(vectors, (0, 2, 1)), vectors)
        covariance = products / at_least_one(count)
        covariance = covariance + self.epsilon * identity
        trace = ops.sum(covariance * identity, axis=(1, 2), keepdims=True)
        scaled = covariance / trace
        # The first step, from P = I, in closed form.
        power = 1.5 * identity - 0.5 * scaled
        for _ in range(self.iterations - 1):
            cube = ops.matmul(ops.matmul(power, power), power)
            power = 1.5 * power - 0.5 * ops.matmul(cube, scaled)
        return power * ops.rsqrt(trace)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "channels_per_group": self.channels_per_group,
            "iterations": self.iterations,
        }


def _by_group(x: Any, groups: int) -> Any:
    """Turn (N, S, C) into (G, N·S, C/G)."""
    size = int(x.shape[-1]) // groups
    return ops.transpose(ops.reshape(x, (-1, groups, size)), (1, 0, 2))


def _identities(shape: Any, dtype: Any = None) -> Any:
    """Return an identity matrix per group (an initializer)."""
    values = np.broadcast_to(np.eye(shape[-1], dtype=np.float32), tuple(shape))
    return ops.convert_to_tensor(values, dtype=dtype)
