"""Inception networks: :func:`build_googlenet` and :func:`build_bn_inception`.

BN-Inception, or Inception v2, is the network that Batch Normalization was published with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras

from normbench.archs.options import above_zero, halved, one_of, rate, scaled
from normbench.errors import UserError
from normbench.initializers import HeNormal, LecunNormal, drawn_seed
from normbench.norms.local_response import LocalResponseNormalization
from normbench.norms.norm import Norm

HALVINGS = {"imagenet": 3, "pooled": 1, "small": 0}
"""Number of times that each stem halves the image; the stages after it halve it twice more."""

AUXILIARY = ("4a", "4d")
"""Modules followed by an auxiliary classifier, in both networks."""
_POOLED = 5
"""Height and width that an auxiliary classifier averages over (Szegedy et al. 2015, section 5)."""


@dataclass(frozen=True)
class Builder:
    """Builds an Inception network from units, a stem, modules and auxiliary classifiers.

    Args:
        arch: The network's name, for messages.
        norm: Makes normalizations, convolutions and fully connected layers.
        activation: Name of the nonlinearity.
        width: Factor of all channels.
    """

    arch: str
    norm: Norm
    activation: str
    width: float

    def network(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        stages: Sequence[Sequence[Any]],
        apply_module: Callable[[Builder, Any, Any], Any],
        *,
        stem: str,
        separable: bool,
        lrn: bool,
        dropout: float,
        auxiliary_weight: float,
        auxiliary_dropout: float,
    ) -> keras.Model:
        """Build the network: stem, modules with auxiliary classifiers, pooling, classifier.

        Args:
            input_shape: (H, W, C).
            classes: Number of logits.
            stages: The modules of each stage, each with a ``name``; the image is halved between
                stages.
            apply_module: Applies a module: ``apply_module(builder, x, module)``.
            stem, separable, lrn: As for :meth:`stem`.
            dropout: Dropout rate before the classifier.
            auxiliary_weight: 0 for no auxiliary classifiers.
            auxiliary_dropout: Dropout rate in the auxiliary classifiers.

        Returns:
            A model from (N, H, W, C) to logits (N, classes), or to a list of these and the
            auxiliary classifiers' logits.
        """
        self.check(input_shape, stem, auxiliary_weight)
        rate("dropout", dropout)
        rate("auxiliary_dropout", auxiliary_dropout)
        inputs = keras.Input(input_shape, name="images")
        x = self.stem(inputs, stem, lrn, separable)
        auxiliary = []
        for index, stage in enumerate(stages):
            if index:
                x = pooled(x, "max", f"pool{index + 2}", 2)
            for module in stage:
                x = apply_module(self, x, module)
                if auxiliary_weight and module.name in AUXILIARY:
                    name = f"auxiliary{len(auxiliary) + 1}"
                    auxiliary.append(self.auxiliary(x, classes, auxiliary_dropout, name))
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        logits = classified(x, classes, dropout)
        return keras.Model(inputs, [logits, *auxiliary] if auxiliary else logits, name=self.arch)

    def check(self, input_shape: tuple[int, int, int], stem: str, auxiliary_weight: float) -> None:
        """Refuse options and images that the network does not support.

        Raises:
            UserError: ``stem`` or the activation is unknown, the width is not positive,
                ``auxiliary_weight`` is negative, or images are too small for the network or its
                auxiliary classifiers.
        """
        one_of("stem", stem, HALVINGS)
        one_of("activation", self.activation, ("relu", "sigmoid"))
        above_zero("width", self.width)
        if not auxiliary_weight >= 0:
            raise UserError(f"arch.auxiliary_weight must be 0 or more, got {auxiliary_weight}")
        halved(self.arch, input_shape, HALVINGS[stem] + 2)
        size = halved(self.arch, input_shape, HALVINGS[stem] + 1)
        if auxiliary_weight and min(size) < _POOLED:
            other = "" if stem == "small" else " or arch.stem=small"
            raise UserError(
                f"arch={self.arch} averages {_POOLED}×{_POOLED} positions in its auxiliary "
                f"classifiers, where {input_shape[0]}×{input_shape[1]} images have "
                f"{size[0]}×{size[1]}: use arch.auxiliary_weight=0{other}"
            )

    def unit(
        self, x: Any, filters: int, kernel_size: int, place: str, name: str, strides: int = 1
    ) -> Any:
        """Apply a convolution, the normalization of its place and the nonlinearity."""
        x = self.norm.conv(
            scaled(filters, self.width),
            kernel_size,
            strides=strides,
            place=place,
            name=f"{name}_conv",
        )(x)
        return self._normalized(x, place, name)

    def _normalized(self, x: Any, place: str, name: str) -> Any:
        x = self.norm(x, place, name=f"{name}_norm")
        return keras.layers.Activation(self.activation, name=f"{name}_{self.activation}")(x)

    def stem(self, x: Any, kind: str, lrn: bool, separable: bool = False) -> Any:
        """Apply the layers before the first module.

        The ``imagenet`` stem is that of both papers: 7×7 of stride 2, pooling, 1×1, 3×3, pooling.
        The stems for small images replace the 7×7 by a 3×3 of stride 1 without pooling; ``pooled``
        keeps the second pooling, ``small`` has none.

        Args:
            x: Images.
            kind: "imagenet", "pooled" or "small".
            lrn: Whether to apply Local Response Normalization after the first and before the
                second pooling, with Krizhevsky et al.'s constants.
            separable: Whether the first convolution is depthwise, to 8 times the channels of the
                images, followed by 1×1 (Ioffe & Szegedy 2015, figure 5).
        """
        large = kind == "imagenet"
        kernel, strides = (7, 2) if large else (3, 1)
        if separable:
            x = self.norm.depthwise_conv(
                kernel,
                strides=strides,
                depth_multiplier=8,
                place=None,
                use_bias=False,
                name="stem1_depthwise",
            )(x)
            kernel, strides = 1, 1
        x = self.unit(x, 64, kernel, "stem", "stem1", strides)
        if large:
            x = pooled(x, "max", "stem1_pool", 2)
        if lrn:
            x = LocalResponseNormalization(name="stem1_lrn")(x)
        x = self.unit(x, 64, 1, "stem", "stem2")
        x = self.unit(x, 192, 3, "stem", "stem3")
        if lrn:
            x = LocalResponseNormalization(name="stem3_lrn")(x)
        return x if kind == "small" else pooled(x, "max", "stem3_pool", 2)

    def chain(
        self, x: Any, units: Sequence[tuple[int, int, str]], name: str, strides: int = 1
    ) -> Any:
        """Apply units one after the other: (filters, kernel size, place); the last is strided."""
        for index, (filters, kernel_size, place) in enumerate(units, start=1):
            step = strides if index == len(units) else 1
            x = self.unit(x, filters, kernel_size, place, f"{name}{index}", step)
        return x

    def auxiliary(self, x: Any, classes: int, dropout: float, name: str) -> Any:
        """Return an auxiliary classifier's logits, float32 (N, classes); its place is ``head``.

        5×5 average pooling of stride 3, 1×1 to 128 channels, 1,024 units, dropout and a linear
        layer (Szegedy et al. 2015, section 5).
        """
        x = keras.layers.AveragePooling2D(_POOLED, 3, name=f"{name}_pool")(x)
        x = self.unit(x, 128, 1, "head", name)
        x = keras.layers.Flatten(name=f"{name}_flatten")(x)
        x = self.norm.dense(
            scaled(1024, self.width),
            place="head",
            kernel_initializer=HeNormal(),
            name=f"{name}_dense",
        )(x)
        x = self._normalized(x, "head", f"{name}_dense")
        return classified(x, classes, dropout, f"{name}_")


def pooled(x: Any, kind: str, name: str, strides: int = 1) -> Any:
    """Apply 3×3 pooling, "max" or "avg", with padding."""
    make = keras.layers.MaxPooling2D if kind == "max" else keras.layers.AveragePooling2D
    return make(3, strides, padding="same", name=name)(x)


def classified(x: Any, classes: int, dropout: float, prefix: str = "") -> Any:
    """Apply dropout, if its rate is above 0, and a linear layer to logits (N, classes)."""
    rate("dropout", dropout)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=drawn_seed(), name=f"{prefix}dropout")(x)
    return keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name=f"{prefix}logits"
    )(x)


# --- GoogLeNet, the first Inception network -------------------------------------------------------


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

    A stem, stages of two, five and two modules with 3×3 max pooling of stride 2 between them,
    global average pooling, dropout and a linear layer. A module concatenates a 1×1 convolution, a
    1×1 reduction followed by a 3×3, one followed by a 5×5, and 3×3 max pooling followed by a 1×1
    projection, each convolution with a ReLU. With ``lrn`` and no normalization, this is the
    published network.

    Places: ``stem``; in a module ``pre`` after the reductions, ``mid`` after the 3×3 and the 5×5,
    ``post`` after the 1×1 convolutions that are output directly and the projections; ``head`` in
    the auxiliary classifiers.

    Args:
        norm: Makes normalizations, convolutions and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        stem: "imagenet", the paper's, for images of about 224×224; for about 32×32, "small", with
            3×3 and no pooling, or "pooled", with one pooling and a quarter of the computation.
        separable: Whether the first convolution is depthwise, to 8 times the channels, followed by
            1×1. The paper does not mention this, but its counts for that layer (2.7 K, 34 M) imply
            it.
        width: Factor of all channels, which are rounded to multiples of 8.
        lrn: Whether to apply Local Response Normalization after the stem's first pooling and before
            its second one, as in the paper.
        dropout: Dropout rate before the linear layer; 0.4 in the paper.
        auxiliary_weight: Weight in the loss of each of two auxiliary classifiers, 0.3 in the
            paper; 0 for none.
        auxiliary_dropout: Dropout rate in the auxiliary classifiers; 0.7 in the paper.

    Returns:
        A model from (N, H, W, C) to logits (N, classes), or to a list of these and the auxiliary
        classifiers' logits.

    Raises:
        UserError: ``stem`` is unknown, a number is out of range, or images are too small.
    """
    return Builder("googlenet", norm, "relu", width).network(
        input_shape,
        classes,
        STAGES,
        _v1_module,
        stem=stem,
        separable=separable,
        lrn=lrn,
        dropout=dropout,
        auxiliary_weight=auxiliary_weight,
        auxiliary_dropout=auxiliary_dropout,
    )


def _v1_module(builder: Builder, x: Any, module: V1Module) -> Any:
    """Apply one module (figure 2b of the paper)."""
    name = f"inception{module.name}"
    three = [(module.three_reduce, 1, "pre"), (module.three, 3, "mid")]
    five = [(module.five_reduce, 1, "pre"), (module.five, 5, "mid")]
    pool = pooled(x, "max", f"{name}_pool")
    branches = [
        builder.unit(x, module.one, 1, "post", f"{name}_one"),
        builder.chain(x, three, f"{name}_three"),
        builder.chain(x, five, f"{name}_five"),
        builder.unit(pool, module.pool, 1, "post", f"{name}_projection"),
    ]
    return keras.layers.Concatenate(name=name)(branches)


# --- BN-Inception, the network that Batch Normalization was published with (Inception v2) ---------


class V2Module(NamedTuple):
    """Channels of one module's convolutions (Ioffe & Szegedy 2015, figure 5).

    A module without a 1×1 branch and a projection halves the image.
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
    followed by a 3×3, one followed by two 3×3 (instead of GoogLeNet's 5×5), and 3×3 pooling
    followed by a 1×1 projection; a halving module has neither the 1×1 convolution nor the
    projection. Every convolution is followed by normalization and the nonlinearity.

    With BN, the paper's table gives 11,285,224 trainable parameters at 1,000 classes; adding a bias
    to each convolution gives the 11,295,240 of the publicly shared BN-Inception. The paper reports
    13.6 M, and nothing in its figure explains the difference.

    Places: ``stem``; in a module ``pre`` after the reductions, ``mid`` after the 3×3 convolutions,
    ``post`` after the 1×1 convolutions that are output directly and the projections; ``head`` in
    the auxiliary classifiers.

    Args:
        norm: Makes normalizations, convolutions and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        stem: "imagenet", the paper's, for images of about 224×224; for about 32×32, "small", with
            3×3 and no pooling, or "pooled", with one pooling and a quarter of the computation.
        separable: Whether the first convolution is depthwise, to 8 times the channels, followed by
            1×1, as in the paper.
        width: Factor of all channels, which are rounded to multiples of 8.
        activation: "relu", or "sigmoid" as in the paper's BN-x5-Sigmoid.
        lrn: Whether to apply Local Response Normalization in the stem, as in GoogLeNet and in
            the paper's Inception and BN-Baseline.
        dropout: Dropout rate before the linear layer; 0 in the paper's accelerated networks.
        auxiliary_weight: Weight in the loss of each of two auxiliary classifiers; 0 for none.
        auxiliary_dropout: Dropout rate in the auxiliary classifiers.

    Returns:
        A model from (N, H, W, C) to logits (N, classes), or to a list of these and the auxiliary
        classifiers' logits.

    Raises:
        UserError: ``stem`` or ``activation`` is unknown, a number is out of range, or images are
            too small.
    """
    return Builder("bn_inception", norm, activation, width).network(
        input_shape,
        classes,
        (MODULES,),  # two of them halve the image themselves
        _v2_module,
        stem=stem,
        separable=separable,
        lrn=lrn,
        dropout=dropout,
        auxiliary_weight=auxiliary_weight,
        auxiliary_dropout=auxiliary_dropout,
    )


def _v2_module(builder: Builder, x: Any, module: V2Module) -> Any:
    """Apply one module (figure 5 of the paper)."""
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
        builder.chain(x, three, f"{name}_three", strides),
        builder.chain(x, double, f"{name}_double", strides),
    ]
    if module.halves:
        branches.append(pool)
    else:
        branches.insert(0, builder.unit(x, module.one, 1, "post", f"{name}_one"))
        branches.append(builder.unit(pool, module.projection, 1, "post", f"{name}_projection"))
    return keras.layers.Concatenate(name=name)(branches)
