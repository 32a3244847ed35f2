"""Residual networks for small images."""

from __future__ import annotations

from typing import Any

import keras

from normbench.archs.options import not_too_deep
from normbench.errors import UserError
from normbench.initializers import LecunNormal
from normbench.norms.norm import Norm


def build(
    norm: Norm, input_shape: tuple[int, int, int], classes: int, *, depth: int, width: int
) -> keras.Model:
    """Build a residual network for small images (He et al. 2016, section 4.2).

    A 3×3 stem, three stages of n blocks of two 3×3 convolutions, ``width``, 2·``width`` and
    4·``width`` channels, the last two stages halving the image, global average pooling and a
    linear layer. A shortcut that changes the shape is a 1×1 convolution with normalization
    (option B of the paper; its CIFAR networks pad with zeros instead, which has 2,560 parameters
    less at width 16).

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: Layers with weights, 6n + 2.
        width: Channels of the first stage.

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: A ``depth`` that is not 6n + 2, or a ``width`` below 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise UserError(f"arch.depth must be 6n + 2 (8, 14, 20, …), got {depth}")
    not_too_deep("depth", depth)
    if width < 1:
        raise UserError(f"arch.width must be at least 1, got {width}")
    inputs = keras.Input(input_shape, name="images")
    x = norm.conv(width, 3, place="stem", name="stem_conv")(inputs)
    x = norm(x, "stem", name="stem_norm")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            strides = 2 if stage and not block else 1
            x = _block(norm, x, width * 2**stage, strides, f"stage{stage + 1}_block{block + 1}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name=f"resnet{depth}")


def _block(norm: Norm, x: Any, filters: int, strides: int, name: str) -> Any:
    """Apply two 3×3 convolutions and a shortcut (He et al. 2016, figure 2)."""
    y = norm.conv(filters, 3, strides=strides, place="mid", name=f"{name}_conv1")(x)
    y = norm(y, "mid", name=f"{name}_norm1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = norm.conv(filters, 3, place="post", name=f"{name}_conv2")(y)
    y = norm(y, "post", name=f"{name}_norm2")
    if strides != 1 or x.shape[-1] != filters:
        x = norm.conv(filters, 1, strides=strides, place="shortcut", name=f"{name}_conv0")(x)
        x = norm(x, "shortcut", name=f"{name}_norm0")
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu2")(y)
