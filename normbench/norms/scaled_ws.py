"""Scaled Weight Standardization, for networks without activation normalization."""

from __future__ import annotations

from typing import Any

import keras

from normbench.norms._filters import filters_of, scaled_to
from normbench.norms._parametrization import (
    ParametrizedConv2D,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
    channel_gain,
)
from normbench.norms._statistics import value_of

__all__ = ["ScaledWSConv2D", "ScaledWSDepthwiseConv2D", "ScaledWeightStandardization"]


@keras.saving.register_keras_serializable("normbench")
class ScaledWeightStandardization(WeightParametrization):
    """Each filter to mean 0 and squared length (gamma·gain)² (Brock et al. 2021).

    ``gamma·gain·(W − mean W)/√max(var W·fan-in, ε)``: arXiv 2102.06171, eq. 1, with the constant
    gamma of arXiv 2101.08692 and the trained gain and the ε of the authors' code. Behind a
    nonlinearity whose gamma it is, a convolution keeps the variance of its input, at any depth,
    with nothing normalizing activations. As var·fan-in is the squared length of the centred
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
    computed_over = "kernel places, input channels"
    parameters = "g: per filter"
    state = "none"
    source = "Brock et al. 2021, equation 1 (arXiv 2102.06171)"
    centred = True

    def __init__(self, gamma: float = 1.0, gain: bool = True, epsilon: float = 1e-4) -> None:
        self.gamma = float(gamma)
        self.gain = bool(gain)
        self.epsilon = float(epsilon)

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)
        filters = filters_of(shape, depthwise)
        self._gain = channel_gain(layer, "gain", filters, "ones") if self.gain else None

    def of_filters(self, matrix: Any) -> Any:
        gain = 1.0 if self._gain is None else value_of(self._gain)
        length = keras.ops.broadcast_to(
            keras.ops.cast(self.gamma * gain, matrix.dtype), (matrix.shape[1],)
        )
        return scaled_to(matrix, length, centred=True, least=self.epsilon)


@keras.saving.register_keras_serializable("normbench")
class ScaledWSConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`ScaledWeightStandardization`, whose options it takes, too."""

    parametrized_by = ScaledWeightStandardization


@keras.saving.register_keras_serializable("normbench")
class ScaledWSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`ScaledWeightStandardization`; takes its options."""

    parametrized_by = ScaledWeightStandardization
