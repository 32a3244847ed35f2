"""Dynamic Tanh, which replaces a normalization without taking statistics."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.arrays import as_tensor, first_gradient
from normbench.norms.base import ChannelAffine

__all__ = ["DynamicTanh"]


@keras.saving.register_keras_serializable("normbench")
class DynamicTanh(ChannelAffine):
    """Dynamic Tanh (DyT; Zhu et al. 2025, eq. 2).

    y = γ·tanh(α·x) + β, with one learned α per layer. There are no statistics and no ε: each value
    is squashed independently, in training and inference alike. The paper uses it in place of Layer
    Normalization in Transformers, and finds it weaker in place of Batch Normalization in ResNets
    (section 7).

    Args:
        alpha: Initial value of α; the paper uses 0.5 except in language models.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32.
    Weights: α, float32 scalar; γ and β, float32 (C,).

    Raises:
        ValueError: ``alpha`` is not finite.
    """

    formula = "y = γ·tanh(α·x) + β"
    computed_over = "nothing"
    parameters = "α: per layer; γ, β: per channel"
    source = "Zhu et al. 2025, equation 2 (arXiv 2503.10622)"

    def __init__(
        self, alpha: float = 0.5, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(epsilon=0.0, center=center, scale=scale, **kwargs)
        if not abs(alpha) < float("inf"):
            raise ValueError(f"alpha must be a finite number, got {alpha}")
        self.initial_alpha = float(alpha)

    def create_weights(self, channels: int) -> None:
        initial = keras.initializers.Constant(self.initial_alpha)
        self.alpha = self.float_weight("alpha", (), initial)

    def normalize(self, x: Any) -> Any:
        gamma, beta = self.affine()
        return _dynamic_tanh(x, as_tensor(self.alpha), gamma, beta)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "alpha": self.initial_alpha}
        del config["epsilon"]
        return config


def _dynamic_tanh(x: Any, alpha: Any, gamma: Any, beta: Any) -> Any:
    """Return γ·tanh(α·x) + β for x of (N, S, C), with all four gradients in one backward pass."""
    dtype = x.dtype

    @ops.custom_gradient
    def function(x: Any, alpha: Any, gamma: Any, beta: Any) -> Any:
        squashed = ops.tanh(ops.cast(x, "float32") * alpha)

        def gradient(*upstream: Any) -> Any:
            dy = ops.cast(first_gradient(upstream), "float32")
            inner = dy * (1.0 - ops.square(squashed)) * gamma
            d_alpha = ops.sum(inner * ops.cast(x, "float32"))
            d_gamma = ops.sum(ops.sum(dy * squashed, axis=1), axis=0)
            d_beta = ops.sum(ops.sum(dy, axis=1), axis=0)
            return ops.cast(inner * alpha, dtype), d_alpha, d_gamma, d_beta

        return ops.cast(squashed * gamma + beta, dtype), gradient

    return function(x, alpha, gamma, beta)
