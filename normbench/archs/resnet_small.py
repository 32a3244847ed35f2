"""Residual networks for small images."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normbench.archs.options import not_too_deep, one_of
from normbench.errors import UserError
from normbench.initializers import LecunNormal
from normbench.norms.norm import Norm

PADDINGS = ("same", "symmetric")
SHORTCUTS = ("projection", "zeros")


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int,
    width: int,
    padding: str = "same",
    shortcut: str = "projection",
) -> keras.Model:
    """Build a residual network for small images (He et al. 2016, section 4.2).

    A 3×3 stem, three stages of n blocks of two 3×3 convolutions with ``width``, 2·``width`` and
    4·``width`` channels, global average pooling and a linear layer. The last two stages halve the
    image.

    With "same" padding and stride 2, Keras pads an image of even size by one position less before
    it than after it, so that a 3×3 convolution is centered on the odd positions, counted from 0,
    and the parallel shortcut on the even ones. Caffe and Torch, and so the papers' code, pad both
    sides equally ("symmetric"), which centers both on the even positions.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: Number of layers with weights, 6n + 2.
        width: Channels of the first stage.
        padding: Padding of the 3×3 convolutions with stride 2: ``same`` or ``symmetric``.
        shortcut: Kind of a shortcut that changes the shape: ``projection``, a 1×1 convolution with
            normalization (option B of the paper); ``zeros``, every second position, with zeros for
            the additional channels (option A, used in the paper's networks for CIFAR-10).

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: ``depth`` is not 6n + 2, ``width`` is below 1, or a name is unknown.
    """
    if depth < 8 or depth % 6 != 2:
        raise UserError(f"arch.depth must be 6n + 2 (8, 14, 20, …), got {depth}")
    not_too_deep("depth", depth)
    if width < 1:
        raise UserError(f"arch.width must be at least 1, got {width}")
    one_of("padding", padding, PADDINGS)
    one_of("shortcut", shortcut, SHORTCUTS)
    inputs = keras.Input(input_shape, name="images")
    x = norm.conv(width, 3, place="stem", name="stem_conv")(inputs)
    x = norm(x, "stem", name="stem_norm")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            strides = 2 if stage and not block else 1
            name = f"stage{stage + 1}_block{block + 1}"
            y = _residual(norm, x, width * 2**stage, strides, padding, name)
            x = _shortcut(norm, x, width * 2**stage, strides, shortcut, name)
            x = keras.layers.Add(name=f"{name}_add")([y, x])
            x = keras.layers.ReLU(name=f"{name}_relu2")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name=f"resnet{depth}")


def _residual(norm: Norm, x: Any, filters: int, strides: int, padding: str, name: str) -> Any:
    """Apply the two 3×3 convolutions of a block (He et al. 2016, figure 2)."""
    pad = "same"
    if strides != 1 and padding == "symmetric":
        x = keras.layers.ZeroPadding2D(1, name=f"{name}_pad1")(x)
        pad = "valid"
    x = norm.conv(filters, 3, strides=strides, padding=pad, place="mid", name=f"{name}_conv1")(x)
    x = norm(x, "mid", name=f"{name}_norm1")
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    x = norm.conv(filters, 3, place="post", name=f"{name}_conv2")(x)
    return norm(x, "post", name=f"{name}_norm2")


def _shortcut(norm: Norm, x: Any, filters: int, strides: int, shortcut: str, name: str) -> Any:
    """Map the input of a block to the shape of its output, if it differs."""
    channels = x.shape[-1]
    if strides == 1 and channels == filters:
        return x
    if shortcut == "zeros":
        return ops.pad(x[:, ::strides, ::strides], [[0, 0]] * 3 + [[0, filters - channels]])
    x = norm.conv(filters, 1, strides=strides, place="shortcut", name=f"{name}_conv0")(x)
    return norm(x, "shortcut", name=f"{name}_norm0")
