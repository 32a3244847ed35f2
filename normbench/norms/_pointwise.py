"""Convolutions of 1×1 as the matrix products that they are."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._compiled import on_cpu


class Pointwise(keras.layers.Layer):
    """Mixed into a Conv2D: a kernel of 1×1 multiplies the matrix of all places.

    On a CPU TensorFlow's convolution is slower, the gradient of its kernel most of all:
    `benchmarks/pointwise.py`. Where it is not, with strides, and for other kernels, groups,
    backends and devices, Keras's is taken.
    """

    def convolution_op(self: Any, inputs: Any, kernel: Any) -> Any:
        """Return ``inputs``, (N, H, W, C), convolved with ``kernel``, (k, k, C / groups, F)."""
        plain = (
            self.kernel_size == (1, 1)
            and self.strides == (1, 1)
            and self.groups == 1
            and self.data_format == "channels_last"
            and on_cpu()
        )
        if not plain:
            return super().convolution_op(inputs, kernel)
        channels, filters = kernel.shape[2:]
        places = ops.reshape(inputs, (-1, channels))
        y = ops.matmul(places, ops.reshape(kernel, (channels, filters)))
        return ops.reshape(y, (*ops.shape(inputs)[:3], filters))


@keras.saving.register_keras_serializable("normbench")
class PointwiseConv2D(Pointwise, keras.layers.Conv2D):
    """Keras's Conv2D, as a matrix product where it is of 1×1, without strides or groups.

    With TensorFlow on a CPU only. The results differ from a Conv2D's by rounding.
    """

    treats_images_alone = True
