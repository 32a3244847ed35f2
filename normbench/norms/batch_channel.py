"""Batch-Channel Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.arrays import as_tensor
from normbench.kernels.batch import apply_statistics
from normbench.kernels.standardize import batch_moments, group_standardize
from normbench.norms.base import groups_dividing
from normbench.norms.batch import BatchNormalization

__all__ = ["BatchChannelNormalization"]


@keras.saving.register_keras_serializable("normbench")
class BatchChannelNormalization(BatchNormalization):
    """Batch-Channel Normalization (Qiao et al. 2019b, arXiv 1911.09738, algorithm 1).

    Batch Normalization of each channel, then normalization of each image over positions and the
    channels of a group. The first step keeps channels from being nearly switched off (the paper's
    elimination singularities), which normalizing over channels alone does not prevent; the second
    step compensates for the first step's noisy estimates.

    For micro-batches, whose statistics are poor estimates, the first step uses moving averages in
    training as well. The averages are updated first: μ̂ with the mini-batch's mean and σ̂² with its
    mean squared distance from the old μ̂, as in the authors' code. No gradient flows through them.
    Inference is the same in both modes.

    As in the authors' code, the second step has one scale and shift per group, whereas Group
    Normalization has them per channel. In that code, the update rate of Batch Normalization,
    ``1 − momentum`` here, follows the learning rate for micro-batches; here it is constant.

    Args:
        groups: Number of groups in the second step; must divide the channels.
        micro_batch: Whether training normalizes with the moving averages.
        momentum: Weight of the old moving statistics.
        epsilon: Added to the variances of both steps.
        center: Whether to add a shift, in both steps.
        scale: Whether to multiply by a scale, in both steps.
        unbiased: Whether the moving variance averages the unbiased variance; no effect with
            ``micro_batch``.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics of both steps, including moving ones, are taken over the valid
    positions only.
    State: ``moving_mean`` and ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` is outside [0, 1], or ``groups`` does not divide the channels.
    """

    formula = "y = GN(z), z = γ·(x − μ)/√(σ² + ε) + β; with micro_batch, μ and σ² the moving ones"
    computed_over = "batch, space; then space, channels"
    parameters = "γ, β: per channel, and per group"
    source = "Qiao et al. 2019, algorithm 1 (arXiv 1911.09738)"

    def __init__(
        self,
        groups: int = 32,
        micro_batch: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        unbiased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, unbiased, **kwargs)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a whole number of at least 1, got {groups!r}")
        self.groups = groups
        self.micro_batch = bool(micro_batch)

    def create_weights(self, channels: int) -> None:
        super().create_weights(channels)
        groups_dividing(self.name, channels, self.groups, None)
        shape = (self.groups,)
        self.group_gamma = self.float_weight("group_gamma", shape, "ones") if self.scale else None
        self.group_beta = self.float_weight("group_beta", shape, "zeros") if self.center else None

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        takes_batch = self.takes_batch(x, training)
        if takes_batch and not self.micro_batch:
            y, mean, variance, count = self.standardize(x, gamma, beta, valid)
            self.update(mean, variance, count)
        else:
            if takes_batch:
                self._move_averages(x, valid)
            mean = ops.stop_gradient(ops.convert_to_tensor(self.moving_mean))
            variance = ops.stop_gradient(ops.convert_to_tensor(self.moving_variance))
            y = apply_statistics(x, mean, variance, gamma, beta, self.epsilon)
        return self._over_channels(y, valid)

    def _move_averages(self, x: Any, valid: Any) -> None:
        """Update the averages with the mini-batch's mean and mean square about the old mean."""
        mean, variance, count = batch_moments(x, valid)
        distance = mean - ops.convert_to_tensor(self.moving_mean)
        self.update_average(self.moving_mean, mean, count=count)
        self.update_average(self.moving_variance, variance + ops.square(distance), count=count)

    def _over_channels(self, x: Any, valid: Any) -> Any:
        size = int(x.shape[-1]) // self.groups
        ones = ops.ones((self.groups,), "float32")
        gamma = ones if self.group_gamma is None else as_tensor(self.group_gamma)
        beta = ones * 0.0 if self.group_beta is None else as_tensor(self.group_beta)
        return group_standardize(
            x,
            ops.repeat(gamma, size),
            ops.repeat(beta, size),
            self.groups,
            self.epsilon,
            valid=valid,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups, "micro_batch": self.micro_batch}
