"""Convolutions whose kernel passes through a weight parametrization in the forward pass."""

from __future__ import annotations

from typing import Any

import keras


class WeightParametrization:
    """A differentiable map from the stored kernel to the one that is convolved with.

    One object serves one layer: ``build`` may add weights to that layer (a gain, say) and keep
    them. The gradient flows through the map to the stored kernel, which stays free.

    A kernel of shape (..., I, O) has O output channels; with ``depthwise`` it is (..., C, M) and
    each of the C·M filters is an output channel of its own.
    """

    def build(self, layer: keras.layers.Layer, shape: tuple[int, ...], depthwise: bool) -> None:
        """Prepare for a kernel of ``shape`` that belongs to ``layer``."""
        self.depthwise = depthwise
        self.axes = tuple(range(len(shape) - (2 if depthwise else 1)))

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        """Return the kernel to convolve with, of the stored one's shape and dtype."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightParametrization:
        return cls(**config)


@keras.saving.register_keras_serializable("normbench")
class ParametrizedConv2D(keras.layers.Conv2D):
    """Keras's Conv2D under a :class:`WeightParametrization`.

    Args:
        filters: Output channels.
        kernel_size: Height and width of the kernel.
        parametrization: What the kernel passes through.
        **kwargs: As for ``keras.layers.Conv2D``.
    """

    def __init__(
        self, filters: int, kernel_size: Any, parametrization: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.parametrization = _restored(parametrization)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.parametrization.build(self, tuple(self.kernel.shape), depthwise=False)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_weight(*args, **_in_float32(kwargs))

    def call(self, inputs: Any, training: bool = False) -> Any:
        kernel = _kernel(self, training)
        outputs = self.convolution_op(inputs, kernel)
        if self.use_bias:
            outputs = keras.ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        parametrization = keras.saving.serialize_keras_object(self.parametrization)
        return {**super().get_config(), "parametrization": parametrization}


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's DepthwiseConv2D under a :class:`WeightParametrization`; each filter on its own.

    Args:
        kernel_size: Height and width of the kernel.
        parametrization: What the kernel passes through.
        **kwargs: As for ``keras.layers.DepthwiseConv2D``.
    """

    def __init__(self, kernel_size: Any, parametrization: Any = None, **kwargs: Any) -> None:
        super().__init__(kernel_size, **kwargs)
        self.parametrization = _restored(parametrization)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.parametrization.build(self, tuple(self.kernel.shape), depthwise=True)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_weight(*args, **_in_float32(kwargs))

    def call(self, inputs: Any, training: bool = False) -> Any:
        kernel = _kernel(self, training)
        outputs = keras.ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.use_bias:
            outputs = keras.ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        parametrization = keras.saving.serialize_keras_object(self.parametrization)
        return {**super().get_config(), "parametrization": parametrization}


def _in_float32(options: dict[str, Any]) -> dict[str, Any]:
    """Keep the stored weights from being rounded to half precision before they are mapped."""
    return options if options.get("name") == "bias" else {**options, "autocast": False}


def _kernel(layer: Any, training: bool) -> Any:
    """The layer's kernel, mapped in its own dtype and then cast to the compute dtype."""
    stored = keras.ops.convert_to_tensor(layer.kernel)
    return keras.ops.cast(layer.parametrization(stored, training=training), layer.compute_dtype)


def _restored(parametrization: Any) -> WeightParametrization:
    if isinstance(parametrization, dict):
        parametrization = keras.saving.deserialize_keras_object(parametrization)
    if not isinstance(parametrization, WeightParametrization):
        raise TypeError(f"parametrization must be a WeightParametrization, got {parametrization!r}")
    return parametrization
