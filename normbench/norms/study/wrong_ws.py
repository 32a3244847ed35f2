"""Two wrong ways to standardize weights that circulate, kept to be measured.

Both come from a much-read question about Weight Standardization in Keras and its accepted
answer. Neither is Weight Standardization; :class:`WeightStandardization` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from normbench.errors import nearest
from normbench.kernels.arrays import as_tensor, first_gradient
from normbench.kernels.filters import as_matrix, scale_filters
from normbench.norms.weights import (
    ParametrizedConv2D,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
)

__all__ = [
    "WSAsRegularizer",
    "WSAssign",
    "WSAssignConv2D",
    "WSAssignDepthwiseConv2D",
    "WSRegularizer",
]

_LEAST = 1e-24
"""Least variance under the root, whose slope at 0 would be infinite."""


@keras.saving.register_keras_serializable("normbench")
class WSRegularizer(keras.regularizers.Regularizer):
    """WRONG, for study: standardization passed as a ``kernel_regularizer``.

    A regularizer's value is added to the loss; it never changes the kernel. As posted, the
    function computes (W − mean)/(deviation + ε) over axes (0, 1, 2) and returns nothing, which
    Keras 2 passed over and Keras 3 cannot add up: ``returns="nothing"`` adds 0 in its place.
    With the missing ``return`` the loss would get a tensor of the kernel's shape; what can be
    run, and has the gradient that such a tensor has, is its sum, ``returns="sum"``. The sum of a
    standardized kernel is 0 for every kernel, and so is its gradient. Either way the loss and
    the kernel are, within rounding, those of a layer without the regularizer.

    Args:
        epsilon: Added to the deviation.
        returns: "sum" or "nothing".
        axes: What mean and deviation are taken over.

    Raises:
        ValueError: Any other ``returns``.
    """

    def __init__(
        self, epsilon: float = 1e-5, returns: str = "sum", axes: Sequence[int] = (0, 1, 2)
    ) -> None:
        self.epsilon = float(epsilon)
        self.returns = _one_of("returns", returns, ("sum", "nothing"))
        self.axes = tuple(axes)

    def __call__(self, kernel: Any) -> Any:
        """Return what is added to the loss, a float32 scalar."""
        if self.returns == "nothing":
            return ops.zeros((), "float32")
        values = ops.cast(kernel, "float32")
        centered = values - ops.mean(values, axis=self.axes, keepdims=True)
        variance = ops.mean(ops.square(centered), axis=self.axes, keepdims=True)
        deviation = ops.sqrt(ops.maximum(variance, _LEAST))
        return ops.sum(centered / (deviation + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "returns": self.returns, "axes": list(self.axes)}


@keras.saving.register_keras_serializable("normbench")
class WSAsRegularizer(WeightParametrization):
    """WRONG, for study: the kernel as it is stored, with a :class:`WSRegularizer` on it.

    Args:
        epsilon: Added to the deviation.
        returns: "sum" or "nothing", as for :class:`WSRegularizer`.

    Raises:
        ValueError: Any other ``returns``; in ``build``, a layer with a regularizer of its own.
    """

    formula = "Ŵ = W; added to the loss: Σ (W − mean W)/(dev W + ε), which is 0"
    computed_over = "kernel positions, input channels"
    parameters = "none"
    state = "none"
    source = "WRONG, for study: a question about Qiao et al. 2019 (arXiv 1903.10520)"

    def __init__(self, epsilon: float = 1e-5, returns: str = "sum") -> None:
        self.epsilon = float(epsilon)
        self.returns = _one_of("returns", returns, ("sum", "nothing"))

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)
        if layer.kernel.regularizer is not None:
            raise ValueError(f"{layer.name} has a kernel regularizer, which this one would replace")
        axes = tuple(range(len(shape) - (2 if depthwise else 1)))
        layer.kernel.regularizer = WSRegularizer(self.epsilon, self.returns, axes)

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        return kernel


@keras.saving.register_keras_serializable("normbench")
class WSAssign(WeightParametrization):
    """WRONG, for study: the stored kernel overwritten with its standardized value at each call.

    The answer's convolution, when called, assigns to its kernel W·s − mean(W)·s with
    s = gain/√max(var(W)·fan-in, ε), and convolves with that. An assignment has no gradient: the
    step is the one of a free kernel, and the next call standardizes what it led to, so training
    is projected gradient descent instead of descent through the standardization.

    Here the overwriting is done where it is the same on every backend: on the first value of the
    kernel and, as a constraint, after each update. What is convolved with is the standardized
    value, with a gradient of 1 to the stored one. That is the sequence of the answer, step by
    step.

    The answer's gain is left out: made inside the method, anew at each call, and reached by no
    gradient through an assignment, it is 1 at every step.

    Args:
        epsilon: Least value of var·fan-in in the divisor.

    Raises:
        ValueError: In ``build``, a layer with a kernel constraint of its own.
    """

    formula = "W ← (W − mean W)/√max(var W·fan-in, ε) at each step, outside the gradient"
    computed_over = "kernel positions, input channels"
    parameters = "none"
    state = "none"
    source = "WRONG, for study: an answer about Qiao et al. 2019 (arXiv 1903.10520)"
    centered = True

    def __init__(self, epsilon: float = 1e-4) -> None:
        self.epsilon = float(epsilon)

    def initializer(self, initializer: Any, depthwise: bool) -> Any:
        def standardized(shape: tuple[int, ...], dtype: Any = None) -> Any:
            return self.standardize(initializer(shape, dtype=dtype), depthwise)

        return standardized

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)
        if layer.kernel.constraint is not None:
            raise ValueError(f"{layer.name} has a kernel constraint, which this one would replace")
        layer.kernel.constraint = lambda kernel: self.standardize(as_tensor(kernel), depthwise)

    def standardize(self, kernel: Any, depthwise: bool) -> Any:
        """Return the kernel's standardized value, of its shape and dtype."""
        values = ops.cast(kernel, keras.backend.result_type(kernel.dtype, "float32"))
        matrix = as_matrix(values, depthwise)
        length = ops.ones((matrix.shape[1],), matrix.dtype)
        standard = scale_filters(matrix, length, centered=True, least=self.epsilon)
        return ops.cast(ops.reshape(standard, kernel.shape), kernel.dtype)

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        @ops.custom_gradient
        def assigned(kernel: Any):
            return self.standardize(kernel, self.depthwise), lambda *upstream: first_gradient(
                upstream
            )

        return assigned(kernel)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        near = nearest(str(value), allowed)
        hint = f": did you mean {near!r}?" if near else ""
        raise ValueError(f"unknown {name} {value!r}{hint} (allowed: {', '.join(allowed)})")
    return value


@keras.saving.register_keras_serializable("normbench")
class WSAssignConv2D(ParametrizedConv2D):
    """WRONG, for study: Keras's Conv2D under :class:`WSAssign`, whose options it takes, too."""

    parametrized_by = WSAssign


@keras.saving.register_keras_serializable("normbench")
class WSAssignDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """WRONG, for study: Keras's DepthwiseConv2D under :class:`WSAssign`; takes its options."""

    parametrized_by = WSAssign
