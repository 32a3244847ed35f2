"""Filter Response Normalization with its Thresholded Linear Unit."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.affine import per_channel
from normbench.kernels.arrays import as_tensor
from normbench.kernels.standardize import group_standardize
from normbench.kernels.sums import at_least_one, count_valid
from normbench.norms.base import ChannelAffine

__all__ = ["FilterResponseNormalization"]


@keras.saving.register_keras_serializable("normbench")
class FilterResponseNormalization(ChannelAffine):
    """Filter Response Normalization (Singh & Krishnan 2020, eq. 1–3) and TLU (eq. 4).

    y = γ·x/sqrt(ν² + ε) + β, where ν² is the mean of x² over the positions of an image's channel;
    then max(y, τ) with a learned threshold τ per channel, the Thresholded Linear Unit. No mean is
    subtracted, and no image depends on another.

    TLU replaces the activation. A network that still applies a ReLU after this layer computes
    max(y, τ, 0), so thresholds below 0 have no effect. ``tlu=False`` omits TLU.

    For images with few positions, the paper learns ε per channel: ε + abs(ε_l), with ε_l starting
    at 1e-4 (section 3.3). See ``learned_epsilon``. For a single position, x/sqrt(x²) is only the
    sign of x. The layer of tensorflow-addons has the learned ε and γ, β, but a separate TLU.

    Args:
        epsilon: Added to the mean square.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        tlu: Whether to apply the Thresholded Linear Unit.
        learned_epsilon: Whether to add a learned abs(ε_l) to ``epsilon``.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.
    """

    formula = "y = max(γ·x/√(ν² + ε) + β, τ), ν² = mean(x²) of an image's channel"
    computed_over = "space"
    parameters = "γ, β, τ: per channel"
    source = "Singh & Krishnan 2020, equations 1–4 (arXiv 1911.09737)"

    def __init__(
        self,
        epsilon: float = 1e-6,
        center: bool = True,
        scale: bool = True,
        tlu: bool = True,
        learned_epsilon: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        self.tlu = bool(tlu)
        self.learned_epsilon = bool(learned_epsilon)

    def create_weights(self, channels: int) -> None:
        self.tau = self.channel_weight("tau", channels, "zeros") if self.tlu else None
        self.extra_epsilon = (
            self.channel_weight("extra_epsilon", channels, keras.initializers.Constant(1e-4))
            if self.learned_epsilon
            else None
        )

    def normalize(self, x: Any, valid: Any = None) -> Any:
        # float32 from here to the end, because intermediate rounding would accumulate.
        x = ops.cast(x, "float32")
        gamma, beta = self.affine()
        tau = as_tensor(self.tau) if self.tau is not None else None
        shift = beta if tau is None else beta - tau
        if self.extra_epsilon is None:
            y = group_standardize(
                x, gamma, shift, self.channels, self.epsilon, subtract_mean=False, valid=valid
            )
        else:
            epsilon = self.epsilon + ops.abs(as_tensor(self.extra_epsilon))
            squares = ops.square(x)
            positions = ops.cast(ops.shape(x)[1], "float32")
            if valid is not None:
                squares = ops.where(valid, squares, 0.0)
                positions = at_least_one(count_valid(valid[:, None]))
            mean_square = ops.sum(squares, axis=1) / positions
            y = per_channel(x, None, gamma * ops.rsqrt(mean_square + epsilon), shift)
        if tau is not None:
            # max(y, τ) = relu(y − τ) + τ, whose only gradient reduction is τ's.
            y = per_channel(ops.relu(y), None, ops.ones((self.channels,), "float32"), tau)
        return y

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tlu": self.tlu,
            "learned_epsilon": self.learned_epsilon,
        }
