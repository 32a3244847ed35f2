"""Two wrong ways to standardize weights, for comparison.

Both come from a popular question about Weight Standardization in Keras and its accepted answer.
For correct Weight Standardization see :class:`WeightStandardization`.
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
"""Lower bound of the variance under the root, whose slope at 0 would be infinite."""


@keras.saving.register_keras_serializable("normbench")
class WSRegularizer(keras.regularizers.Regularizer):
    """WRONG, for study: standardization passed as a ``kernel_regularizer``.

    A regularizer's value is added to the loss; it never changes the kernel. As posted, the
    function computes (W − mean)/(deviation + ε) over axes (0, 1, 2) and returns nothing, which
    Keras 2 ignored and Keras 3 cannot add up; ``returns="nothing"`` adds 0 instead. With the
    missing ``return``, a tensor of the kernel's shape would be added to the loss; its sum,
    ``returns="sum"``, is valid and has the same gradient. The sum of a standardized kernel is
    always 0, and so is its gradient. Either way, the loss and the kernel are, within rounding,
    those of a layer without the regularizer.

    Args:
        epsilon: Added to the deviation.
        returns: "sum" or "nothing".
        axes: The axes that mean and deviation are taken over.

    Raises:
        ValueError: ``returns`` is unknown.
    """

    def __init__(
        self, epsilon: float = 1e-5, returns: str = "sum", axes: Sequence[int] = (0, 1, 2)
    ) -> None:
        self.epsilon = float(epsilon)
        self.returns = _one_of("returns", returns, ("sum", "nothing"))
        self.axes = tuple(axes)

    def __call__(self, kernel: Any) -> Any:
        """Return the term to add to the loss, a float32 scalar."""
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
    """WRONG, for study: the stored kernel, with a :class:`WSRegularizer`.

    Args:
        epsilon: Added to the deviation.
        returns: "sum" or "nothing", as for :class:`WSRegularizer`.

    Raises:
        ValueError: ``returns`` is unknown; in ``build``, the layer already has a regularizer.
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

    At each call, the answer's convolution assigns W·s − mean(W)·s with
    s = gain/√max(var(W)·fan-in, ε) to its kernel and convolves with it. An assignment has no
    gradient: the update is that of a plain kernel, and the next call standardizes the result. So
    training is projected gradient descent instead of descent through the standardization.

    Here the kernel is overwritten where this works on every backend: when it is initialized and, as
    a constraint, after each update. The convolution uses the standardized value, with a gradient of
    1 to the stored one. Step by step, this is equivalent to the answer.

    The answer's gain is omitted: it is created in the method at each call and gets no gradient
    through the assignment, so it is always 1.

    Args:
        epsilon: Lower bound of var·fan-in in the divisor.

    Raises:
        ValueError: In ``build``, the layer already has a kernel constraint.
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
    """WRONG, for study: Keras's Conv2D under :class:`WSAssign`, accepting its options."""

    parametrized_by = WSAssign


@keras.saving.register_keras_serializable("normbench")
class WSAssignDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """WRONG, for study: Keras's DepthwiseConv2D under :class:`WSAssign`, accepting its options."""

    parametrized_by = WSAssign
