"""Local Response Normalization, the predecessor of Batch Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.arrays import first_gradient

__all__ = ["LocalResponseNormalization"]


@keras.saving.register_keras_serializable("normbench")
class LocalResponseNormalization(keras.layers.Layer):
    """Local Response Normalization (Krizhevsky et al. 2012, section 3.3).

    y_i = x_i / (k + α·Σ_j x_j²)^β, where the sum is over the n channels centered on i at the same
    position (fewer near the first and last channels). No mean is subtracted and nothing is learned;
    training and inference are the same.

    Parameters differ between frameworks. ``tf.nn.local_response_normalization`` has this formula,
    with ``depth_radius`` = (n − 1)/2 and ``bias`` = k (defaults 5, 1, α = 1, β = 0.5). PyTorch's
    ``LocalResponseNorm``, like Caffe's, takes the mean of the n squares, so its α is n times the
    one here (defaults k = 1, α = 1e-4, β = 0.75).

    Args:
        k: Added to the sum; must be positive.
        alpha: Weight α of the sum of squares.
        beta: Exponent β.
        n: Number of channels in the sum, odd; (n − 1)/2 on either side.

    Input and output: (N, ..., C), any float dtype; computed in float32.

    Raises:
        ValueError: ``n`` is not a positive odd integer, ``k`` is not positive, or ``alpha`` or
            ``beta`` is negative.
    """

    formula = "y_i = x_i/(k + α·Σ_j x_j²)^β, j from i − (n − 1)/2 to i + (n − 1)/2"
    computed_over = "channels"
    per_example = True
    parameters = "none"
    state = "none"
    source = "Krizhevsky et al. 2012, section 3.3 (NeurIPS 25)"

    def __init__(
        self,
        k: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        n: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(n, int) or n < 1 or n % 2 == 0:
            raise ValueError(f"n must be an odd whole number of at least 1, got {n!r}")
        if not k > 0:
            raise ValueError(f"k must be above 0, got {k}")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        self.k = float(k)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.n = n
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        outputs = _local_response(inputs, self.k, self.alpha, self.beta, self.n // 2)
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        options = {"k": self.k, "alpha": self.alpha, "beta": self.beta, "n": self.n}
        return {**super().get_config(), **options}


def _local_response(x: Any, k: float, alpha: float, beta: float, radius: int) -> Any:
    dtype = x.dtype

    @ops.custom_gradient
    def function(x: Any) -> Any:
        values = ops.cast(x, "float32")
        base = k + alpha * _sum_neighbors(ops.square(values), radius)
        factor = ops.power(base, -beta)

        def gradient(*upstream: Any) -> Any:
            dy = ops.cast(first_gradient(upstream), "float32")
            values = ops.cast(x, "float32")
            # The neighborhood relation is symmetric, so the gradient sums over the same channels.
            neighbor_sum = _sum_neighbors(dy * values * factor / base, radius)
            return ops.cast(dy * factor - values * neighbor_sum * (2.0 * alpha * beta), dtype)

        return ops.cast(values * factor, dtype), gradient

    return function(x)


def _sum_neighbors(values: Any, radius: int) -> Any:
    """Add to each channel of (..., C) the channels up to ``radius`` away."""
    channels = int(values.shape[-1])
    radius = min(radius, channels - 1)
    padded = ops.pad(values, [(0, 0)] * (len(values.shape) - 1) + [(radius, radius)])
    total = values
    for start in range(2 * radius + 1):
        if start != radius:
            total = total + padded[..., start : start + channels]
    return total
