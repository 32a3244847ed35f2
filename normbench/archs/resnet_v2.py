"""Pre-activation residual networks for small images."""

from __future__ import annotations

import keras

from normbench.archs._options import at_least, not_too_deep, one_of
from normbench.archs._preactivation import Shape, network
from normbench.errors import UserError
from normbench.norms.norm import Norm

LAYERS = {"basic": 6, "bottleneck": 9}
"""Layers with weights that one block in each of the three stages has."""


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int,
    block: str,
    width: int,
) -> keras.Model:
    """Build a pre-activation residual network for small images (He et al. 2016b, section 3).

    Three stages of n blocks, each of which normalizes and rectifies before each convolution, so
    that what is added up passes through the whole network untouched. As in the authors' code, the
    first 1×1 convolution of a bottleneck halves the image. For the places of its normalizations see
    :func:`normbench.archs._preactivation.network`.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: Layers with weights: 9n + 2 for bottlenecks (164, 1001 in the paper), 6n + 2 for
            basic blocks (110).
        block: ``bottleneck``: 1×1, 3×3 and 1×1; ``basic``: two 3×3.
        width: Channels of the first convolution, and of a 3×3 convolution in the first stage.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: A ``depth`` that is not 9n + 2 or 6n + 2, an unknown ``block``, a ``width``
            below 1, or images below 3×3.
    """
    one_of("block", block, LAYERS)
    at_least("width", width, 1)
    layers = LAYERS[block]
    if depth < layers + 2 or depth % layers != 2:
        raise UserError(
            f"arch.depth must be {layers}n + 2 ({layers + 2}, {2 * layers + 2}, "
            f"{3 * layers + 2}, …) for arch.block={block}, got {depth}"
        )
    not_too_deep("depth", depth)
    shape = Shape((depth - 2) // layers, width, width, block == "bottleneck", 0.0)
    return network("resnet_v2", norm, input_shape, classes, shape)
