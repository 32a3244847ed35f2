"""Min-max normalization, which maps minimum to 0 and maximum to 1, and two faulty versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from normbench.errors import nearest
from normbench.kernels.arrays import first_gradient
from normbench.norms.base import ChannelAffine

__all__ = [
    "ChannelMinMaxNormalization",
    "FlatteningMinMaxNormalization",
    "ImageMinMaxNormalization",
    "MaxFirstMinMaxNormalization",
    "MinMaxNormalization",
]

_AXES = {"batch": 0, "space": 1, "channels": 2}
"""Axes of inputs flattened to (N, S, C)."""


class _MinMax(ChannelAffine):
    """Base class; minimum and maximum are taken over the axes in ``over``."""

    formula = "y = γ·(x − min)/max(max − min, ε) + β"
    source = "Min-max scaling (feature scaling to [0, 1]), as a layer in TF 1 embedding networks"
    by_range: ClassVar[bool] = True

    def __init__(
        self,
        epsilon: float = 1e-3,
        center: bool = False,
        scale: bool = False,
        over: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon}")
        self.over = _checked(self.computed_over.split(", ") if over is None else over)

    @property
    def per_example(self) -> bool:
        return "batch" not in self.over

    def normalize(self, x: Any, valid: Any = None) -> Any:
        axes = [_AXES[name] for name in self.over]
        y = _min_max(x, axes, self.epsilon, self.by_range, valid)
        if self.scale or self.center:
            gamma, beta = self.affine()
            y = y * gamma + beta
        return y


@keras.saving.register_keras_serializable("normbench")
class MinMaxNormalization(_MinMax):
    """Min-max normalization of an entire tensor, or over any of batch, space and channels.

    y = (x − m)/max(M − m, ε), where m and M are the minimum and maximum of x; then optionally ·γ
    and +β. y is in [0, 1] and attains both ends, unless M − m is below ε: y is then below 1, and 0
    for a constant input. The TF 1 original subtracts the global minimum and divides by the global
    maximum of the result, which is M − m, without ε.

    If the axes include the batch, as by default, the output for an image depends on the other
    images of its batch, in training and inference alike; there are no moving statistics. Use
    :class:`ImageMinMaxNormalization` to avoid this.

    The gradient is that of ``reduce_min`` and ``reduce_max``: the gradients of m and M go to the
    values that attain them, split equally between ties. If M − m is at most ε, no gradient flows
    through the divisor.

    Args:
        epsilon: Lower bound of the divisor; must be positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        over: The axes to reduce over: any of batch, space, channels.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the minimum and maximum are taken over the valid positions only.
    Weights: γ and β, float32 (C,), if enabled.

    Raises:
        ValueError: ``epsilon`` is not above 0, or ``over`` is empty or names something else.
    """

    computed_over = "batch, space, channels"

    def __init__(
        self,
        epsilon: float = 1e-3,
        center: bool = False,
        scale: bool = False,
        over: Sequence[str] = ("batch", "space", "channels"),
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon, center, scale, over, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "over": list(self.over)}


@keras.saving.register_keras_serializable("normbench")
class ChannelMinMaxNormalization(_MinMax):
    """Min-max normalization of each channel over the batch and space.

    Like :class:`MinMaxNormalization` over batch and space: y = (x − m)/max(M − m, ε) with a minimum
    and a maximum per channel. The output for an image depends on the other images of its batch, in
    training and inference alike.

    Args:
        epsilon: Lower bound of the divisor; must be positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the minimum and maximum are taken over the valid positions only.

    Raises:
        ValueError: ``epsilon`` is not above 0.
    """

    computed_over = "batch, space"

    def __init__(
        self, epsilon: float = 1e-3, center: bool = False, scale: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(epsilon, center, scale, **kwargs)


@keras.saving.register_keras_serializable("normbench")
class ImageMinMaxNormalization(_MinMax):
    """Min-max normalization of each image over space and channels.

    Like :class:`MinMaxNormalization` over space and channels: y = (x − m)/max(M − m, ε) with a
    minimum and a maximum per image. The output for an image does not depend on the others.

    Args:
        epsilon: Lower bound of the divisor; must be positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the minimum and maximum are taken over the valid positions only.

    Raises:
        ValueError: ``epsilon`` is not above 0.
    """

    computed_over = "space, channels"

    def __init__(
        self, epsilon: float = 1e-3, center: bool = False, scale: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(epsilon, center, scale, **kwargs)


@keras.saving.register_keras_serializable("normbench")
class MaxFirstMinMaxNormalization(_MinMax):
    """WRONG, for study: min-max normalization that divides by the maximum of the input.

    y = (x − m)/M, where m and M are the minimum and maximum of x itself. A version found online
    takes both before it subtracts, and so divides by M instead of M − m. The maximum of y is then
    1 − m/M, not 1: 0.001 for values between 999 and 1000, 3 for values between −2 and 1. If M is
    negative, so is y.

    If \\|M\\| is below ε, it is replaced by ε with the sign of M, and no gradient flows through it.
    If ``over`` includes the batch, the output for an image depends on the other images of its
    batch, in training and inference alike.

    Args:
        epsilon: Lower bound of the divisor's magnitude; must be positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        over: The axes to reduce over: any of batch, space, channels.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the minimum and maximum are taken over the valid positions only.

    Raises:
        ValueError: ``epsilon`` is not above 0, or ``over`` is empty or names something else.
    """

    formula = "y = γ·(x − min)/max + β"
    computed_over = "batch, space"
    source = "WRONG (max of the input, not of what is divided): circulates online"
    by_range = False

    def __init__(
        self,
        epsilon: float = 1e-3,
        center: bool = False,
        scale: bool = False,
        over: Sequence[str] = ("batch", "space"),
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon, center, scale, over, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "over": list(self.over)}


@keras.saving.register_keras_serializable("normbench")
class FlatteningMinMaxNormalization(_MinMax):
    """WRONG: min-max normalization after a reshape to (−1, C), refused for images.

    A version found online first reshapes (N, H, W, C) to (−1, C), which makes each position of an
    image a row of the batch: N·H·W outputs for N targets. Keras would notice in the loss at best;
    this layer refuses to be built. The values would be those of :class:`MinMaxNormalization`, which
    keeps the shape. For images with one position the reshape is harmless: the result is (N, C).

    Args:
        epsilon: Lower bound of the divisor; must be positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input: (N, 1, ..., 1, C) or (N, C), any float dtype; computed in float32. Output: (N, C).
    Takes no mask.

    Raises:
        ValueError: An image has more than one position, or ``epsilon`` is not above 0.
    """

    computed_over = "batch, space, channels"
    source = "WRONG (the reshape loses the batch axis): circulates online"

    def __init__(
        self, epsilon: float = 1e-3, center: bool = False, scale: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(epsilon, center, scale, **kwargs)
        self.supports_masking = False

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if any(length != 1 for length in input_shape[1:-1]):
            raise ValueError(
                f"{self.name} would reshape {tuple(input_shape)} to (-1, {input_shape[-1]}), which "
                "folds the positions of an image into the batch axis so that outputs no longer "
                "belong to images: use norm=minmax, which computes the same and keeps the shape"
            )
        super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        self.refuse_mask(mask)
        return super().call(ops.reshape(inputs, (-1, int(inputs.shape[-1]))))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        return (input_shape[0], input_shape[-1])


def _checked(over: Iterable[str]) -> tuple[str, ...]:
    """Return the requested axes in the order of the input's axes.

    Raises:
        ValueError: There are no axes, an unknown axis or a duplicate.
    """
    names = [over] if isinstance(over, str) else list(over)
    for name in names:
        if name not in _AXES:
            near = nearest(str(name), _AXES)
            hint = f": did you mean {near!r}?" if near else ""
            raise ValueError(f"unknown axis {name!r} in over{hint} (allowed: {', '.join(_AXES)})")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"over must hold some of {', '.join(_AXES)}, each once, got {names}")
    return tuple(name for name in _AXES if name in names)


def _min_max(x: Any, axes: Sequence[int], epsilon: float, by_range: bool, valid: Any = None) -> Any:
    """Subtract the minimum over ``axes``, then divide by the range or the maximum.

    Args:
        x: Any float dtype, (N, S, C).
        axes: The axes to reduce over.
        epsilon: Lower bound of the divisor's magnitude.
        by_range: Whether the divisor is the range; otherwise it is the maximum.
        valid: The positions to reduce over, bool (N, S, 1); by default all.

    Returns:
        float32, (N, S, C).
    """
    dtype = x.dtype
    if 0 in x.shape:  # no values, so neither minimum nor maximum
        return ops.cast(x, "float32")

    def extremes(values: Any) -> tuple[Any, Any]:
        if valid is None:
            return _over(ops.min, values, axes), _over(ops.max, values, axes)
        least = _over(ops.min, ops.where(valid, values, np.inf), axes)
        most = _over(ops.max, ops.where(valid, values, -np.inf), axes)
        has_valid = least <= most  # if no position is valid, use 0 for both
        return ops.where(has_valid, least, 0.0), ops.where(has_valid, most, 0.0)

    @ops.custom_gradient
    def function(x: Any) -> Any:
        values = ops.cast(x, "float32")
        least, most = extremes(values)
        divisor = most - least if by_range else most
        is_free = ops.abs(divisor) > epsilon
        floor = ops.where(divisor < 0, -epsilon, epsilon)
        inverse = 1.0 / ops.where(is_free, divisor, floor)

        def gradient(*upstream: Any) -> Any:
            dy = first_gradient(upstream)
            values = ops.cast(x, "float32")
            centered = values - least
            d_divisor = _over(ops.sum, dy * centered, axes) * -ops.square(inverse)
            d_most = ops.where(is_free, d_divisor, 0.0)
            d_least = -_over(ops.sum, dy, axes) * inverse
            if by_range:
                d_least = d_least - d_most
            dx = dy * inverse
            for extreme, slope in ((least, d_least), (most, d_most)):
                is_it = ops.cast(values == extreme, "float32")
                if valid is None:
                    dx = dx + is_it * (slope / _over(ops.sum, is_it, axes))
                else:
                    is_it = ops.where(valid, is_it, 0.0)
                    dx = dx + is_it * (slope / ops.maximum(_over(ops.sum, is_it, axes), 1.0))
            return ops.cast(dx, dtype)

        return (values - least) * inverse, gradient

    return function(x)


def _over(reduce: Callable[..., Any], values: Any, axes: Sequence[int]) -> Any:
    """Reduce over ``axes``, keeping them with length 1."""
    # One axis at a time, positions first: on a CPU, a joint reduction runs on a single core.
    for axis in sorted(axes, key=(1, 0, 2).index):
        values = reduce(values, axis=axis, keepdims=True)
    return values
