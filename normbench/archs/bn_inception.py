"""BN-Inception, the network that Batch Normalization was published with (Inception v2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from normbench.archs._inception import Parts, classified, pooled
from normbench.archs._options import rate
from normbench.norms.norm import Norm


class V2Module(NamedTuple):
    """Channels of one module's convolutions (Ioffe & Szegedy 2015, figure 5).

    One without a 1×1 branch and a projection halves the image.
    """

    name: str
    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int
    pooling: str
    projection: int

    @property
    def halves(self) -> bool:
        return not self.one


MODULES = (
    V2Module("3a", 64, 64, 64, 64, 96, "avg", 32),
    V2Module("3b", 64, 64, 96, 64, 96, "avg", 64),
    V2Module("3c", 0, 128, 160, 64, 96, "max", 0),
    V2Module("4a", 224, 64, 96, 96, 128, "avg", 128),
    V2Module("4b", 192, 96, 128, 96, 128, "avg", 128),
    V2Module("4c", 160, 128, 160, 128, 160, "avg", 128),
    V2Module("4d", 96, 128, 192, 160, 192, "avg", 128),
    V2Module("4e", 0, 128, 192, 192, 256, "max", 0),
    V2Module("5a", 352, 192, 320, 160, 224, "avg", 128),
    V2Module("5b", 352, 192, 320, 192, 224, "max", 128),
)
V2_AUXILIARY = ("4a", "4d")
"""Modules that an auxiliary classifier sits on."""


def build_bn_inception(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: str,
    separable: bool,
    width: float,
    activation: str,
    lrn: bool,
    dropout: float,
    auxiliary_weight: float,
    auxiliary_dropout: float,
) -> keras.Model:
    """Build BN-Inception (Ioffe & Szegedy 2015, figure 5), also known as Inception v2.

    A stem and ten modules, the third and the eighth of which halve the image, global average
    pooling, dropout and a linear layer. A module concatenates a 1×1 convolution, a 1×1 reduction
    with a 3×3, one with two 3×3 (in place of :mod:`GoogLeNet's <normbench.archs.googlenet>` 5×5),
    and 3×3 pooling with a 1×1 projection; a halving one has neither the 1×1 convolution nor the
    projection. Every convolution is followed by normalization and the nonlinearity.

    With BN the table gives 11,285,224 trained parameters at 1,000 classes; with a bias in each
    convolution besides they are the 11,295,240 of the BN-Inception that is publicly shared. The
    paper says 13.6 M, and nothing in its figure accounts for the rest.

    Places: ``stem``; in a module ``pre`` after the reductions, ``mid`` after the 3×3 convolutions,
    ``post`` after the 1×1 convolutions that are output directly and the projections; ``head`` in
    the auxiliary classifiers.

    Args:
        norm: Makes normalizations, convolutions and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        stem: "imagenet", the paper's, for images of about 224×224; for about 32×32, "small", with
            3×3 and no pooling, or "pooled", with one pooling and a quarter of the work.
        separable: Whether the first convolution is depthwise, to 8 times the channels, and 1×1,
            as in the paper.
        width: Factor of all channels, which are rounded to multiples of 8.
        activation: "relu", or "sigmoid" as in the paper's BN-x5-Sigmoid.
        lrn: Whether to have Local Response Normalization at GoogLeNet's two places in the stem, as
            the paper's networks without BN.
        dropout: Rate before the linear layer; 0 in the paper's accelerated networks.
        auxiliary_weight: Weight in the loss of each of two auxiliary classifiers; 0 for none.
        auxiliary_dropout: Rate in these.

    Returns:
        A model from (N, H, W, C) to logits (N, classes), or to a list of these and of the
        auxiliary classifiers'.

    Raises:
        UserError: An unknown ``stem`` or ``activation``, a number out of range, or images too
            small.
    """
    parts = Parts("bn_inception", norm, activation, width)
    parts.check(input_shape, stem, auxiliary_weight)
    rate("dropout", dropout)
    rate("auxiliary_dropout", auxiliary_dropout)
    inputs = keras.Input(input_shape, name="images")
    x = parts.stem(inputs, stem, lrn, separable)
    auxiliary = []
    for module in MODULES:
        x = _v2_module(parts, x, module)
        if auxiliary_weight and module.name in V2_AUXILIARY:
            name = f"auxiliary{len(auxiliary) + 1}"
            auxiliary.append(parts.auxiliary(x, classes, auxiliary_dropout, name))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = classified(x, classes, dropout)
    return keras.Model(inputs, [logits, *auxiliary] if auxiliary else logits, name="bn_inception")


def _v2_module(parts: Parts, x: Any, module: V2Module) -> Any:
    name = f"inception{module.name}"
    strides = 2 if module.halves else 1
    three = [(module.three_reduce, 1, "pre"), (module.three, 3, "mid")]
    double = [
        (module.double_reduce, 1, "pre"),
        (module.double, 3, "mid"),
        (module.double, 3, "mid"),
    ]
    pool = pooled(x, module.pooling, f"{name}_pool", strides)
    branches = [
        parts.chain(x, three, f"{name}_three", strides),
        parts.chain(x, double, f"{name}_double", strides),
    ]
    if module.halves:
        branches.append(pool)
    else:
        branches.insert(0, parts.unit(x, module.one, 1, "post", f"{name}_one"))
        branches.append(parts.unit(pool, module.projection, 1, "post", f"{name}_projection"))
    return keras.layers.Concatenate(name=name)(branches)
