"""GoogLeNet, the first Inception network."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from normbench.archs._inception import Parts, classified, pooled
from normbench.archs._options import rate
from normbench.norms.norm import Norm


class V1Module(NamedTuple):
    """Channels of one module's convolutions (Szegedy et al. 2015, table 1)."""

    name: str
    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int


STAGES = (
    (
        V1Module("3a", 64, 96, 128, 16, 32, 32),
        V1Module("3b", 128, 128, 192, 32, 96, 64),
    ),
    (
        V1Module("4a", 192, 96, 208, 16, 48, 64),
        V1Module("4b", 160, 112, 224, 24, 64, 64),
        V1Module("4c", 128, 128, 256, 24, 64, 64),
        V1Module("4d", 112, 144, 288, 32, 64, 64),
        V1Module("4e", 256, 160, 320, 32, 128, 128),
    ),
    (
        V1Module("5a", 256, 160, 320, 32, 128, 128),
        V1Module("5b", 384, 192, 384, 48, 128, 128),
    ),
)
V1_AUXILIARY = ("4a", "4d")
"""Modules that an auxiliary classifier sits on."""


def build_googlenet(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: str,
    separable: bool,
    width: float,
    lrn: bool,
    dropout: float,
    auxiliary_weight: float,
    auxiliary_dropout: float,
) -> keras.Model:
    """Build GoogLeNet (Szegedy et al. 2015, table 1), the first Inception network.

    A stem, two, five and two modules, 3×3 max pooling of stride 2 between these stages, global
    average pooling, dropout and a linear layer. A module concatenates a 1×1 convolution, a 1×1
    reduction with a 3×3, one with a 5×5, and 3×3 max pooling with a 1×1 projection, each
    convolution with a ReLU. With ``lrn`` and no normalization it is the published network.

    Places: ``stem``; in a module ``pre`` after the reductions, ``mid`` after the 3×3 and the 5×5,
    ``post`` after the 1×1 convolutions that are output directly and the projections; ``head`` in
    the auxiliary classifiers.

    Args:
        norm: Makes normalizations, convolutions and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        stem: "imagenet", the paper's, for images of about 224×224; for about 32×32, "small", with
            3×3 and no pooling, or "pooled", with one pooling and a quarter of the work.
        separable: Whether the first convolution is depthwise, to 8 times the channels, and 1×1: the
            paper does not say so, but its counts for that layer (2.7 K, 34 M) are those.
        width: Factor of all channels, which are rounded to multiples of 8.
        lrn: Whether to have Local Response Normalization at the paper's two places in the stem.
        dropout: Rate before the linear layer; 0.4 in the paper.
        auxiliary_weight: Weight in the loss of each of two auxiliary classifiers, 0.3 in the
            paper; 0 for none.
        auxiliary_dropout: Rate in these; 0.7 in the paper.

    Returns:
        A model from (N, H, W, C) to logits (N, classes), or to a list of these and of the
        auxiliary classifiers'.

    Raises:
        UserError: An unknown ``stem``, a number out of range, or images too small.
    """
    parts = Parts("googlenet", norm, "relu", width)
    parts.check(input_shape, stem, auxiliary_weight)
    rate("dropout", dropout)
    rate("auxiliary_dropout", auxiliary_dropout)
    inputs = keras.Input(input_shape, name="images")
    x = parts.stem(inputs, stem, lrn, separable)
    auxiliary = []
    for index, stage in enumerate(STAGES):
        if index:
            x = pooled(x, "max", f"pool{index + 2}", 2)
        for module in stage:
            x = _v1_module(parts, x, module)
            if auxiliary_weight and module.name in V1_AUXILIARY:
                name = f"auxiliary{len(auxiliary) + 1}"
                auxiliary.append(parts.auxiliary(x, classes, auxiliary_dropout, name))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = classified(x, classes, dropout)
    return keras.Model(inputs, [logits, *auxiliary] if auxiliary else logits, name="googlenet")


def _v1_module(parts: Parts, x: Any, module: V1Module) -> Any:
    """One module (figure 2b of the paper)."""
    name = f"inception{module.name}"
    three = [(module.three_reduce, 1, "pre"), (module.three, 3, "mid")]
    five = [(module.five_reduce, 1, "pre"), (module.five, 5, "mid")]
    pool = pooled(x, "max", f"{name}_pool")
    branches = [
        parts.unit(x, module.one, 1, "post", f"{name}_one"),
        parts.chain(x, three, f"{name}_three"),
        parts.chain(x, five, f"{name}_five"),
        parts.unit(pool, module.pool, 1, "post", f"{name}_projection"),
    ]
    return keras.layers.Concatenate(name=name)(branches)
