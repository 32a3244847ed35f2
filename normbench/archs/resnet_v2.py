"""Pre-activation residual networks for small images: ResNet v2 and wide ResNets."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from normbench.archs.options import at_least, halved, not_too_deep, one_of, rate
from normbench.errors import UserError
from normbench.initializers import LecunNormal, drawn_seed
from normbench.norms.norm import Norm

STAGES = 3
EXPANSION = 4
"""Ratio of a bottleneck's output channels to its inner channels."""
LAYERS = {"basic": 6, "bottleneck": 9}
"""Layers with weights of one block in each of the three stages."""
WIDE_STEM = 16
"""Channels of a wide network's first convolution, and of its first stage at a factor of 1."""


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

    Three stages of n blocks, which normalize and rectify before each convolution, so that the
    residual sum passes unchanged through the network. As in the authors' code, the first 1×1
    convolution of a bottleneck halves the image. For the places of normalizations see
    :func:`normbench.archs.resnet_v2.network`.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: Number of layers with weights: 9n + 2 for bottlenecks (164, 1001 in the paper),
            6n + 2 for basic blocks (110).
        block: ``bottleneck``: 1×1, 3×3 and 1×1; ``basic``: two 3×3.
        width: Channels of the first convolution, and of a 3×3 convolution in the first stage.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: ``depth`` is not 9n + 2 or 6n + 2, ``block`` is unknown, ``width`` is below 1, or
            images are smaller than 3×3.
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
    For the places of normalizations see :func:`normbench.archs.resnet_v2.network`.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: d = 6n + 4, the number of convolutions, including those of the three shortcuts.
        widening: k.
        dropout: Dropout rate between the two convolutions of a block (figure 1d); 0.3 on CIFAR in
            the paper.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: ``depth`` is not 6n + 4, ``widening`` is below 1, ``dropout`` is outside [0, 1),
            or images are smaller than 3×3.
    """
    if depth < 10 or depth % 6 != 4:
        raise UserError(f"arch.depth must be 6n + 4 (10, 16, 22, 28, …), got {depth}")
    not_too_deep("depth", depth)
    at_least("widening", widening, 1)
    rate("dropout", dropout)
    shape = Shape((depth - 4) // 6, WIDE_STEM, WIDE_STEM * widening, False, dropout)
    return network("wide_resnet", norm, input_shape, classes, shape)


class Shape(NamedTuple):
    """The dimensions of a network.

    Attributes:
        blocks: Number of blocks in each of the three stages.
        stem: Channels of the first convolution.
        width: Inner channels of the first stage; each further stage doubles them.
        bottleneck: Whether a block is 1×1, 3×3 and 1×1 instead of two 3×3.
        dropout: Dropout rate before a block's second convolution.
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

    A 3×3 convolution, three stages, of which the second and third halve the image, normalization
    and ReLU, global average pooling, and a linear layer. A shortcut that changes the shape is a 1×1
    convolution of the block's normalized and rectified input, without normalization after it.

    A normalization's place is determined by the layer it follows. A block's first normalization
    follows the previous block's last convolution and addition, ``post``, or in the first block the
    stem's convolution, ``stem``. A normalization after a bottleneck's first 1×1 is ``pre``, one
    after a 3×3 within a block ``mid``, and the one after all blocks ``head``.

    Args:
        arch: The network's name.
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        shape: The network's dimensions.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: Images are too small to be halved that often.
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
    """Apply convolutions, each after normalization and ReLU, and add a shortcut around them."""
    before, after = places
    outputs = inner * EXPANSION if shape.bottleneck else inner
    y = norm(x, before, name=f"{name}_norm1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    if strides != 1 or x.shape[-1] != outputs:
        # No bias, because the other branch has one wherever no normalization follows.
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
