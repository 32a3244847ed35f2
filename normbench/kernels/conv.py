"""Keras's convolutions, computed another way where that is quicker, or where theirs goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from normbench.kernels import winograd
from normbench.kernels.compile import elementwise, on_cpu
from normbench.kernels.standardize import as_tensor


def strides_over(layer: Any, inputs: Any) -> tuple[int, ...]:
    """The strides of a convolution over ``inputs``, (N, H, W, C): 1 where these have one place.

    There they decide nothing. But in bfloat16 on a CPU the gradient of a kernel with strides is
    not a number at times: TensorFlow 2.21's oneDNN reads memory that nobody wrote.
    """
    if layer.data_format == "channels_last" and tuple(inputs.shape[1:3]) == (1, 1):
        return (1, 1)
    return layer.strides


class Convolution(keras.layers.Layer):
    """Mixed into a Conv2D: a kernel of 1×1 multiplies the matrix of all places.

    On a CPU TensorFlow's convolution is slower, the gradient of its kernel most of all:
    `benchmarks/pointwise.py`. Where it is not, with strides, and for other kernels, groups,
    backends and devices, Keras's is taken. Kernels of 3×3 may be Winograd's: :func:`over_shards`.
    """

    def convolution_op(self: Any, inputs: Any, kernel: Any) -> Any:
        """Return ``inputs``, (N, H, W, C), convolved with ``kernel``, (k, k, C / groups, F)."""
        strides = strides_over(self, inputs)
        product = (
            self.kernel_size == (1, 1)
            and strides == (1, 1)
            and self.groups == 1
            and self.data_format == "channels_last"
            and on_cpu()
        )
        if not product:
            return ops.conv(
                inputs,
                kernel,
                strides=strides,
                padding=self.padding,
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )
        channels, filters = kernel.shape[2:]
        places = ops.reshape(inputs, (-1, channels))
        y = ops.matmul(places, ops.reshape(kernel, (channels, filters)))
        return ops.reshape(y, (*ops.shape(inputs)[:3], filters))


@keras.saving.register_keras_serializable("normbench")
class Conv2D(Convolution, keras.layers.Conv2D):
    """Keras's Conv2D, as a matrix product where it is of 1×1, without strides or groups.

    A wide one of 3×3 is computed by Winograd's algorithm, in float32, where that is quicker. Both
    with TensorFlow on a CPU only. The results differ from Keras's by rounding. Its gradient is a
    number also where an image is one place; see :func:`strides_over`.
    """

    takes_shards = True

    def call(self, inputs: Any) -> Any:
        return self.call_with_shards([inputs])[0]

    def call_with_shards(self, shards: list[Any], training: bool = False) -> list[Any]:
        """As a call with each part of a batch, but the kernel is rounded once."""
        return over_shards(self, shards, as_tensor(self.kernel), self.convolution_op)


def over_shards(
    layer: Any, shards: list[Any], kernel: Any, convolve: Callable[[Any, Any], Any]
) -> list[Any]:
    """What a layer gives for each shard: convolution, bias, activation.

    ``convolve``, of a shard and the kernel, serves where Winograd's algorithm does not pay.
    """
    given = [ops.cast(each, layer.compute_dtype) for each in shards]
    if winograd.pays(layer, given[0]):
        transformed = winograd.transformed(ops.cast(kernel, layer.compute_dtype))
        return [finished(layer, winograd.convolved(x, transformed, layer.padding)) for x in given]
    kernels = _for_each(kernel, len(shards), layer.compute_dtype)
    return [finished(layer, convolve(x, own)) for x, own in zip(given, kernels, strict=True)]


def _for_each(kernel: Any, shards: int, dtype: str) -> list[Any]:
    """Return a kernel in a dtype, for each shard; its gradient adds up theirs in float32.

    In one pass: else that of each is written in float32 first, where a shard has few images more
    memory than all else.
    """
    if shards == 1 or keras.backend.standardize_dtype(kernel.dtype) == dtype:
        return [ops.cast(kernel, dtype)] * shards
    import tensorflow as tf

    @tf.custom_gradient
    def function(kernel: Any) -> Any:
        def gradient(*upstream: Any) -> Any:
            return elementwise(_added, *upstream)

        return [tf.cast(kernel, dtype)] * shards, gradient

    return function(kernel)


def _added(*tensors: Any) -> Any:
    """Add up tensors of any dtype in float32."""
    return sum(ops.cast(each, "float32") for each in tensors)


def depthwise(layer: Any, inputs: Any, kernel: Any) -> Any:
    """Return ``inputs``, (N, H, W, C), convolved with a DepthwiseConv2D's kernel, (k, k, C, M).

    Half precision is convolved in float32 on a CPU, and rounded once: TensorFlow adds up float16 in
    float16, and its gradient of the inputs takes ten times as long.
    """
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if dtype in ("bfloat16", "float16") and on_cpu():
        inputs, kernel = ops.cast(inputs, "float32"), ops.cast(kernel, "float32")
    outputs = ops.depthwise_conv(
        inputs,
        kernel,
        strides=strides_over(layer, inputs),
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    return ops.cast(outputs, dtype)


def finished(layer: Any, outputs: Any) -> Any:
    """Add a layer's bias to what it convolved or multiplied, and activate that."""
    if layer.use_bias:
        bias = ops.cast(layer.bias, layer.compute_dtype)
        if getattr(layer, "data_format", None) == "channels_first":
            bias = ops.reshape(bias, (1, -1, 1, 1))
        outputs = ops.add(outputs, bias)
    return outputs if layer.activation is None else layer.activation(outputs)


@keras.saving.register_keras_serializable("normbench")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's DepthwiseConv2D, whose gradient is a number also where an image is one place."""

    per_example = True

    def call(self, inputs: Any) -> Any:
        return finished(self, depthwise(self, inputs, self.kernel))
