"""Standardization with a hand-written gradient, shared by the layers that standardize.

The functions here work on images flattened to (N, S, C): N images, S places, C channels. They
take the mean first and then the mean square of what is left, so that a mean far above the
deviation costs no digits (E[x²] − E[x]² in float32 would lose them all). Rounding leaves the
centred values a small mean of their own, which is measured and taken out as well (the corrected
two-pass algorithm of Chan, Golub & LeVeque 1983, eq. 1.7): a constant input then really comes out
as β.

The gradient is that of the formulas in Ioffe & Szegedy 2015, section 3, written per statistic:
dx = a·dy − r·mean(γ·dy) − (x − μ)·r³·mean(γ·dy·(x − μ)), with r = 1/σ and a = γ·r.
Only first derivatives are defined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any


def standardize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    subtract_mean: bool = True,
    across: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardize each of A sets of images over images, places and the channels of a group.

    Args:
        x: Any float dtype, (A, B, S, C): A sets of B images; computed in float32.
        gamma: Scale, float32 (C,).
        beta: Shift, float32 (C,).
        groups: Groups of neighbouring channels; divides C.
        epsilon: Added to the variance.
        subtract_mean: If not, x is divided by the root of its mean square instead.
        across: Sums a tensor over the replicas that hold parts of the same sets.

    Returns:
        y, of x's shape and dtype; the mean (0 if not subtracted) and the biased variance (the
        mean square), float32 (A, C), repeated for each channel of a group. No gradient flows
        through these two.
    """
    dtype = x.dtype
    total = across or (lambda values: values)
    count = total(count_of(x, groups))

    def shared(sums: Tensor) -> Tensor:
        return share(total(sums), groups, count)

    @ops.custom_gradient
    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        values = ops.cast(x, "float32")
        if subtract_mean:
            rough = rounded(shared(over_places(values)))
            centred = values - _wide(rough)
            rest = shared(over_places(centred))
            mean = rough + rest
            # Between roundings the difference can be a hair below 0.
            variance = shared(squares_over_places(centred)) - ops.square(rest)
            variance = ops.maximum(variance, 0.0)
        else:
            rough = rest = 0.0
            centred = values
            variance = shared(squares_over_places(values))
            mean = ops.zeros_like(variance)
        inverse = ops.rsqrt(variance + epsilon)
        scale = inverse * gamma
        y = centred * _wide(scale)
        y = y + (_wide(beta - rest * scale) if subtract_mean else beta)
        kept = centred if keras.backend.backend() == "tensorflow" else None

        def gradient(*upstream: Tensor):
            dy = ops.cast(first(upstream), "float32")
            # Under a compiler centring again is free, and keeping the centred values is not.
            centred = kept
            if centred is None:
                centred = ops.cast(x, "float32")
                centred = centred - _wide(rough) if subtract_mean else centred
            sum_dy = over_places(dy)
            sum_dy_centred = over_places(dy * centred) - rest * sum_dy
            d_gamma = ops.sum(sum_dy_centred * inverse, axis=0)
            d_beta = ops.sum(sum_dy, axis=0)
            if groups == int(x.shape[-1]):
                # γ is the group's own. The same product as in dx's first term: where a channel
                # has a single value, its gradient is then exactly 0.
                means = shared(sum_dy) * scale, shared(sum_dy_centred) * scale
            else:
                means = shared(sum_dy * gamma) * inverse, shared(sum_dy_centred * gamma) * inverse
            slope = means[1] * ops.square(inverse)
            dx = dy * _wide(scale)
            if subtract_mean:
                constant = means[0] - rest * slope
                dx = dx - (centred * _wide(slope) + _wide(constant))
            else:
                dx = dx - centred * _wide(slope)
            return ops.cast(dx, dtype), d_gamma, d_beta

        return (ops.cast(y, dtype), mean, variance), gradient

    return function(x, gamma, beta)


def group_standardize(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float, subtract_mean: bool = True
) -> Tensor:
    """Standardize each image over places and the channels of a group, then scale and shift.

    Args:
        x: Any float dtype, (N, S, C); computed in float32.
        gamma: float32, (C,).
        beta: float32, (C,).
        groups: Number of groups; divides C.
        epsilon: Added to the variance.
        subtract_mean: If not, x is divided by the root of its mean square instead.

    Returns:
        (N, S, C), of x's dtype.
    """
    y, _, _ = standardize(x[:, None], gamma, beta, groups, epsilon, subtract_mean)
    return ops.squeeze(y, axis=1)


def moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of A sets of images over images, places and a group's channels.

    Args:
        x: Any float dtype, (A, B, S, C); computed in float32.
        groups: Groups of neighbouring channels; divides C.

    Returns:
        Mean and variance, float32 (A, C), repeated for each channel of a group; both have
        gradients.
    """
    dtype = x.dtype
    count = count_of(x, groups)

    @ops.custom_gradient
    def function(x: Tensor) -> Any:
        values = ops.cast(x, "float32")
        rough = rounded(share(over_places(values), groups, count))
        centred = values - _wide(rough)
        rest = share(over_places(centred), groups, count)
        variance = share(squares_over_places(centred), groups, count) - ops.square(rest)

        def gradient(*upstream: Tensor):
            d_mean, d_variance = _pair(upstream)
            slope = share(d_variance, groups, count) * 2.0
            constant = share(d_mean, groups, count) - rest * slope
            centred = ops.cast(x, "float32") - _wide(rough)
            return ops.cast(centred * _wide(slope) + _wide(constant), dtype)

        return (rough + rest, ops.maximum(variance, 0.0)), gradient

    return function(x)


def pooled(mean: Tensor, variance: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of sets of equal size put together along ``axis``, which is kept.

    Args:
        mean: Of each set, (N, C).
        variance: Of each set, (N, C).
        axis: 0 puts images together, 1 channels.

    Returns:
        (1, C) or (N, 1), by autodifferentiable operations.
    """
    # Differences to one set's mean are exact where all are alike.
    pivot = mean[:1] if axis == 0 else mean[:, :1]
    apart = mean - pivot
    offset = ops.mean(apart, axis=axis, keepdims=True)
    between = ops.mean(ops.square(apart - offset), axis=axis, keepdims=True)
    return pivot + offset, ops.mean(variance, axis=axis, keepdims=True) + between


def over_places(values: Tensor) -> Tensor:
    """Sum (A, B, S, C) to (A, C)."""
    # Two steps, places first: on a CPU one reduction over both runs on a single core.
    sums = ops.sum(values, axis=2)
    return sums[:, 0] if values.shape[1] == 1 else ops.sum(sums, axis=1)


def squares_over_places(values: Tensor) -> Tensor:
    """Sum the squares of float32 (A, B, S, C) to (A, C)."""
    if keras.backend.backend() != "tensorflow":
        return over_places(ops.square(values))
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    if GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return over_places(ops.square(values))
    # One pass, which does not write the squares to memory; XLA lacks this operation, and fuses.
    sums = ops.square(tf.raw_ops.EuclideanNorm(input=values, axis=2))
    return sums[:, 0] if values.shape[1] == 1 else ops.sum(sums, axis=1)


def share(sums: Tensor, groups: int, count: Any) -> Tensor:
    """Turn sums (A, C) into means over a group, repeated for each of its channels: (A, C)."""
    channels = int(sums.shape[-1])
    if groups == channels:
        return sums / count
    size = channels // groups
    means = ops.sum(ops.reshape(sums, (-1, groups, size)), axis=-1, keepdims=True) / count
    shape = (ops.shape(sums)[0], groups, size)
    return ops.reshape(ops.broadcast_to(means, shape), (-1, channels))


def count_of(x: Tensor, groups: int) -> Any:
    """The values that a statistic of x, (A, B, S, C), is taken over: a float, or a tensor."""
    _, images, places, channels = x.shape
    size = int(channels) // groups
    if images is not None and places is not None:
        return float(images * places * size)
    return ops.cast(ops.shape(x)[1] * ops.shape(x)[2] * size, "float32")


def first(upstream: Any) -> Tensor:
    """The gradient of the first output: backends pass one, several, or a tuple of them."""
    while isinstance(upstream, (tuple, list)):
        upstream = upstream[0]
    return upstream


def _pair(upstream: Any) -> tuple[Tensor, Tensor]:
    """The gradients of two outputs."""
    if len(upstream) == 1:
        (upstream,) = upstream
    return upstream[0], upstream[1]


def value_of(variable: Any) -> Tensor:
    """A variable's value as a plain tensor, which a custom gradient needs on TensorFlow."""
    return ops.multiply(variable, 1)


def flatten_places(x: Tensor) -> Tensor:
    """Turn (N, ..., C) into (N, S, C), S being 1 where there is no space.

    Half precision and float32 stay; float64, which nothing here computes in, becomes float32.
    """
    channels = int(x.shape[-1])
    places = 1
    for length in x.shape[1:-1]:
        places = -1 if length is None or places == -1 else places * length
    if keras.backend.standardize_dtype(x.dtype) == "float64":
        x = ops.cast(x, "float32")
    if places == -1:
        images = x.shape[0] if x.shape[0] is not None else ops.shape(x)[0]
        return ops.reshape(x, (images, -1, channels))
    return ops.reshape(x, (-1 if x.shape[0] is None else x.shape[0], places, channels))


def rounded(value: Tensor) -> Tensor:
    """Drop the last three bits of a float32 mean.

    A compiler that fuses x − sum/count computes it anew wherever it is used, with or without a
    rounding between the two operations, so that the centred values of one place would not be
    those of another. What has fewer bits than a product comes out the same everywhere.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.reduce_precision(value, exponent_bits=8, mantissa_bits=20)
    import tensorflow as tf

    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(value, tf.int32), -8), tf.float32)


def _wide(statistic: Tensor) -> Tensor:
    """Let (A, C) be broadcast over (A, B, S, C)."""
    return statistic[:, None, None, :]
