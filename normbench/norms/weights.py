"""Weight parametrizations, and the layers whose kernel passes through one in the forward pass.

To add one, subclass :class:`WeightParametrization` and state its formula in ``of_filters``.
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
"""Least squared length, of a filter or of σ, in a divisor: a filter of zeros stays one, no NaN."""


class WeightParametrization:
    """A differentiable map from the stored kernel to the one that is convolved with.

    One object serves one layer. The gradient flows through the map to the stored kernel, which
    stays free.

    A kernel of shape (..., I, O) has O filters, one for each output channel; a depthwise one,
    (..., C, M), has C·M. A map that works on each filter by itself says so in :meth:`of_filters`,
    any other in :meth:`__call__`.
    """

    formula: ClassVar[str]
    """The kernel that the layer convolves with, in one line."""
    computed_over: ClassVar[str]
    """The axes that a statistic is computed over."""
    parameters: ClassVar[str]
    """Weights trained besides the stored kernel."""
    state: ClassVar[str]
    """Values kept from step to step without being trained."""
    source: ClassVar[str]
    """Authors and publication."""

    centered: ClassVar[bool] = False
    """Whether a filter's mean is subtracted, so that a filter of one weight is always 0."""

    def initializer(self, initializer: Any, depthwise: bool) -> Any:
        """Return the initializer of the stored kernel, given the one that the layer has."""
        return initializer

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        """Prepare for the kernel, of ``shape``, of ``layer``; may add weights to the layer.

        Raises:
            ValueError: A filter too small to be normalized.
        """
        self.depthwise = depthwise
        filters = filters_of(shape, depthwise)
        if self.centered and math.prod(shape) == filters:
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
    """Mixed into a layer with a kernel: maps the kernel by a :class:`WeightParametrization`.

    A subclass that sets ``parametrized_by`` takes that class's options among its own.
    """

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

    def effective_kernel(self: Any, training: bool) -> Any:
        return self.parametrization(as_tensor(self.kernel), training=training)

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
class ParametrizedConv2D(_Parametrized, Conv2D):
    """Keras's Conv2D under a :class:`WeightParametrization`.

    Args:
        filters: Output channels.
        kernel_size: Height and width of the kernel.
        parametrization: The map that the kernel passes through.
        **kwargs: As for ``keras.layers.Conv2D``.

    Raises:
        TypeError: ``parametrization`` is not a :class:`WeightParametrization`.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = False

    def __init__(
        self, filters: int, kernel_size: Any, parametrization: Any = None, **kwargs: Any
    ) -> None:
        chosen = self._chosen(parametrization, kwargs)
        super().__init__(filters, kernel_size, **kwargs)
        self.parametrization = chosen


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDepthwiseConv2D(_Parametrized, DepthwiseConv2D):
    """Keras's DepthwiseConv2D under a :class:`WeightParametrization`; each filter on its own.

    Args:
        kernel_size: Height and width of the kernel.
        parametrization: The map that the kernel passes through.
        **kwargs: As for ``keras.layers.DepthwiseConv2D``.

    Raises:
        TypeError: ``parametrization`` is not a :class:`WeightParametrization`.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = True

    def __init__(self, kernel_size: Any, parametrization: Any = None, **kwargs: Any) -> None:
        chosen = self._chosen(parametrization, kwargs)
        super().__init__(kernel_size, **kwargs)
        self.parametrization = chosen


@keras.saving.register_keras_serializable("normbench")
class ParametrizedDense(_Parametrized, KernelLayer, keras.layers.Dense):
    """Keras's Dense under a :class:`WeightParametrization`; a filter is the weights of one unit.

    Args:
        units: Outputs.
        parametrization: The map that the kernel passes through.
        **kwargs: As for ``keras.layers.Dense``.

    Raises:
        TypeError: ``parametrization`` is not a :class:`WeightParametrization`.
        ValueError: In ``build``, filters too small for the parametrization.
    """

    _depthwise = False

    def __init__(self, units: int, parametrization: Any = None, **kwargs: Any) -> None:
        chosen = self._chosen(parametrization, kwargs)
        super().__init__(units, **kwargs)
        self.parametrization = chosen

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)


# --- Weight Standardization -----------------------------------------------------------------------


@keras.saving.register_keras_serializable("normbench")
class WeightStandardization(WeightParametrization):
    """Each filter to mean 0 and deviation 1 (Qiao et al. 2019, arXiv 1903.10520, eq. 5–7).

    Standardized in the forward pass, so the gradient takes the standardization into account and
    the stored kernel stays free. Neither gain nor fan-in enters: that is Brock et al. 2021.

    Differs from the authors' code, which divides by the unbiased deviation: eq. 7 has the biased
    variance with epsilon added under the root, and so has this.

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
    """Keras's Conv2D under :class:`WeightStandardization`, whose options it takes, too."""

    parametrized_by = WeightStandardization


@keras.saving.register_keras_serializable("normbench")
class WSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`WeightStandardization`, whose options it takes, too."""

    parametrized_by = WeightStandardization


# --- Scaled Weight Standardization, for networks without activation normalization -----------------


@keras.saving.register_keras_serializable("normbench")
class ScaledWeightStandardization(WeightParametrization):
    """Each filter to mean 0 and squared length (gamma·gain)² (Brock et al. 2021).

    ``gamma·gain·(W − mean W)/√max(var W·fan-in, ε)``: arXiv 2102.06171, eq. 1, with the constant
    gamma of arXiv 2101.08692 and the trained gain and the ε of the authors' code. Behind a
    nonlinearity whose gamma it is, a convolution keeps the variance of its input, at any depth,
    with nothing normalizing activations. As var·fan-in is the squared length of the centered
    filter, this is :class:`CenteredWeightNormalization` with another first gain.

    Differs from the papers: there, gamma is 1 for a convolution that follows no nonlinearity (of
    an image, say), and residual branches are scaled by the network; here, gamma is one number
    for every convolution, and the network is left as it is.

    Args:
        gamma: Constant of the nonlinearity before: √2/√(1 − 1/π) = 1.7139 for ReLU.
        gain: Whether each output channel has a trained gain, initially 1.
        epsilon: Least value of var·fan-in in the divisor.
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
    """Keras's Conv2D under :class:`ScaledWeightStandardization`, whose options it takes, too."""

    parametrized_by = ScaledWeightStandardization


@keras.saving.register_keras_serializable("normbench")
class ScaledWSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`ScaledWeightStandardization`; takes its options."""

    parametrized_by = ScaledWeightStandardization


# --- Weight Normalization, plain and centered -----------------------------------------------------


@keras.saving.register_keras_serializable("normbench")
class WeightNormalization(WeightParametrization):
    """Direction and length of each filter apart: W = g·v/‖v‖ (Salimans & Kingma 2016, eq. 2).

    v is the stored kernel and g, trained, one number for each output channel. At first g is ‖v‖,
    so that the layer begins as the one without the parametrization.

    Differs from the paper, whose section 3 takes the first g (and bias) from the outputs for a
    first mini-batch; PyTorch's ``weight_norm`` begins as this does.
    """

    formula = "Ŵ = g·W/‖W‖"
    computed_over = "kernel positions, input channels"
    parameters = "g: per filter"
    state = "none"
    source = "Salimans & Kingma 2016, equation 2 (arXiv 1602.07868)"

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)

        def initial(shape: tuple[int, ...], dtype: Any = None) -> Any:
            stored = as_matrix(ops.cast(as_tensor(layer.kernel), "float32"), depthwise)
            return lengths(stored, self.centered)

        self._length = channel_gain(layer, "length", filters_of(shape, depthwise), initial)

    def of_filters(self, matrix: Any) -> Any:
        length = ops.cast(as_tensor(self._length), matrix.dtype)
        return scale_filters(matrix, length, self.centered, _LEAST_SQUARE)


@keras.saving.register_keras_serializable("normbench")
class CenteredWeightNormalization(WeightNormalization):
    """Weight Normalization of the centered filter: W = g·c/‖c‖, c = v − mean v.

    Huang et al. 2017, section 3: a filter of mean 0 is blind to the mean of what it sees. The
    first g is ‖c‖, so that the layer begins as the one with the stored kernel centered.
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

    The kernel is seen as the matrix (output channels, kernel positions × input channels), as there;
    its σ is not the norm of the convolution as a map of images. σ = uᵀWv comes from power
    iteration; u is kept between steps and moves in training only, and no gradient passes through
    u and v. In inference σ = ‖Wᵀu‖, from the kept u.

    A grouped convolution's matrix has a block for each group, a depthwise one's a block of its M
    filters for each input channel, and zeros elsewhere: σ is the largest of the blocks', found
    by iterating in every block. (Keras and PyTorch iterate on the reshaped kernel instead, which
    is another matrix there.)

    Keras's ``SpectralNormalization`` divides once in each training step and *stores* what it
    got, so that the division is out of the gradient; here the stored kernel stays free, as in
    the paper and in PyTorch.

    Args:
        iterations: Steps of power iteration in a training step.

    Raises:
        ValueError: ``iterations`` below 1.
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
        matrix = ops.transpose(matrix, (1, 2, 0))  # a block first, then its rows, then K columns
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
    """Give each (…, n, 1) the length 1."""
    square = ops.sum(ops.square(vectors), axis=-2, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(square, _LEAST_SQUARE))


@keras.saving.register_keras_serializable("normbench")
class SNConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`SpectralNormalization`, whose options it takes, too."""

    parametrized_by = SpectralNormalization


@keras.saving.register_keras_serializable("normbench")
class SNDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`SpectralNormalization`, whose options it takes, too."""

    parametrized_by = SpectralNormalization
