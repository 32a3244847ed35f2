"""Convolutions of arrays: :func:`conv2d` and :func:`depthwise_conv2d`.

Both equal ``keras.ops.conv`` and ``keras.ops.depthwise_conv`` within rounding. On a CPU,
TensorFlow's own convolutions are slow in some cases and wrong in one; these cases are computed
differently here. Other backends and devices use Keras's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from normbench.kernels import winograd
from normbench.kernels.compile import elementwise, on_cpu

Tensor = Any

_BLOCK = 8
"""Channels that oneDNN computes at once with AVX2."""


def conv2d(
    x: Tensor,
    kernel: Tensor,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "valid",
    dilation_rate: tuple[int, int] = (1, 1),
    data_format: str = "channels_last",
) -> Tensor:
    """Return ``x`` convolved with ``kernel``, of x's dtype.

    Args:
        x: Any float dtype, (N, H, W, C), or (N, C, H, W) for ``data_format="channels_first"``.
        kernel: Any float dtype, (k, k, C / groups, F); rounded to x's dtype.
        strides: Spatial positions from one output to the next, by axis.
        padding: "same" or "valid".
        dilation_rate: Spatial positions from one weight to the next, by axis.
        data_format: "channels_last" or "channels_first".
    """
    (y,) = conv2d_shards(
        [x],
        kernel,
        strides=strides,
        padding=padding,
        dilation_rate=dilation_rate,
        data_format=data_format,
    )
    return y


def conv2d_shards(shards: Sequence[Tensor], kernel: Tensor, **options: Any) -> list[Tensor]:
    """Return :func:`conv2d` of each shard of a batch, preparing the kernel only once."""
    x = shards[0]
    dtype = keras.backend.standardize_dtype(x.dtype)
    if winograd.pays(x, tuple(kernel.shape), **options):
        transformed_kernel = winograd.transformed(ops.cast(kernel, dtype))
        return [winograd.convolved(x, transformed_kernel, options["padding"]) for x in shards]
    kernels = copies_for_shards(kernel, len(shards), dtype)
    return [_conv2d(x, copy, **options) for x, copy in zip(shards, kernels, strict=True)]


def depthwise_conv2d(
    x: Tensor,
    kernel: Tensor,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "valid",
    dilation_rate: tuple[int, int] = (1, 1),
    data_format: str = "channels_last",
) -> Tensor:
    """Return ``x`` with each channel convolved separately, of x's dtype.

    On a CPU, half precision is convolved in float32 and rounded once: TensorFlow would accumulate
    float16 in float16, and its input gradient takes ten times as long.

    Args:
        x: Any float dtype, (N, H, W, C), or (N, C, H, W) for ``data_format="channels_first"``.
        kernel: Of x's dtype, (k, k, C, M): M filters for each channel.
        strides: As for :func:`conv2d`, like ``padding``, ``dilation_rate`` and ``data_format``.
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    if dtype in ("bfloat16", "float16") and on_cpu():
        x, kernel = ops.cast(x, "float32"), ops.cast(kernel, "float32")
    outputs = ops.depthwise_conv(
        x,
        kernel,
        strides=_strides_over(x, strides, data_format),
        padding=padding,
        dilation_rate=dilation_rate,
        data_format=data_format,
    )
    return ops.cast(outputs, dtype)


def copies_for_shards(kernel: Tensor, shards: int, dtype: str) -> list[Tensor]:
    """Return the kernel in ``dtype``, once for each shard.

    The kernel's gradient is the sum of all shards' gradients, computed in one pass in float32.
    Otherwise TensorFlow would write a float32 copy of each shard's gradient to memory before adding
    them, which dominates the step time for shards of few images.
    """
    if shards == 1 or keras.backend.standardize_dtype(kernel.dtype) == dtype:
        return [ops.cast(kernel, dtype)] * shards
    import tensorflow as tf

    @tf.custom_gradient
    def function(kernel: Tensor) -> Any:
        def gradient(*upstream: Tensor) -> Tensor:
            return elementwise(_sum_in_float32, *upstream)

        return [tf.cast(kernel, dtype)] * shards, gradient

    return function(kernel)


def _conv2d(x: Tensor, kernel: Tensor, **options: Any) -> Tensor:
    """Return :func:`conv2d`, using a matrix product for 1×1 kernels, else Keras's operation.

    On a CPU, TensorFlow's 1×1 convolution is slower than the product, above all in the kernel's
    gradient (`docs/speed.md`).
    """
    strides = _strides_over(x, options["strides"], options["data_format"])
    is_pointwise = (
        tuple(kernel.shape[:2]) == (1, 1)
        and options["data_format"] == "channels_last"
        and kernel.shape[2] == x.shape[-1]  # one group
        and on_cpu()
    )
    channels, filters = kernel.shape[2:]
    if is_pointwise and strides != (1, 1) and channels < _BLOCK:
        # With AVX2 alone, the oneDNN of TensorFlow 2.21 writes past the end of its memory when it
        # computes the gradient of such a kernel.
        x = x[:, :: strides[0], :: strides[1]]
        strides = (1, 1)
    if not is_pointwise or strides != (1, 1):
        return ops.conv(x, kernel, **{**options, "strides": strides})
    rows = ops.reshape(x, (-1, channels))
    y = ops.matmul(rows, ops.reshape(kernel, (channels, filters)))
    return ops.reshape(y, (*ops.shape(x)[:3], filters))


def _strides_over(x: Tensor, strides: tuple[int, int], data_format: str) -> tuple[int, int]:
    """Return the strides to use for ``x``: 1 if its images have a single position.

    Strides have no effect on such images. But in bfloat16 on a CPU they sometimes make the kernel's
    gradient NaN, because oneDNN in TensorFlow 2.21 reads uninitialized memory.
    """
    is_one_position = data_format == "channels_last" and tuple(x.shape[1:3]) == (1, 1)
    return (1, 1) if is_one_position else strides


def _sum_in_float32(*tensors: Tensor) -> Tensor:
    return sum(ops.cast(tensor, "float32") for tensor in tensors)
