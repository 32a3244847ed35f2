"""MobileNetV2."""

from __future__ import annotations

from typing import Any

import keras

from normbench.archs.options import above_zero, halved, one_of, rate
from normbench.initializers import LecunNormal, drawn_seed
from normbench.norms.norm import Norm

STEM = 32
LAST = 1280
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, blocks and stride of each stage (Sandler et al. 2018, table 2)."""
HALVINGS = {"imagenet": 5, "small": 3}
"""Number of times that the network halves the image, by stem."""


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    alpha: float,
    stem: str,
    first_expansion: bool,
    dropout: float,
) -> keras.Model:
    """Build MobileNetV2 (Sandler et al. 2018, table 2).

    A 3×3 convolution, inverted residual blocks, a 1×1 convolution to 1,280 channels, global
    average pooling, dropout, and a 1×1 convolution to the logits. A block expands with a 1×1
    convolution, filters each channel with a 3×3 depthwise one and projects with a linear 1×1; it
    adds its input if that has the output's shape. Places: ``pre``, ``mid`` and ``post`` in a block,
    ``stem`` after the first convolution, ``head`` after the last one before pooling.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        alpha: Width multiplier of all channels; applies to the last 1,280 only if above 1 (section
            6.1).
        stem: ``imagenet``: the image is halved five times, first by the stem; ``small``: neither
            the stem nor the second stage halves it.
        first_expansion: Whether the first block, whose expansion is 1, still has an expanding
            convolution, as in some public code; the paper's has none.
        dropout: Dropout rate before the last layer.

    Returns:
        A model from (N, H, W, C) to logits float32 (N, classes).

    Raises:
        UserError: ``stem`` is unknown, ``alpha`` is not positive, ``dropout`` is outside [0, 1), or
            images are too small to be halved that often.
    """
    one_of("stem", stem, HALVINGS)
    above_zero("alpha", alpha)
    rate("dropout", dropout)
    halved("mobilenet_v2", input_shape, HALVINGS[stem])
    inputs = keras.Input(input_shape, name="images")
    strides = 2 if stem == "imagenet" else 1
    x = norm.conv(rounded(STEM * alpha), 3, strides=strides, place="stem", name="stem_conv")(inputs)
    x = _normalized(norm, x, "stem", "stem")
    for stage, (expansion, channels, blocks, stage_strides) in enumerate(STAGES, start=1):
        for block in range(1, blocks + 1):
            keeps_size = block > 1 or (stem == "small" and stage == 2)
            x = _block(
                norm,
                x,
                rounded(channels * alpha),
                expansion if expansion > 1 or first_expansion else None,
                1 if keeps_size else stage_strides,
                f"stage{stage}_block{block}",
            )
    x = norm.conv(rounded(LAST * max(alpha, 1.0)), 1, place="head", name="head_conv")(x)
    x = _normalized(norm, x, "head", "head")
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=drawn_seed(), name="dropout")(x)
    x = keras.layers.Conv2D(
        classes, 1, kernel_initializer=LecunNormal(), dtype="float32", name="classifier"
    )(x)
    logits = keras.layers.Flatten(dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="mobilenet_v2")


def rounded(channels: float) -> int:
    """Round to a multiple of 8, at least 8 and never more than 10 % below ``channels``."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _block(norm: Norm, x: Any, outputs: int, expansion: int | None, strides: int, name: str) -> Any:
    """Apply an inverted residual block (figure 4d); without ``expansion``, no first convolution."""
    y = x
    if expansion is not None:
        y = norm.conv(x.shape[-1] * expansion, 1, place="pre", name=f"{name}_expand")(y)
        y = _normalized(norm, y, "pre", f"{name}_expand")
    y = norm.depthwise_conv(3, strides=strides, place="mid", name=f"{name}_depthwise")(y)
    y = _normalized(norm, y, "mid", f"{name}_depthwise")
    y = norm.conv(outputs, 1, place="post", name=f"{name}_project")(y)
    y = norm(y, "post", name=f"{name}_project_norm")
    if strides == 1 and x.shape[-1] == outputs:
        y = keras.layers.Add(name=f"{name}_add")([y, x])
    return y


def _normalized(norm: Norm, x: Any, place: str, name: str) -> Any:
    x = norm(x, place, name=f"{name}_norm")
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x)
