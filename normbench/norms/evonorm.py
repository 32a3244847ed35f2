"""The evolved normalization-activation layers EvoNorm-S0 and EvoNorm-B0."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.affine import per_channel
from normbench.kernels.arrays import as_tensor, image_sets
from normbench.kernels.standardize import moments, pooled
from normbench.kernels.sums import count_in_batch, count_valid
from normbench.norms.base import BatchStatistics, ChannelAffine, check_groups, groups_dividing

__all__ = ["EvoNormB0", "EvoNormS0"]


@keras.saving.register_keras_serializable("normbench")
class EvoNormS0(ChannelAffine):
    """EvoNorm-S0 (Liu et al. 2020, table 2): batch-free normalization and activation in one.

    y = γ·x·sigmoid(v·x)/sqrt(σ² + ε) + β, where σ² is the biased variance of a group of an image's
    channels over those channels and all positions, and v is learned per channel, starting at 1. It
    is Group Normalization's division applied to a Swish instead of x; no mean is subtracted.

    The layer includes its activation. A network that still applies a ReLU after it computes
    max(y, 0), unlike the paper's. There is no option to omit the activation, because that would
    leave only x/sqrt(σ² + ε).

    If neither ``groups`` nor ``channels_per_group`` is given, there are 32 groups, as in the paper;
    ``conf/norm/evonorm_s0.yaml`` sets a number that suits small networks.

    Args:
        groups: Number of groups; must divide the channels.
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        channels_per_group: Channels per group, as an alternative to ``groups``.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.

    Raises:
        ValueError: As for :class:`GroupNormalization`.
    """

    formula = "y = γ·x·sigmoid(v·x)/√(σ² + ε) + β, σ² of an image's group of channels"
    computed_over = "space, channels"
    parameters = "γ, β, v: per channel"
    source = "Liu, Brock, Simonyan & Le 2020, table 2 (arXiv 2004.02967)"

    def __init__(
        self,
        groups: int | None = None,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        channels_per_group: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if groups is None and channels_per_group is None:
            groups = 32
        check_groups(groups, channels_per_group)
        self.groups = groups
        self.channels_per_group = channels_per_group

    def create_weights(self, channels: int) -> None:
        self._groups_of(channels)
        self.v = self.channel_weight("v", channels, "ones")

    def _groups_of(self, channels: int) -> int:
        return groups_dividing(self.name, channels, self.groups, self.channels_per_group)

    def normalize(self, x: Any, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        sets, valid = image_sets(x, valid)
        _, variance = moments(sets, self._groups_of(self.channels), valid)
        gate = ops.sigmoid(per_channel(x, None, as_tensor(self.v), ops.zeros_like(beta)))
        return per_channel(x * gate, None, gamma * ops.rsqrt(variance + self.epsilon), beta)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "channels_per_group": self.channels_per_group,
        }


@keras.saving.register_keras_serializable("normbench")
class EvoNormB0(BatchStatistics):
    """EvoNorm-B0 (Liu et al. 2020, table 2): normalization and activation in one.

    y = γ·x/max(sqrt(σ²_B + ε), v·x + sqrt(σ²_I + ε)) + β. σ²_B is the biased variance of a
    channel in the mini-batch over images and positions (in inference, a moving average of it), σ²_I
    that of an image's channel over positions, and v is learned per channel, starting at 1.

    The layer includes its activation: the max makes it nonlinear in x. A network that still
    applies a ReLU after it computes max(y, 0), unlike the paper's.

    Args:
        momentum: Weight of the old moving variance.
        epsilon: Added to the variances.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.
    State: ``moving_variance``, float32 (C,).

    Raises:
        ValueError: ``momentum`` outside [0, 1].
    """

    formula = "y = γ·x/max(√(σ²_B + ε), v·x + √(σ²_I + ε)) + β"
    parameters = "γ, β, v: per channel"
    state = "moving variance: per channel"
    source = "Liu, Brock, Simonyan & Le 2020, table 2 (arXiv 2004.02967)"

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)

    def create_weights(self, channels: int) -> None:
        self.v = self.channel_weight("v", channels, "ones")
        self.moving_variance = self.moving_average("moving_variance", channels, "ones")

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        sets, valid_sets = image_sets(x, valid)
        mean, variance = moments(sets, self.channels, valid_sets)
        if self.takes_batch(x, training):
            counts = None if valid_sets is None else count_valid(valid_sets)
            _, batch_variance = pooled(mean, variance, axis=0, counts=counts)
            count = count_in_batch(x, valid)
            self.update_average(self.moving_variance, batch_variance[0], count=count)
        else:
            batch_variance = ops.convert_to_tensor(self.moving_variance)[None]
        deviation = ops.sqrt(batch_variance + self.epsilon)
        image_deviation = ops.sqrt(variance + self.epsilon)
        # max(a, b) = a + relu(b − a), whose gradients need only the reductions of a and b.
        excess = per_channel(x, None, as_tensor(self.v), image_deviation - deviation)
        divisor = per_channel(ops.relu(excess), None, ops.ones_like(gamma), deviation)
        return per_channel(x / divisor, None, gamma, beta)
