"""Positional Normalization."""

from __future__ import annotations

from typing import Any

import keras

from normbench.kernels.standardize import position_standardize
from normbench.norms.base import ChannelAffine

__all__ = ["PositionalNormalization"]


@keras.saving.register_keras_serializable("normbench")
class PositionalNormalization(ChannelAffine):
    """Positional Normalization (Li et al. 2019, eq. 2–3): over the channels at each position.

    y = γ·(x − μ)/sqrt(σ² + ε) + β with the mean and biased variance of the C channels at one
    position of one image. Keras's LayerNormalization does this to images by default, and
    transformers do it to each token. With a single channel the output is β.

    The paper's moment shortcut, which passes μ and σ to a later layer of a generator as its β and
    γ, is not included; in the paper γ and β are optional.

    Args:
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of the channels at a position"
    computed_over = "channels"
    source = "Li, Wu, Weinberger & Belongie 2019, equations 2–3 (arXiv 1907.04312)"

    def __init__(
        self, epsilon: float = 1e-5, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)

    def normalize(self, x: Any) -> Any:
        gamma, beta = self.affine()
        return position_standardize(x, gamma, beta, self.epsilon)
