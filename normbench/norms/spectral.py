"""Spectral Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.initializers import Normal
from normbench.norms._filters import as_matrix
from normbench.norms._parametrization import (
    ParametrizedConv2D,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
)

__all__ = ["SNConv2D", "SNDepthwiseConv2D", "SpectralNormalization"]

_LEAST_NORM = 1e-24
"""Least square of a length, and least square of σ, in a divisor."""


@keras.saving.register_keras_serializable("normbench")
class SpectralNormalization(WeightParametrization):
    """The kernel divided by its largest singular value (Miyato et al. 2018, algorithm 1).

    The kernel is seen as the matrix (output channels, kernel places × input channels), as there;
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
        return values / ops.maximum(sigma, _LEAST_NORM**0.5)


def _unit(vectors: Any) -> Any:
    """Give each (…, n, 1) the length 1."""
    square = ops.sum(ops.square(vectors), axis=-2, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(square, _LEAST_NORM))


@keras.saving.register_keras_serializable("normbench")
class SNConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`SpectralNormalization`, whose options it takes, too."""

    parametrized_by = SpectralNormalization


@keras.saving.register_keras_serializable("normbench")
class SNDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`SpectralNormalization`, whose options it takes, too."""

    parametrized_by = SpectralNormalization
