"""Weight Standardization."""

from __future__ import annotations

from typing import Any

import keras

from normbench.norms._filters import standardized
from normbench.norms._parametrization import (
    ParametrizedConv2D,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
)

__all__ = ["WSConv2D", "WSDepthwiseConv2D", "WeightStandardization"]


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
    computed_over = "kernel places, input channels"
    parameters = "none"
    state = "none"
    source = "Qiao et al. 2019, equations 5–7 (arXiv 1903.10520)"
    centred = True

    def __init__(self, epsilon: float = 1e-5) -> None:
        self.epsilon = float(epsilon)

    def of_filters(self, matrix: Any) -> Any:
        return standardized(matrix, self.epsilon)


@keras.saving.register_keras_serializable("normbench")
class WSConv2D(ParametrizedConv2D):
    """Keras's Conv2D under :class:`WeightStandardization`, whose options it takes, too."""

    parametrized_by = WeightStandardization


@keras.saving.register_keras_serializable("normbench")
class WSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D under :class:`WeightStandardization`, whose options it takes, too."""

    parametrized_by = WeightStandardization
