"""Residual networks with four stages, for ImageNet and for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from normbench.archs.options import at_least, halved, not_too_deep, one_of, rate
from normbench.errors import UserError
from normbench.initializers import HeNormal, LecunNormal, drawn_seed
from normbench.norms.norm import Norm

EXPANSION = 4
"""Ratio of a bottleneck's output channels to its stage's width (He et al. 2016, table 1)."""


class _Block(NamedTuple):
    """The dimensions of the blocks of one stage."""

    outputs: int
    inner: int
    groups: int
    bottleneck: bool
    stride_at: str


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    blocks: Sequence[int],
    block: str,
    width: int,
    cardinality: int,
    group_width: int | None,
    stem: str,
    stride_at: str,
    head: str,
    dropout: float,
) -> keras.Model:
    """Build a residual network (He et al. 2016, table 1) or a ResNeXt (Xie et al. 2017, table 1).

    A stem, stages of residual blocks and a linear layer. Each stage after the first halves the
    image and doubles the channels. A shortcut that changes the shape is a 1×1 convolution with
    normalization (option B of the paper). A block's last γ is not initialized to zero, but as the
    normalization does it: to 1 for all built-in ones.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        blocks: Number of blocks in each stage, [3, 4, 6, 3] for ResNet-50.
        block: ``basic``, two 3×3 convolutions, or ``bottleneck``, 1×1, 3×3 and 1×1.
        width: Channels of the first stage; bottlenecks output four times as many.
        cardinality: Groups of a bottleneck's 3×3 convolution (ResNeXt); 1 for none.
        group_width: Channels of one such group in the first stage; None for width / cardinality.
        stem: ``imagenet``: 7×7 /2 and max pooling 3×3 /2; ``small``: 3×3, no pooling; ``padded``:
            like ``imagenet``, but on images zero-padded by 3 on each side, with no other padding.
        stride_at: The convolution of a bottleneck that halves the image: ``1x1``, the first, as in
            the paper, or ``3x3``, the middle one (Gross & Wilber 2016; "ResNet v1.5").
        head: ``average``: global average pooling and a linear layer; ``flatten``: 2×2 average
            pooling, flattening, and a linear layer initialized as in He et al. 2015.
        dropout: Dropout rate after pooling.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: An option is out of range, or images are too small to be halved that often.
    """
    _check(blocks, block, width, cardinality, group_width, stem, stride_at, head, dropout)
    arch = "resnext" if cardinality > 1 else "resnet"
    halved(arch, input_shape, len(blocks) - 1 + (0 if stem == "small" else 2))
    inner = width if group_width is None else cardinality * group_width
    bottleneck = block == "bottleneck"
    inputs = keras.Input(input_shape, name="images")
    x = _stem(norm, inputs, width, stem)
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage * (EXPANSION if bottleneck else 1)
        kind = _Block(outputs, inner * 2**stage, cardinality, bottleneck, stride_at)
        for index in range(count):
            strides = 2 if stage and not index else 1
            x = _residual(norm, x, kind, strides, f"stage{stage + 1}_block{index + 1}")
    logits = _head(x, classes, head, dropout)
    return keras.Model(inputs, logits, name=arch)


def _check(
    blocks: Sequence[int],
    block: str,
    width: int,
    cardinality: int,
    group_width: int | None,
    stem: str,
    stride_at: str,
    head: str,
    dropout: float,
) -> None:
    """Refuse options that are out of range."""
    one_of("block", block, ("basic", "bottleneck"))
    one_of("stem", stem, ("imagenet", "padded", "small"))
    one_of("stride_at", stride_at, ("1x1", "3x3"))
    one_of("head", head, ("average", "flatten"))
    if not blocks or min(blocks) < 1:
        raise UserError(
            f"arch.blocks must name at least one block for each stage, got {list(blocks)}"
        )
    not_too_deep("blocks", sum(blocks) * (3 if block == "bottleneck" else 2))
    at_least("width", width, 1)
    at_least("cardinality", cardinality, 1)
    if block == "basic" and (cardinality > 1 or group_width is not None):
        raise UserError("arch.cardinality and arch.group_width are for arch.block=bottleneck")
    if group_width is None and width % cardinality:
        raise UserError(
            f"arch.cardinality={cardinality} does not divide arch.width={width}: "
            "choose another or give arch.group_width"
        )
    if group_width is not None:
        at_least("group_width", group_width, 1)
    rate("dropout", dropout)


def _stem(norm: Norm, x: Any, width: int, stem: str) -> Any:
    padding = "valid" if stem == "padded" else "same"
    if stem == "padded":
        x = keras.layers.ZeroPadding2D(3, name="stem_pad")(x)
    kernel, strides = (3, 1) if stem == "small" else (7, 2)
    x = norm.conv(width, kernel, strides=strides, padding=padding, place="stem", name="stem_conv")(
        x
    )
    x = norm(x, "stem", name="stem_norm")
    x = keras.layers.ReLU(name="stem_relu")(x)
    if stem != "small":
        x = keras.layers.MaxPooling2D(3, 2, padding=padding, name="stem_pool")(x)
    return x


def _residual(norm: Norm, x: Any, kind: _Block, strides: int, name: str) -> Any:
    """Apply a block and its shortcut (He et al. 2016, figure 5; Xie et al. 2017, figure 3c)."""
    y = (_bottleneck if kind.bottleneck else _basic)(norm, x, kind, strides, name)
    if strides != 1 or x.shape[-1] != kind.outputs:
        x = norm.conv(kind.outputs, 1, strides=strides, place="shortcut", name=f"{name}_conv0")(x)
        x = norm(x, "shortcut", name=f"{name}_norm0")
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu")(y)


def _basic(norm: Norm, x: Any, kind: _Block, strides: int, name: str) -> Any:
    y = norm.conv(kind.outputs, 3, strides=strides, place="mid", name=f"{name}_conv1")(x)
    y = norm(y, "mid", name=f"{name}_norm1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = norm.conv(kind.outputs, 3, place="post", name=f"{name}_conv2")(y)
    return norm(y, "post", name=f"{name}_norm2")


def _bottleneck(norm: Norm, x: Any, kind: _Block, strides: int, name: str) -> Any:
    first, second = (strides, 1) if kind.stride_at == "1x1" else (1, strides)
    y = norm.conv(kind.inner, 1, strides=first, place="pre", name=f"{name}_conv1")(x)
    y = norm(y, "pre", name=f"{name}_norm1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = norm.conv(
        kind.inner, 3, strides=second, groups=kind.groups, place="mid", name=f"{name}_conv2"
    )(y)
    y = norm(y, "mid", name=f"{name}_norm2")
    y = keras.layers.ReLU(name=f"{name}_relu2")(y)
    y = norm.conv(kind.outputs, 1, place="post", name=f"{name}_conv3")(y)
    return norm(y, "post", name=f"{name}_norm3")


def _head(x: Any, classes: int, head: str, dropout: float) -> Any:
    if head == "flatten":
        x = keras.layers.AveragePooling2D(2, padding="same", name="pool")(x)
        x = keras.layers.Flatten(name="flatten")(x)
    else:
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=drawn_seed(), name="dropout")(x)
    initializer = HeNormal() if head == "flatten" else LecunNormal()
    return keras.layers.Dense(
        classes, kernel_initializer=initializer, dtype="float32", name="logits"
    )(x)
