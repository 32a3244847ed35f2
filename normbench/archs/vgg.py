"""VGG networks."""

from __future__ import annotations

import keras

from normbench.archs.options import at_least, halved, one_of, rate
from normbench.errors import UserError
from normbench.initializers import LecunNormal, drawn_seed
from normbench.norms.norm import Norm

STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""3×3 convolutions of each stage, by depth (Simonyan & Zisserman 2015, table 1: A, B, D, E)."""


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int,
    width: int,
    head: str,
    units: int,
    dropout: float,
) -> keras.Model:
    """Build a VGG network (Simonyan & Zisserman 2015).

    Five stages of 3×3 convolutions with ``width`` times 1, 2, 4, 8 and 8 channels, each followed by
    2×2 max pooling (a last odd row or column is pooled alone), and either the paper's head of two
    fully connected layers or the usual head for small images, global average pooling. Places:
    ``stem`` after the first convolution, ``mid`` after the others, ``head`` in the fully connected
    layers. The paper has no normalization.

    Args:
        norm: Makes normalizations, convolutions and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        depth: Number of layers with weights, including the full head: 11, 13, 16 or 19.
        width: Channels of the first stage; 64 in the paper.
        head: "full" or "small".
        units: Units in each fully connected layer of the full head; 4,096 in the paper.
        dropout: Dropout rate after each of these layers, or after global pooling; 0.5 in the paper.

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: ``depth`` or ``head`` is unknown, ``width`` or ``units`` is below 1, ``dropout``
            is outside [0, 1), or images are smaller than 17×17.
    """
    if depth not in STAGES:
        raise UserError(f"arch.depth must be one of {', '.join(map(str, STAGES))}, got {depth}")
    one_of("head", head, ("full", "small"))
    at_least("width", width, 1)
    at_least("units", units, 1)
    rate("dropout", dropout)
    halved(f"vgg{depth}", input_shape, len(STAGES[depth]))
    inputs = keras.Input(input_shape, name="images")
    x = inputs
    for stage, count in enumerate(STAGES[depth], start=1):
        filters = width * min(2 ** (stage - 1), 8)
        for index in range(1, count + 1):
            place = "stem" if stage == index == 1 else "mid"
            name = f"stage{stage}_{{}}{index}"
            x = norm.conv(filters, 3, place=place, name=name.format("conv"))(x)
            x = norm(x, place, name=name.format("norm"))
            x = keras.layers.ReLU(name=name.format("relu"))(x)
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"stage{stage}_pool")(x)
    if head == "full":
        x = keras.layers.Flatten(name="flatten")(x)
        for index in (1, 2):
            x = norm.dense(units, place="head", name=f"dense{index}")(x)
            x = norm(x, "head", name=f"dense{index}_norm")
            x = keras.layers.ReLU(name=f"dense{index}_relu")(x)
            if dropout:
                x = keras.layers.Dropout(dropout, seed=drawn_seed(), name=f"dropout{index}")(x)
    else:
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=drawn_seed(), name="dropout")(x)
    logits = keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name=f"vgg{depth}")
