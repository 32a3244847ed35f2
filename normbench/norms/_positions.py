"""Standardization over the channels at each place, with a hand-written gradient."""

from __future__ import annotations

from typing import Any

from keras import ops

from normbench.norms._statistics import first, rounded

Tensor = Any


def position_standardize(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, subtract_mean: bool = True
) -> Tensor:
    """Standardize each place's vector over its channels, then scale and shift channels.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.
        subtract_mean: If not, x is divided by the root of its mean square instead.

    Returns:
        (N, S, C), of x's dtype.
    """
    dtype = x.dtype
    channels = float(x.shape[-1])

    def mean_of(values: Tensor) -> Tensor:
        return ops.sum(values, axis=-1, keepdims=True) / channels

    def over_images(values: Tensor) -> Tensor:
        # Two steps, places first: on a CPU one reduction over both runs on a single core.
        return ops.sum(ops.sum(values, axis=1), axis=0)

    @ops.custom_gradient
    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        centred = ops.cast(x, "float32")
        if subtract_mean:
            centred = centred - rounded(mean_of(centred))
            # What rounding left of the mean is taken out as well.
            centred = centred - mean_of(centred)
        inverse = ops.rsqrt(mean_of(ops.square(centred)) + epsilon)
        normalized = centred * inverse

        def gradient(*upstream: Tensor):
            dy = ops.cast(first(upstream), "float32")
            weighted = dy * gamma
            dx = weighted - normalized * mean_of(weighted * normalized)
            if subtract_mean:
                dx = dx - mean_of(weighted)
            return (
                ops.cast(dx * inverse, dtype),
                over_images(dy * normalized),
                over_images(dy),
            )

        return ops.cast(normalized * gamma + beta, dtype), gradient

    return function(x, gamma, beta)
