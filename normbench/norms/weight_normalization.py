"""Weight Normalization, plain and centred."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._filters import as_matrix, filters_of, lengths, scaled_to
from normbench.norms._parametrization import (
    ParametrizedConv2D,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
    channel_gain,
)
from normbench.norms._statistics import value_of

__all__ = [
    "CWNConv2D",
    "CWNDepthwiseConv2D",
    "CenteredWeightNormalization",
    "WNConv2D",
    "WNDepthwiseConv2D",
    "WeightNormalization",
]

_LEAST = 1e-24
"""Least squared length of a filter in the divisor: a filter of zeros stays one, without NaN."""


@keras.saving.register_keras_serializable("normbench")
class WeightNormalization(WeightParametrization):
    """Direction and length of each filter apart: W = g·v/‖v‖ (Salimans & Kingma 2016, eq. 2).

    v is the stored kernel and g, trained, one number for each output channel. At first g is ‖v‖,
    so that the layer begins as the one without the parametrization.

    Differs from the paper, whose section 3 takes the first g (and bias) from the outputs for a
    first mini-batch; PyTorch's ``weight_norm`` begins as this does.
    """

    formula = "Ŵ = g·W/‖W‖"
    computed_over = "kernel places, input channels"
    parameters = "g: per filter"
    state = "none"
    source = "Salimans & Kingma 2016, equation 2 (arXiv 1602.07868)"

    def build(self, layer: Any, shape: tuple[int, ...], depthwise: bool) -> None:
        super().build(layer, shape, depthwise)

        def initial(shape: tuple[int, ...], dtype: Any = None) -> Any:
            stored = as_matrix(ops.cast(value_of(layer.kernel), "float32"), depthwise)
            return lengths(stored, self.centred)

        self._length = channel_gain(layer, "length", filters_of(shape, depthwise), initial)

    def of_filters(self, matrix: Any) -> Any:
        length = ops.cast(value_of(self._length), matrix.dtype)
        return scaled_to(matrix, length, self.centred, _LEAST)


@keras.saving.register_keras_serializable("normbench")
class CenteredWeightNormalization(WeightNormalization):
    """Weight Normalization of the centred filter: W = g·c/‖c‖, c = v − mean v.

    Huang et al. 2017, section 3: a filter of mean 0 is blind to the mean of what it sees. The
    first g is ‖c‖, so that the layer begins as the one with the stored kernel centred.
    """

    formula = "Ŵ = g·(W − mean W)/‖W − mean W‖"
    source = "Huang et al. 2017, section 3 (arXiv 1710.02338)"
    centred = True


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
