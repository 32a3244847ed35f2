"""Weight Standardization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._parametrization import (
    ParametrizedConv2D,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
)

__all__ = ["WSConv2D", "WSDepthwiseConv2D", "WeightStandardization"]


@keras.saving.register_keras_serializable("normbench")
class WeightStandardization(WeightParametrization):
    """Each output channel's kernel to mean 0 and deviation 1 (Qiao et al. 2019, eq. 5–7).

    Standardized in the forward pass, so the gradient takes the standardization into account and
    the stored kernel stays free. Neither gain nor fan-in enters (that is Brock et al. 2021). The
    deviation is sqrt(variance + epsilon) with the biased variance, as in the paper's eq. 7; the
    authors' code has the unbiased deviation plus 1e-5.

    Args:
        epsilon: Added to the variance.
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        self.epsilon = float(epsilon)

    def __call__(self, kernel: Any, training: bool = False) -> Any:
        values = ops.cast(kernel, "float32")
        centred = values - ops.mean(values, axis=self.axes, keepdims=True)
        variance = ops.mean(ops.square(centred), axis=self.axes, keepdims=True)
        return ops.cast(centred * ops.rsqrt(variance + self.epsilon), kernel.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon}


@keras.saving.register_keras_serializable("normbench")
class WSConv2D(ParametrizedConv2D):
    """Keras's Conv2D with Weight Standardization.

    Args:
        filters: Output channels.
        kernel_size: Height and width of the kernel.
        epsilon: Added to the variance of an output channel's kernel.
        **kwargs: As for ``keras.layers.Conv2D``.
    """

    def __init__(
        self, filters: int, kernel_size: Any, epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        kwargs.pop("parametrization", None)
        super().__init__(
            filters, kernel_size, parametrization=WeightStandardization(epsilon), **kwargs
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["parametrization"]
        return {**config, **self.parametrization.get_config()}


@keras.saving.register_keras_serializable("normbench")
class WSDepthwiseConv2D(ParametrizedDepthwiseConv2D):
    """Keras's DepthwiseConv2D with Weight Standardization of each filter.

    Args:
        kernel_size: Height and width of the kernel.
        epsilon: Added to the variance of a filter.
        **kwargs: As for ``keras.layers.DepthwiseConv2D``.
    """

    def __init__(self, kernel_size: Any, epsilon: float = 1e-5, **kwargs: Any) -> None:
        kwargs.pop("parametrization", None)
        super().__init__(kernel_size, parametrization=WeightStandardization(epsilon), **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["parametrization"]
        return {**config, **self.parametrization.get_config()}
