"""Root Mean Square Normalization."""

from __future__ import annotations

from typing import Any

import keras

from normbench.kernels.standardize import group_standardize, position_standardize
from normbench.norms.base import ChannelAffine

__all__ = ["RMSNormalization"]


@keras.saving.register_keras_serializable("normbench")
class RMSNormalization(ChannelAffine):
    """Root Mean Square Normalization (Zhang & Sennrich 2019, eq. 4): no mean is subtracted.

    y = γ·x/sqrt(mean(x²) + ε) + β. The mean is over an image's positions and channels, as for
    :class:`LayerNormalization`, or with ``per_position`` over the channels at each position, as in
    transformers and Keras's RMSNormalization. γ is per channel.

    β is the bias that the paper adds after the gain; Keras's layer and most transformers omit it.
    The paper has no ε. Its partial variant, over the first p % of the values, is not provided.

    Args:
        epsilon: Added to the mean square.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        per_position: Whether to take the mean square at each position separately.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.
    """

    formula = "y = γ·x/√(mean(x²) + ε) + β"
    computed_over = "space, channels"
    source = "Zhang & Sennrich 2019, equation 4 (arXiv 1910.07467)"

    def __init__(
        self,
        epsilon: float = 1e-6,
        center: bool = True,
        scale: bool = True,
        per_position: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        self.per_position = bool(per_position)

    def normalize(self, x: Any, valid: Any = None) -> Any:
        gamma, beta = self.affine()
        if self.per_position:
            return position_standardize(x, gamma, beta, self.epsilon, subtract_mean=False)
        return group_standardize(x, gamma, beta, 1, self.epsilon, subtract_mean=False, valid=valid)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "per_position": self.per_position}
