"""Group Normalization and its two ends, Layer and Instance Normalization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.norms._base import ChannelAffine
from normbench.norms._statistics import flatten_places, group_standardize

__all__ = ["GroupNormalization", "InstanceNormalization", "LayerNormalization"]


@keras.saving.register_keras_serializable("normbench")
class GroupNormalization(ChannelAffine):
    """Group Normalization (Wu & He 2018, eq. 2–6).

    Each image's channels are split into groups of neighbours; each group is standardized over
    its channels and all places, then every channel is scaled and shifted. The output of an
    image does not depend on the others; training and inference are the same.

    Differs from Keras's layer of that name in speed only: equal within rounding at the same
    epsilon.

    Args:
        groups: Number of groups; must divide the channels.
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32.

    Raises:
        ValueError: ``groups`` below 1 or not dividing the channels.
    """

    def __init__(
        self,
        groups: int = 32,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a whole number of at least 1, got {groups!r}")
        self.groups = groups

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self._groups_of(int(input_shape[-1] or 0))

    def _groups_of(self, channels: int) -> int:
        if channels % self.groups:
            divisors = [d for d in range(1, channels + 1) if channels % d == 0]
            raise ValueError(
                f"groups={self.groups} does not divide the {channels} channels of {self.name} "
                f"(allowed: {', '.join(map(str, divisors))})"
            )
        return self.groups

    def call(self, inputs: Any) -> Any:
        channels = int(inputs.shape[-1])
        gamma, beta = self.affine(channels)
        outputs = group_standardize(
            flatten_places(inputs), gamma, beta, self._groups_of(channels), self.epsilon
        )
        return ops.cast(ops.reshape(outputs, ops.shape(inputs)), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


class _FixedGroups(GroupNormalization):
    """Group Normalization whose number of groups is decided by the layer, not the user."""

    def __init__(
        self, epsilon: float = 1e-3, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(groups=1, epsilon=epsilon, center=center, scale=scale, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["groups"]
        return config


@keras.saving.register_keras_serializable("normbench")
class LayerNormalization(_FixedGroups):
    """Layer Normalization (Ba et al. 2016, eq. 3) of an image over places and channels.

    γ and β are one for each channel, as Wu & He 2018 apply it to images. Keras's
    LayerNormalization standardizes over the last axis alone by default; this one over all axes
    but the first.
    """


@keras.saving.register_keras_serializable("normbench")
class InstanceNormalization(_FixedGroups):
    """Instance Normalization (Ulyanov et al. 2016, eq. 4): each image's channel over places.

    Where an input has no places, or one, every value is its own mean and the output is β.
    """

    def _groups_of(self, channels: int) -> int:
        return channels
