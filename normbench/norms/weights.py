"""Weight parametrizations, and the layers that apply one to their kernel in the forward pass.

To add one, subclass :class:`WeightParametrization` and implement its formula in ``of_filters``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
from keras import ops

from normbench.components import parameters_of
from normbench.initializers import Normal
from normbench.kernels.arrays import as_tensor
from normbench.kernels.filters import (
    as_matrix,
    filters_of,
    lengths,
    scale_filters,
    standardize_filters,
)
from normbench.norms.convolution import Conv2D, DepthwiseConv2D, KernelLayer

__all__ = [
    "CWNConv2D",
    "CWNDepthwiseConv2D",
    "CenteredWeightNormalization",
    "SNConv2D",
    "SNDepthwiseConv2D",
    "ScaledWSConv2D",
    "ScaledWSDepthwiseConv2D",
    "ScaledWeightStandardization",
    "SpectralNormalization",
    "WNConv2D",
    "WNDepthwiseConv2D",
    "WSConv2D",
    "WSDepthwiseConv2D",
    "WeightNormalization",
    "WeightStandardization",
]

_LEAST_SQUARE = 1e-24
"""Lower bound of a squared length, or of σ², in a divisor, so that a zero filter gives no NaN."""


class WeightParametrization:
    """A differentiable map from the stored kernel to the one used in the convolution.

    Each layer has its own instance. The gradient flows through the map to the stored kernel, which
    is unconstrained.

    A kernel of shape (..., I, O) has O filters, one for each output channel; a depthwise one,
    (..., C, M), has C·M. Implement a map of each filter separately in :meth:`of_filters`, any other
    in :meth:`__call__`.
    """

    formula: ClassVar[str]
    """The kernel used in the convolution, in one line."""
    computed_over: ClassVar[str]
    """The axes that a statistic is computed over."""
    parameters: ClassVar[str]
    """Trainable weights other than the stored kernel."""
    state: ClassVar[str]
    """Non-trainable state."""
    source: ClassVar[str]
    """Authors and publication."""

    centered: ClassVar[bool] = False
    """Whether a filter's mean is subtracted, which makes a filter of one weight 0."""

    def initializer(self, initializer: Any, depthwise: bool) -> Any:
        """Return the initializer of the stored kernel, given the layer's own."""
        return initializer

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        """Prepare for a kernel of this shape; may add weights to ``layer``.

        Raises:
            ValueError: The filters are too small to be normalized.
        """
        self.depthwise = depthwise
        filters = filters_of(shape, depthwise)
        if self.centered and math.prod(shape) == filters:
            raise ValueError(
                f"{layer.name} has filters of one weight each, which "
                f"{type(self).__name__} would set to 0"
            )

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        """Return the kernel to convolve with, of the same shape, in at least float32."""
        values = ops.cast(kernel, keras.backend.result_type(kernel.dtype, "float32"))
        matrix = self.of_filters(as_matrix(values, self.depthwise))
        return ops.reshape(matrix, kernel.shape)

    def of_filters(self, matrix: Any) -> Any:
        """Map a kernel given as (K, F), F filters of K weights."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, which are attributes of the same names."""
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
    """Mixin that applies a :class:`WeightParametrization` to a layer's kernel.

    A subclass that sets ``parametrized_by`` accepts that class's options as its own.
    """

    parametrized_by: ClassVar[type[WeightParametrization] | None] = None
    _depthwise: ClassVar[bool]
    parametrization: WeightParametrization

    @classmethod
    def _chosen(cls, parametrization: Any, kwargs: dict[str, Any]) -> WeightParametrization:
        """Return the parametrization to use, removing its options from ``kwargs``."""
        kind = cls.parametrized_by
        if kind is not None:
            if parametrization is not None:
                raise TypeError(f"{cls.__name__} takes no parametrization: it has a fixed one")
            names = [name for name in parameters_of(kind) if name in kwargs]
            return kind(**{name: kwargs.pop(name) for name in names})
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
        # Keep kernel and gain in full precision until the kernel has been mapped.
        if kwargs.get("name") != "bias":
            kwargs["autocast"] = False
        if kwargs.get("name") == "kernel":
            kwargs["initializer"] = self.parametrization.initializer(
                kwargs["initializer"], self._depthwise
            )
        return super().add_weight(*args, **kwargs)

    def effective_kernel(self: Any, training: bool) -> Any:
        return self.parametrization(as_tensor(self.kernel), training=training)

    def save_own_variables(self, store: Any) -> None:
        # Keras's layers would store only the kernel and the bias.
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
class ParametrizedConv2D(_Parametrized, Conv2D):
    """Keras's Conv2D under a :class:`WeightParametrization`.

    Args:
        filters: Output channels.
        kernel_size: Height and width of the kernel.
        parametrization: The map applied to the kernel.
        **kwargs: As for ``keras.layers.Conv2D``.

    Raises:
        TypeError: ``parametrization`` is not a :class:`WeightParametrization`.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = False

    def __init__(
        self, filters: int, kernel_size: Any, parametrization: Any = None, **kwargs: Any
    ) -> None:
        kernel_parametrization = self._chosen(parametrization, kwargs)
        super().__init__(filters, kernel_size, **kwargs)
        self.parametrization = kernel_parametrization


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDepthwiseConv2D(_Parametrized, DepthwiseConv2D):
    """Keras's DepthwiseConv2D under a :class:`WeightParametrization`.

    Args:
        kernel_size: Height and width of the kernel.
        parametrization: The map applied to the kernel.
        **kwargs: As for ``keras.layers.DepthwiseConv2D``.

    Raises:
        TypeError: ``parametrization`` is not a :class:`WeightParametrization`.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = True

    def __init__(self, kernel_size: Any, parametrization: Any = None, **kwargs: Any) -> None:
        kernel_parametrization = self._chosen(parametrization, kwargs)
        super().__init__(kernel_size, **kwargs)
        self.parametrization = kernel_parametrization


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDense(_Parametrized, KernelLayer, keras.layers.Dense):
    """Keras's Dense under a :class:`WeightParametrization`; a filter is the weights of one unit.

    Args:
        units: Outputs.
        parametrization: The map applied to the kernel.
        **kwargs: As for ``keras.layers.Dense``.

    Raises:
        TypeError: ``parametrization`` is not a :class:`WeightParametrization`.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = False

    def __init__(self, units: int, parametrization: Any = None, **kwargs: Any) -> None:
        kernel_parametrization = self._chosen(parametrization, kwargs)
        super().__init__(units, **kwargs)
        self.parametrization = kernel_parametrization

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)


# --- Weight Standardization -----------------------------------------------------------------------


@keras.saving.register_keras_serializable("normbench")
class WeightStandardization(WeightParametrization):
    """Standardize each filter to mean 0 and deviation 1 (Qiao et al. 2019, arXiv 1903.10520).

    The kernel is standardized in the forward pass (eq. 5–7), so the gradient takes this into
    account and the stored kernel is unconstrained. There is no gain or fan-in as in Brock et al.
    2021.

    As in eq. 7, epsilon is added to the biased variance, under the root; the authors' code instead
    divides by the unbiased deviation.

    Args:
        epsilon: Added to the variance.
    """

    formula = "Ŵ = (W − mean W)/√(var W + ε)"
    computed_over = "kernel positions, input channels"
    parameters = "none"
    state = "none"
    source = "Qiao et al. 2019, equations 5–7 (arXiv 1903.10520)"
    centered = True

    def __init__(self, epsilon: float = 1e-5) -> None:
        self.epsilon = float(epsilon)

    def of_filters(self, matrix: Any) -> Any:
        return standardize_filters(matrix, self.epsilon)


@keras.saving.register_keras_serializable("normbench")
class WSConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`WeightStandardization`, accepting its options."""

    parametrized_by = WeightStandardization


@keras.saving.register_keras_serializable("normbench")
class WSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`WeightStandardization`, accepting its options."""

    parametrized_by = WeightStandardization


# --- Scaled Weight Standardization, for networks without activation normalization -----------------


@keras.saving.register_keras_serializable("normbench")
class ScaledWeightStandardization(WeightParametrization):
    """Scale each filter to mean 0 and squared length (gamma·gain)² (Brock et al. 2021).

    ``gamma·gain·(W − mean W)/√max(var W·fan-in, ε)``: arXiv 2102.06171, eq. 1, with the constant
    gamma of arXiv 2101.08692 and the trained gain and the ε of the authors' code. After a
    nonlinearity with matching gamma, a convolution preserves the variance at any depth without
    normalizing activations. Because var·fan-in is the squared length of the centered filter, this
    is :class:`CenteredWeightNormalization` with a different initial gain.

    In the papers, gamma is 1 for a convolution that follows no nonlinearity (the first one, for
    example), and the network scales residual branches. Here, gamma is the same for all
    convolutions, and the network is not changed.

    Args:
        gamma: Constant of the preceding nonlinearity: √2/√(1 − 1/π) = 1.7139 for ReLU.
        gain: Whether each output channel has a trained gain, initially 1.
        epsilon: Lower bound of var·fan-in in the divisor.
    """

    formula = "Ŵ = γ·g·(W − mean W)/√max(var W·fan-in, ε)"
    computed_over = "kernel positions, input channels"
    parameters = "g: per filter"
    state = "none"
    source = "Brock et al. 2021, equation 1 (arXiv 2102.06171)"
    centered = True

    def __init__(self, gamma: float = 1.0, gain: bool = True, epsilon: float = 1e-4) -> None:
        self.gamma = float(gamma)
        self.gain = bool(gain)
        self.epsilon = float(epsilon)

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)
        filters = filters_of(shape, depthwise)
        self._gain = channel_gain(layer, "gain", filters, "ones") if self.gain else None

    def of_filters(self, matrix: Any) -> Any:
        gain = 1.0 if self._gain is None else as_tensor(self._gain)
        length = keras.ops.broadcast_to(
            keras.ops.cast(self.gamma * gain, matrix.dtype), (matrix.shape[1],)
        )
        return scale_filters(matrix, length, centered=True, least=self.epsilon)


@keras.saving.register_keras_serializable("normbench")
class ScaledWSConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`ScaledWeightStandardization`, accepting its options."""

    parametrized_by = ScaledWeightStandardization


@keras.saving.register_keras_serializable("normbench")
class ScaledWSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`ScaledWeightStandardization`, accepting its options."""

    parametrized_by = ScaledWeightStandardization


# --- Weight Normalization, plain and centered -----------------------------------------------------


@keras.saving.register_keras_serializable("normbench")
class WeightNormalization(WeightParametrization):
    """Separate length and direction of each filter: W = g·v/‖v‖ (Salimans & Kingma 2016, eq. 2).

    v is the stored kernel and g a trained number for each output channel. Initially g is ‖v‖, so
    that the layer starts out equal to one without the parametrization, as with PyTorch's
    ``weight_norm``. The paper (section 3) instead initializes g and the bias from the outputs for a
    first mini-batch.
    """

    formula = "Ŵ = g·W/‖W‖"
    computed_over = "kernel positions, input channels"
    parameters = "g: per filter"
    state = "none"
    source = "Salimans & Kingma 2016, equation 2 (arXiv 1602.07868)"

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)

        def initial(shape: tuple[int, ...], dtype: Any = None) -> Any:
            matrix = as_matrix(ops.cast(as_tensor(layer.kernel), "float32"), depthwise)
            return lengths(matrix, self.centered)

        self._length = channel_gain(layer, "length", filters_of(shape, depthwise), initial)

    def of_filters(self, matrix: Any) -> Any:
        length = ops.cast(as_tensor(self._length), matrix.dtype)
        return scale_filters(matrix, length, self.centered, _LEAST_SQUARE)


@keras.saving.register_keras_serializable("normbench")
class CenteredWeightNormalization(WeightNormalization):
    """Weight Normalization of the centered filter: W = g·c/‖c‖, c = v − mean v.

    Huang et al. 2017, section 3: a filter of mean 0 ignores the mean of its inputs. Initially g is
    ‖c‖, so that the layer starts out with the centered stored kernel.
    """

    formula = "Ŵ = g·(W − mean W)/‖W − mean W‖"
    source = "Huang et al. 2017, section 3 (arXiv 1710.02338)"
    centered = True


@keras.saving.register_keras_serializable("normbench")
class WNConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`WeightNormalization`."""

    parametrized_by = WeightNormalization


@keras.saving.register_keras_serializable("normbench")
class WNDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`WeightNormalization`."""

    parametrized_by = WeightNormalization


@keras.saving.register_keras_serializable("normbench")
class CWNConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`CenteredWeightNormalization`."""

    parametrized_by = CenteredWeightNormalization


@keras.saving.register_keras_serializable("normbench")
class CWNDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`CenteredWeightNormalization`."""

    parametrized_by = CenteredWeightNormalization


# --- Spectral Normalization -----------------------------------------------------------------------


@keras.saving.register_keras_serializable("normbench")
class SpectralNormalization(WeightParametrization):
    """The kernel divided by its largest singular value (Miyato et al. 2018, algorithm 1).

    As in the paper, the kernel is treated as a matrix (output channels, kernel positions × input
    channels), whose σ is not the norm of the convolution as a map of images. σ = uᵀWv comes from
    power iteration. u persists between steps and is updated in training only; no gradient flows
    through u and v. In inference, σ = ‖Wᵀu‖ with the stored u.

    The matrix of a grouped convolution is block diagonal with a block per group, that of a
    depthwise one with a block of M filters per input channel. σ is the largest over the blocks,
    with power iteration in each. (Keras and PyTorch iterate on the reshaped kernel instead, which
    is a different matrix.)

    Keras's ``SpectralNormalization`` divides once per training step and *stores* the result, so
    that the gradient ignores the division. Here the stored kernel is unconstrained, as in the paper
    and in PyTorch.

    Args:
        iterations: Power iterations per training step.

    Raises:
        ValueError: ``iterations`` is below 1.
    """

    formula = "Ŵ = W/σ(W), σ the largest singular value"
    computed_over = "the whole kernel"
    parameters = "none"
    state = "u: per filter"
    source = "Miyato et al. 2018, algorithm 1 (arXiv 1802.05957)"

    def __init__(self, iterations: int = 1) -> None:
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a whole number of at least 1, got {iterations!r}")
        self.iterations = iterations

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)
        self._blocks = shape[-2] if depthwise else getattr(layer, "groups", 1)
        rows = shape[-1] if depthwise else shape[-1] // self._blocks
        self._u = layer.add_weight(
            name="u",
            shape=(self._blocks, rows),
            initializer=Normal(1.0),
            dtype="float32",
            autocast=False,
            trainable=False,
        )

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        values = ops.cast(kernel, keras.backend.result_type(kernel.dtype, "float32"))
        matrix = ops.reshape(as_matrix(values, self.depthwise), (-1, *self._u.shape))
        matrix = ops.transpose(matrix, (1, 2, 0))  # (blocks, rows, K)
        fixed = ops.stop_gradient(matrix)
        u = ops.cast(ops.convert_to_tensor(self._u), values.dtype)[..., None]
        v = _unit(ops.matmul(ops.transpose(fixed, (0, 2, 1)), u))
        if training:
            for iteration in range(self.iterations):
                if iteration:
                    v = _unit(ops.matmul(ops.transpose(fixed, (0, 2, 1)), u))
                u = _unit(ops.matmul(fixed, v))
            self._u.assign(ops.cast(u[..., 0], self._u.dtype))
        else:
            u = _unit(u)
        sigma = ops.max(ops.sum(ops.matmul(matrix, v) * u, axis=(1, 2)))
        return values / ops.maximum(sigma, _LEAST_SQUARE**0.5)


def _unit(vectors: Any) -> Any:
    """Scale each vector of (…, n, 1) to length 1."""
    square = ops.sum(ops.square(vectors), axis=-2, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(square, _LEAST_SQUARE))


@keras.saving.register_keras_serializable("normbench")
class SNConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`SpectralNormalization`, accepting its options."""

    parametrized_by = SpectralNormalization


@keras.saving.register_keras_serializable("normbench")
class SNDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`SpectralNormalization`, accepting its options."""

    parametrized_by = SpectralNormalization
