"""Wide residual networks for small images."""

from __future__ import annotations

import keras

from normbench.archs._options import at_least, not_too_deep, rate
from normbench.archs._preactivation import Shape, network
from normbench.errors import UserError
from normbench.norms.norm import Norm

STEM = 16
"""Channels of the first convolution, and of the first stage at a widening factor of 1."""


def build_wide(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int,
    widening: int,
    dropout: float,
) -> keras.Model:
    """Build a wide residual network, WRN-d-k (Zagoruyko & Komodakis 2016, table 1).

    Three stages of n pre-activation blocks of two 3×3 convolutions with 16k, 32k and 64k channels.
    For the places of its normalizations see :func:`normbench.archs._preactivation.network`.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: d = 6n + 4: convolutions, those of the three shortcuts included.
        widening: k.
        dropout: Rate between the two convolutions of a block (figure 1d); the paper has 0.3 on
            CIFAR.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: A ``depth`` that is not 6n + 4, a ``widening`` below 1, a ``dropout`` outside
            [0, 1), or images below 3×3.
    """
    if depth < 10 or depth % 6 != 4:
        raise UserError(f"arch.depth must be 6n + 4 (10, 16, 22, 28, …), got {depth}")
    not_too_deep("depth", depth)
    at_least("widening", widening, 1)
    rate("dropout", dropout)
    shape = Shape((depth - 4) // 6, STEM, STEM * widening, False, dropout)
    return network("wide_resnet", norm, input_shape, classes, shape)
