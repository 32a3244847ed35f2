"""A convolutional encoder whose embedding can have its own normalization."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from normbench.archs.options import at_least, halved, one_of
from normbench.errors import UserError
from normbench.initializers import LecunNormal
from normbench.norms.norm import Norm

HEADS = ("flatten", "global_max", "global_average")


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    widths: Sequence[int],
    halvings: int,
    embedding: int,
    embedding_kernel: int,
    head: str,
) -> keras.Model:
    """Build the encoder from an online question about min-max normalization of an embedding.

    Stages of two 3×3 convolutions and, in the first ``halvings`` stages, a third one of stride 2,
    each with normalization and ReLU; then the embedding, a valid convolution followed only by the
    normalization of place ``head``; then a head. Places: ``stem`` after the first convolution,
    ``mid`` after the others, ``head`` on the embedding.

    The original has widths 8, 32, 32, 64, 64, 128, halves after all but the last stage, and embeds
    with a 16×16 convolution to 128 channels, which reduces 512×512 images to one position. It ends
    there; the heads are those of the Keras versions in the answers.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        widths: Channels of each stage.
        halvings: Number of stages that end in a convolution of stride 2, which halves the image.
        embedding: Channels of the embedding.
        embedding_kernel: Height and width of the convolution that computes it.
        head: Reduction of the embedding's positions to a vector: flatten, global_max or
            global_average; equivalent if there is one position.

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: ``head`` is unknown, there are more ``halvings`` than stages or than the image
            allows, ``embedding_kernel`` is larger than the remaining image, or a width is below 1.
    """
    one_of("head", head, HEADS)
    at_least("embedding", embedding, 1)
    at_least("embedding_kernel", embedding_kernel, 1)
    if not widths or min(widths) < 1:
        raise UserError(f"arch.widths must hold whole numbers of at least 1, got {list(widths)}")
    if not 0 <= halvings <= len(widths):
        raise UserError(
            f"arch.halvings must be in 0..{len(widths)}, the number of stages, got {halvings}"
        )
    size = halved("conv_encoder", input_shape, halvings)
    if embedding_kernel > min(size):
        raise UserError(
            f"arch.embedding_kernel={embedding_kernel} does not fit the {size[0]}×{size[1]} that "
            f"{halvings} halvings leave of {input_shape[0]}×{input_shape[1]} "
            f"(allowed: 1..{min(size)}; lower arch.halvings for more)"
        )
    inputs = keras.Input(input_shape, name="images")
    x = inputs
    for stage, width in enumerate(widths, start=1):
        for index in (1, 2, 3) if stage <= halvings else (1, 2):
            place = "stem" if stage == index == 1 else "mid"
            name = f"stage{stage}_{{}}{index}"
            x = norm.conv(
                width, 3, strides=2 if index == 3 else 1, place=place, name=name.format("conv")
            )(x)
            x = norm(x, place, name=name.format("norm"))
            x = keras.layers.ReLU(name=name.format("relu"))(x)
    x = norm.conv(
        embedding, embedding_kernel, padding="valid", place="head", name="embedding_conv"
    )(x)
    x = norm(x, "head", name="embedding_norm")
    if head == "global_max":
        x = keras.layers.GlobalMaxPooling2D(name="pool")(x)
    elif head == "global_average":
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    else:
        x = keras.layers.Flatten(name="flatten")(x)
    logits = keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name="conv_encoder")
