"""Keras's Conv2D and DepthwiseConv2D, computed by :mod:`normbench.kernels.conv`."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.kernels.arrays import as_tensor
from normbench.kernels.conv import conv2d, depthwise_conv2d

__all__ = ["Conv2D", "DepthwiseConv2D"]


class KernelLayer(keras.layers.Layer):
    """Mixin for Keras layers with a kernel, a bias and an activation.

    It splits ``call`` into three steps that subclasses can override: :meth:`effective_kernel`,
    :meth:`apply_kernel` and :meth:`finish`.
    """

    def call(self: Any, inputs: Any, training: bool = False) -> Any:
        kernel = ops.cast(self.effective_kernel(training), self.compute_dtype)
        return self.finish(self.apply_kernel(ops.cast(inputs, self.compute_dtype), kernel))

    def effective_kernel(self: Any, training: bool) -> Any:
        """Return the kernel to compute with; by default the stored one."""
        return as_tensor(self.kernel)

    def apply_kernel(self: Any, inputs: Any, kernel: Any) -> Any:
        """Return ``inputs`` convolved or multiplied with ``kernel``, both in the compute dtype."""
        raise NotImplementedError

    def finish(self: Any, outputs: Any) -> Any:
        """Add the bias and apply the activation."""
        if self.use_bias:
            bias = ops.cast(self.bias, self.compute_dtype)
            if getattr(self, "data_format", None) == "channels_first":
                bias = ops.reshape(bias, (1, -1, 1, 1))
            outputs = ops.add(outputs, bias)
        return outputs if self.activation is None else self.activation(outputs)

    def conv_options(self: Any) -> dict[str, Any]:
        """Return the convolution's options as keyword arguments of the kernels."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable("normbench")
class Conv2D(KernelLayer, keras.layers.Conv2D):
    """Keras's Conv2D, faster with TensorFlow on a CPU.

    There, a 1×1 convolution without strides or groups is a matrix product, and a wide 3×3 one in
    float32 uses Winograd's algorithm. The results differ from Keras's by rounding. The kernel's
    gradient is never NaN; Keras's can be for images with one spatial position.
    """

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return conv2d(inputs, kernel, **self.conv_options())


@keras.saving.register_keras_serializable("normbench")
class DepthwiseConv2D(KernelLayer, keras.layers.DepthwiseConv2D):
    """Keras's DepthwiseConv2D, which convolves half precision in float32 on a CPU.

    As for :class:`Conv2D`, the kernel's gradient is never NaN.
    """

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return depthwise_conv2d(inputs, kernel, **self.conv_options())
