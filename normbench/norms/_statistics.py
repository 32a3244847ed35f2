"""Standardization with a hand-written gradient, shared by the layers that standardize.

Both functions here work on images flattened to (N, S, C): N images, S places, C channels. They
take two passes for the statistics, the mean first and then the mean square of what is left, so
that a mean far above the deviation costs no digits (E[x²] − E[x]² in float32 would lose them
all), and keep the centred values for the gradient, which so needs no pass to centre again.

The gradient is that of the formulas in Ioffe & Szegedy 2015, section 3, written per statistic:
dx = a·dy − r·mean(γ·dy) − (x − μ)·r³·mean(γ·dy·(x − μ)), with r = 1/σ and a = γ·r.
Only first derivatives are defined.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def group_standardize(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float
) -> Tensor:
    """Standardize each image over places and the channels of a group, then scale and shift.

    Args:
        x: float32, (N, S, C).
        gamma: float32, (C,).
        beta: float32, (C,).
        groups: Number of groups; divides C.
        epsilon: Added to the variance.

    Returns:
        float32, (N, S, C).
    """
    channels = int(x.shape[-1])
    size = channels // groups
    places = x.shape[1] if x.shape[1] is not None else ops.shape(x)[1]

    def over_group(sums: Tensor) -> Tensor:
        """Means of a group from the sums (N, C) over places, repeated for each channel."""
        count = ops.cast(places * size, sums.dtype)
        if size == 1:
            return sums / count
        means = ops.sum(ops.reshape(sums, (-1, groups, size)), axis=-1, keepdims=True) / count
        return ops.reshape(
            ops.broadcast_to(means, (ops.shape(sums)[0], groups, size)), (-1, channels)
        )

    @ops.custom_gradient
    def standardize(x: Tensor, gamma: Tensor, beta: Tensor):
        mean = over_group(ops.sum(x, axis=1))
        centred = x - mean[:, None, :]
        variance = over_group(ops.sum(ops.square(centred), axis=1))
        inverse = ops.rsqrt(variance + epsilon)
        scale = inverse * gamma
        y = centred * scale[:, None, :] + beta

        def gradient(*upstream: Tensor):
            dy = first(upstream)
            sum_dy = ops.sum(dy, axis=1)
            sum_dy_centred = ops.sum(dy * centred, axis=1)
            d_beta = ops.sum(sum_dy, axis=0)
            d_gamma = ops.sum(sum_dy_centred * inverse, axis=0)
            constant = over_group(sum_dy * gamma) * inverse
            slope = over_group(sum_dy_centred * gamma) * inverse * inverse * inverse
            dx = dy * scale[:, None, :] - (
                centred * slope[:, None, :] + constant[:, None, :]
            )
            return dx, d_gamma, d_beta

        return y, gradient

    return standardize(x, gamma, beta)


def batch_standardize(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardize each channel over images and places, then scale and shift.

    Args:
        x: float32, (N, S, C).
        gamma: float32, (C,).
        beta: float32, (C,).
        epsilon: Added to the variance.

    Returns:
        y, float32 (N, S, C); the mini-batch's mean and biased variance, float32 (C,), through
        which no gradient flows.
    """
    shape = ops.shape(x)
    places = x.shape[1] if x.shape[1] is not None else shape[1]
    images = x.shape[0] if x.shape[0] is not None else shape[0]

    def over_batch(values: Tensor) -> Tensor:
        # Two steps, places first: on a CPU one reduction over both runs on a single core.
        return ops.sum(ops.sum(values, axis=1), axis=0)

    @ops.custom_gradient
    def standardize(x: Tensor, gamma: Tensor, beta: Tensor):
        count = ops.cast(images * places, x.dtype)
        mean = over_batch(x) / count
        centred = x - mean
        variance = over_batch(ops.square(centred)) / count
        inverse = ops.rsqrt(variance + epsilon)
        scale = inverse * gamma
        y = centred * scale + beta

        def gradient(*upstream: Tensor):
            dy = first(upstream)
            d_beta = over_batch(dy)
            sum_dy_centred = over_batch(dy * centred)
            d_gamma = sum_dy_centred * inverse
            constant = d_beta * scale / count
            slope = sum_dy_centred * scale * inverse * inverse / count
            dx = dy * scale - (centred * slope + constant)
            return dx, d_gamma, d_beta

        return (y, mean, variance), gradient

    return standardize(x, gamma, beta)


def first(upstream: Any) -> Tensor:
    """The gradient of the first output: backends pass one, several, or a tuple of them."""
    while isinstance(upstream, (tuple, list)):
        upstream = upstream[0]
    return upstream


def value_of(variable: Any) -> Tensor:
    """A variable's value as a plain tensor, which a custom gradient needs on TensorFlow."""
    return ops.multiply(variable, 1)


def flatten_places(x: Tensor, dtype: str = "float32") -> Tensor:
    """Turn (N, ..., C) of any dtype into (N, S, C) of ``dtype``; S is 1 where there is no space."""
    channels = int(x.shape[-1])
    spatial = x.shape[1:-1]
    places = 1
    for length in spatial:
        places = -1 if length is None or places == -1 else places * length
    images = x.shape[0] if x.shape[0] is not None else ops.shape(x)[0]
    if places == -1 and x.shape[0] is None:
        return ops.cast(ops.reshape(x, (images, -1, channels)), dtype)
    if x.shape[0] is None:
        images = -1
    return ops.cast(ops.reshape(x, (images, places, channels)), dtype)
