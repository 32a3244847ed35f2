"""Layers whose kernel passes through a weight parametrization in the forward pass."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
from keras import ops

from normbench.components import parameters_of
from normbench.norms._convolution import Convolution, depthwise, over_shards
from normbench.norms._filters import as_matrix, filters_of
from normbench.norms._statistics import value_of


class WeightParametrization:
    """A differentiable map from the stored kernel to the one that is convolved with.

    One object serves one layer. The gradient flows through the map to the stored kernel, which
    stays free.

    A kernel of shape (..., I, O) has O filters, one for each output channel; a depthwise one,
    (..., C, M), has C·M. A map that works on each filter by itself says so in :meth:`of_filters`,
    any other in :meth:`__call__`.
    """

    formula: ClassVar[str]
    """What the layer convolves with, in one line."""
    computed_over: ClassVar[str]
    """What a statistic is computed over."""
    parameters: ClassVar[str]
    """What is trained besides the stored kernel."""
    state: ClassVar[str]
    """What is kept from step to step and not trained."""
    source: ClassVar[str]
    """Who proposed it, and where."""

    centred: ClassVar[bool] = False
    """Whether a filter's mean is taken off, so that one of a single weight is always 0."""

    def initializer(self, initializer: Any, depthwise: bool) -> Any:
        """Return what draws the stored kernel, given what the layer was asked to draw it with."""
        return initializer

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        """Prepare for the kernel, of ``shape``, of ``layer``; may add weights to the layer.

        Raises:
            ValueError: A filter too small to be normalized.
        """
        self.depthwise = depthwise
        filters = filters_of(shape, depthwise)
        if self.centred and math.prod(shape) == filters:
            raise ValueError(
                f"{layer.name} has filters of one weight each, which "
                f"{type(self).__name__} would make 0"
            )

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        """Return the kernel to convolve with, of the stored one's shape; at least float32."""
        values = ops.cast(kernel, keras.backend.result_type(kernel.dtype, "float32"))
        mapped = self.of_filters(as_matrix(values, self.depthwise))
        return ops.reshape(mapped, kernel.shape)

    def of_filters(self, matrix: Any) -> Any:
        """Map a kernel given as (K, F), F filters of K weights."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, which are kept under their own names."""
        return {name: getattr(self, name) for name in parameters_of(type(self))}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightParametrization:
        return cls(**config)


def channel_gain(layer: Any, name: str, filters: int, initializer: Any) -> Any:
    """Add to ``layer`` a trained float32 number for each filter."""
    return layer.add_weight(
        name=name, shape=(filters,), initializer=initializer, dtype="float32", autocast=False
    )


class _Parametrized(keras.layers.Layer):
    """What the kinds of layers under a parametrization share.

    A subclass that sets ``parametrized_by`` takes that class's options among its own.
    """

    takes_shards: ClassVar[bool] = True
    parametrized_by: ClassVar[type[WeightParametrization] | None] = None
    _depthwise: ClassVar[bool]
    parametrization: WeightParametrization

    @classmethod
    def _chosen(cls, parametrization: Any, kwargs: dict[str, Any]) -> WeightParametrization:
        """Return the parametrization to use; takes the options that are its own from ``kwargs``."""
        kind = cls.parametrized_by
        if kind is not None:
            if parametrization is not None:
                raise TypeError(f"{cls.__name__} takes no parametrization: it has its own")
            taken = [name for name in parameters_of(kind) if name in kwargs]
            return kind(**{name: kwargs.pop(name) for name in taken})
        if isinstance(parametrization, dict):
            parametrization = keras.saving.deserialize_keras_object(parametrization)
        if not isinstance(parametrization, WeightParametrization):
            raise TypeError(
                f"parametrization must be a WeightParametrization, got {parametrization!r}"
            )
        return parametrization

    def build(self: Any, input_shape: Any) -> None:
        super().build(input_shape)
        self.parametrization.build(self, tuple(self.kernel.shape), self._depthwise)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        # Neither kernel nor gain is rounded to half precision before the kernel is mapped.
        if kwargs.get("name") != "bias":
            kwargs["autocast"] = False
        if kwargs.get("name") == "kernel":
            kwargs["initializer"] = self.parametrization.initializer(
                kwargs["initializer"], self._depthwise
            )
        return super().add_weight(*args, **kwargs)

    def call(self: Any, inputs: Any, training: bool = False) -> Any:
        return self.call_with_shards([inputs], training)[0]

    def call_with_shards(self: Any, shards: list[Any], training: bool = False) -> list[Any]:
        """As a call with each part of a batch, but the kernel is mapped once."""
        kernel = self.parametrization(value_of(self.kernel), training=training)
        return over_shards(self, shards, kernel, self._convolve)

    def save_own_variables(self, store: Any) -> None:
        # Keras's layers store kernel and bias and nothing else.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.parametrized_by is not None:
            return {**config, **self.parametrization.get_config()}
        parametrization = keras.saving.serialize_keras_object(self.parametrization)
        return {**config, "parametrization": parametrization}


@keras.saving.register_keras_serializable("normbench")
class ParametrizedConv2D(_Parametrized, Convolution, keras.layers.Conv2D):
    """Keras's Conv2D under a :class:`WeightParametrization`.

    Args:
        filters: Output channels.
        kernel_size: Height and width of the kernel.
        parametrization: What the kernel passes through.
        **kwargs: As for ``keras.layers.Conv2D``.

    Raises:
        TypeError: ``parametrization`` is none.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = False

    def __init__(
        self, filters: int, kernel_size: Any, parametrization: Any = None, **kwargs: Any
    ) -> None:
        chosen = self._chosen(parametrization, kwargs)
        super().__init__(filters, kernel_size, **kwargs)
        self.parametrization = chosen

    def _convolve(self, inputs: Any, kernel: Any) -> Any:
        return self.convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDepthwiseConv2D(_Parametrized, keras.layers.DepthwiseConv2D):
    """Keras's DepthwiseConv2D under a :class:`WeightParametrization`; each filter on its own.

    Args:
        kernel_size: Height and width of the kernel.
        parametrization: What the kernel passes through.
        **kwargs: As for ``keras.layers.DepthwiseConv2D``.

    Raises:
        TypeError: ``parametrization`` is none.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = True

    def __init__(self, kernel_size: Any, parametrization: Any = None, **kwargs: Any) -> None:
        chosen = self._chosen(parametrization, kwargs)
        super().__init__(kernel_size, **kwargs)
        self.parametrization = chosen

    def _convolve(self, inputs: Any, kernel: Any) -> Any:
        return depthwise(self, inputs, kernel)


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDense(_Parametrized, keras.layers.Dense):
    """Keras's Dense under a :class:`WeightParametrization`; a filter is what makes one unit.

    Args:
        units: Outputs.
        parametrization: What the kernel passes through.
        **kwargs: As for ``keras.layers.Dense``.

    Raises:
        TypeError: ``parametrization`` is none.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = False

    def __init__(self, units: int, parametrization: Any = None, **kwargs: Any) -> None:
        chosen = self._chosen(parametrization, kwargs)
        super().__init__(units, **kwargs)
        self.parametrization = chosen

    def _convolve(self, inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)
