"""Group Normalization and its special cases, Layer and Instance Normalization."""

from __future__ import annotations

from typing import Any

import keras

from normbench.kernels.standardize import group_standardize
from normbench.norms.base import ChannelAffine, check_groups, groups_dividing

__all__ = ["GroupNormalization", "InstanceNormalization", "LayerNormalization"]


class _Grouped(ChannelAffine):
    """Base class for layers that standardize each image by groups of channels."""

    def __init__(
        self, epsilon: float = 1e-3, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)

    def create_weights(self, channels: int) -> None:
        self.groups_of(channels)  # raises if the groups do not divide the channels

    def groups_of(self, channels: int) -> int:
        """Return the number of groups for this number of channels."""
        raise NotImplementedError

    def normalize(self, x: Any, valid: Any = None) -> Any:
        gamma, beta = self.affine()
        groups = self.groups_of(self.channels)
        return group_standardize(x, gamma, beta, groups, self.epsilon, valid=valid)


@keras.saving.register_keras_serializable("normbench")
class GroupNormalization(_Grouped):
    """Group Normalization (Wu & He 2018, eq. 2–6).

    y = γ·(x − μ)/sqrt(σ² + ε) + β. Each image's channels are split into groups of neighbors; μ
    and σ² are a group's mean and biased variance over its channels and all positions. γ and β are
    per channel. An image's output does not depend on other images; training and inference are the
    same.

    Equal within rounding to the layers of Keras, tensorflow-addons and PyTorch at the same epsilon
    (by default 1e-5 in the paper's code and PyTorch, 1e-3 in Keras and tensorflow-addons).

    If neither ``groups`` nor ``channels_per_group`` is given, there are 32 groups, as in the paper;
    ``conf/norm/gn.yaml`` sets a number that suits small networks.

    Args:
        groups: Number of groups; must divide the channels.
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        channels_per_group: Channels per group (the paper's table 3), as an alternative to
            ``groups``.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.

    Raises:
        ValueError: ``groups`` and ``channels_per_group`` are both given, or the given one is below
            1 or does not divide the channels.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of an image's group of channels"
    computed_over = "space, channels"
    source = "Wu & He 2018, equations 2–6 (arXiv 1803.08494)"

    def __init__(
        self,
        groups: int | None = None,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        channels_per_group: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if groups is None and channels_per_group is None:
            groups = 32
        check_groups(groups, channels_per_group)
        self.groups = groups
        self.channels_per_group = channels_per_group

    def groups_of(self, channels: int) -> int:
        return groups_dividing(self.name, channels, self.groups, self.channels_per_group)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "channels_per_group": self.channels_per_group,
        }


@keras.saving.register_keras_serializable("normbench")
class LayerNormalization(_Grouped):
    """Layer Normalization (Ba et al. 2016, eq. 3) of an image over positions and channels.

    y = γ·(x − μ)/sqrt(σ² + ε) + β with an image's mean and biased variance. γ and β are per
    channel, as in Wu & He 2018; in the paper they are per unit. This layer standardizes over all
    axes but the first. Keras's LayerNormalization standardizes over the last axis alone by default,
    as :class:`PositionalNormalization` does here.

    Args:
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of an image"
    computed_over = "space, channels"
    source = "Ba et al. 2016, equation 3 (arXiv 1607.06450)"

    def groups_of(self, channels: int) -> int:
        return 1


@keras.saving.register_keras_serializable("normbench")
class InstanceNormalization(_Grouped):
    """Instance Normalization (Ulyanov et al. 2016, eq. 4): each image's channel over positions.

    y = γ·(x − μ)/sqrt(σ² + ε) + β with the mean and biased variance of an image's channel. The
    paper has no γ and β; they became usual later (Dumoulin et al. 2017).

    If an input has one spatial position or no spatial axes, every value is its own mean: the output
    is always β, and the gradients to the input and to γ are 0. PyTorch rejects such an input in
    training.

    Args:
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), the statistics are taken over the valid positions only.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of an image's channel"
    computed_over = "space"
    source = "Ulyanov et al. 2016, equation 4 (arXiv 1607.08022)"

    def groups_of(self, channels: int) -> int:
        return channels
