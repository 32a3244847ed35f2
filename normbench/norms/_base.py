"""What the layers with a scale and a shift for each channel have in common."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._statistics import value_of


class ChannelAffine(keras.layers.Layer):
    """A layer on (N, ..., C) that ends in ``y·γ + β`` with γ, β of shape (C,), in float32.

    Statistics, γ and β stay in float32 under every dtype policy; the output has the policy's
    compute dtype.
    """

    def __init__(
        self, epsilon: float, center: bool, scale: bool, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be 0 or more, got {epsilon}")
        self.epsilon = float(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        if len(input_shape) < 2 or channels is None:
            raise ValueError(
                f"{self.name} needs an input (N, ..., C) of known channels, got {input_shape}"
            )
        self.gamma = self._channel_weight("gamma", channels, "ones") if self.scale else None
        self.beta = self._channel_weight("beta", channels, "zeros") if self.center else None
        self.built = True

    def _channel_weight(
        self, name: str, channels: int, initializer: str, trainable: bool = True
    ) -> Any:
        return self.add_weight(
            name=name,
            shape=(channels,),
            initializer=initializer,
            dtype="float32",
            autocast=False,
            trainable=trainable,
        )

    def affine(self, channels: int) -> tuple[Any, Any]:
        """Return γ and β as float32 tensors (C,), ones and zeros where the layer has none."""
        gamma = ops.ones((channels,)) if self.gamma is None else value_of(self.gamma)
        beta = ops.zeros((channels,)) if self.beta is None else value_of(self.beta)
        return gamma, beta

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
        }
