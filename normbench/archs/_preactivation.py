"""Networks for small images whose blocks normalize and rectify before they convolve."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from normbench.archs._options import halved
from normbench.initializers import LecunNormal, drawn_seed
from normbench.norms.norm import Norm

STAGES = 3
EXPANSION = 4
"""Output channels of a bottleneck over its inner ones."""


class Shape(NamedTuple):
    """What a network is made of.

    Attributes:
        blocks: In each of the three stages.
        stem: Channels of the first convolution.
        width: Inner channels of the first stage; each next stage doubles them.
        bottleneck: Whether a block is 1×1, 3×3 and 1×1 instead of two 3×3.
        dropout: Rate before a block's last 3×3 convolution.
    """

    blocks: int
    stem: int
    width: int
    bottleneck: bool
    dropout: float


def network(
    arch: str, norm: Norm, input_shape: tuple[int, int, int], classes: int, shape: Shape
) -> keras.Model:
    """Build a pre-activation residual network (He et al. 2016b, figure 4e) of three stages.

    A 3×3 convolution, the stages, of which the second and third halve the image, normalization
    and ReLU, global average pooling, a linear layer. A shortcut that changes the shape is a 1×1
    convolution of what the block has normalized and rectified; nothing normalizes after it.

    A place is what a normalization comes after. A block's first one comes after the last
    convolution of the block before it, and the addition: ``post``; in the first block, after the
    first convolution: ``stem``. What follows a bottleneck's 1×1 is ``pre``, a 3×3 within a block
    ``mid``; the one after all blocks is ``head``.

    Args:
        arch: The network's name.
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        shape: What it is made of.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: Images so small that a halving would leave them as they are.
    """
    halved(arch, input_shape, STAGES - 1)
    inputs = keras.Input(input_shape, name="images")
    x = norm.conv(shape.stem, 3, place="stem", name="stem_conv")(inputs)
    before = "stem"
    for stage in range(STAGES):
        for index in range(shape.blocks):
            last = (stage, index) == (STAGES - 1, shape.blocks - 1)
            after = "head" if last else "post"
            strides = 2 if stage and not index else 1
            name = f"stage{stage + 1}_block{index + 1}"
            x = _block(norm, x, shape, shape.width * 2**stage, strides, (before, after), name)
            before = after
    x = norm(x, "head", name="head_norm")
    x = keras.layers.ReLU(name="head_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name=arch)


def _block(
    norm: Norm,
    x: Any,
    shape: Shape,
    inner: int,
    strides: int,
    places: tuple[str, str],
    name: str,
) -> Any:
    """Convolutions, each after normalization and ReLU, and a shortcut around them."""
    before, after = places
    outputs = inner * EXPANSION if shape.bottleneck else inner
    y = norm(x, before, name=f"{name}_norm1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    if strides != 1 or x.shape[-1] != outputs:
        # The sum has the bias of the other branch, where nothing normalizes it.
        x = norm.conv(
            outputs, 1, strides=strides, place=after, use_bias=False, name=f"{name}_conv0"
        )(y)
    if shape.bottleneck:
        convolutions = ((inner, 1, strides, "pre"), (inner, 3, 1, "mid"), (outputs, 1, 1, after))
    else:
        convolutions = ((outputs, 3, strides, "mid"), (outputs, 3, 1, after))
    for number, (filters, size, step, place) in enumerate(convolutions, start=1):
        if number > 1:
            y = norm(y, convolutions[number - 2][3], name=f"{name}_norm{number}")
            y = keras.layers.ReLU(name=f"{name}_relu{number}")(y)
        if number == 2 and shape.dropout:
            y = keras.layers.Dropout(shape.dropout, seed=drawn_seed(), name=f"{name}_dropout")(y)
        y = norm.conv(filters, size, strides=step, place=place, name=f"{name}_conv{number}")(y)
    return keras.layers.Add(name=f"{name}_add")([y, x])
