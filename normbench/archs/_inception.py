"""What the Inception networks have in common: units, stem, auxiliary and final classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from normbench.archs._options import above_zero, halved, one_of, rate, scaled
from normbench.errors import UserError
from normbench.initializers import HeNormal, LecunNormal, drawn_seed
from normbench.norms.local_response import LocalResponseNormalization
from normbench.norms.norm import Norm

HALVINGS = {"imagenet": 3, "pooled": 1, "small": 0}
"""How often each stem halves the image; the stages after it halve it twice more."""

_POOLED = 5
"""Height and width that an auxiliary classifier averages over (Szegedy et al. 2015, section 5)."""


@dataclass(frozen=True)
class Parts:
    """Makes the parts of one Inception network.

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

    def check(self, input_shape: tuple[int, int, int], stem: str, auxiliary_weight: float) -> None:
        """Refuse options and images that the network cannot have.

        Raises:
            UserError: An unknown ``stem`` or activation, a width of 0 or below, a negative
                ``auxiliary_weight``, or images too small for the network or its auxiliary
                classifiers.
        """
        one_of("stem", stem, HALVINGS)
        one_of("activation", self.activation, ("relu", "sigmoid"))
        above_zero("width", self.width)
        if not auxiliary_weight >= 0:
            raise UserError(f"arch.auxiliary_weight must be 0 or more, got {auxiliary_weight}")
        halved(self.arch, input_shape, HALVINGS[stem] + 2)
        left = halved(self.arch, input_shape, HALVINGS[stem] + 1)
        if auxiliary_weight and min(left) < _POOLED:
            other = "" if stem == "small" else " or arch.stem=small"
            raise UserError(
                f"arch={self.arch} averages {_POOLED}×{_POOLED} places in its auxiliary "
                f"classifiers, where {input_shape[0]}×{input_shape[1]} images have "
                f"{left[0]}×{left[1]}: take arch.auxiliary_weight=0{other}"
            )

    def unit(
        self, x: Any, filters: int, kernel_size: int, place: str, name: str, strides: int = 1
    ) -> Any:
        """A convolution, the normalization of its place and the nonlinearity."""
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
        """The layers before the first module.

        For ``imagenet`` those of both papers: 7×7 of stride 2, pooling, 1×1, 3×3, pooling. For
        small images the 7×7 is a 3×3 of stride 1 without pooling; ``pooled`` keeps the second
        pooling, ``small`` has none.

        Args:
            x: Images.
            kind: "imagenet", "pooled" or "small".
            lrn: Whether to have Local Response Normalization after the first and before the
                second pooling, with Krizhevsky et al.'s constants.
            separable: Whether the first convolution is a depthwise one to 8 times the channels of
                the images, followed by 1×1 (Ioffe & Szegedy 2015, figure 5).
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
        """Units one after the other, each (filters, kernel size, place); the last one strided."""
        for index, (filters, kernel_size, place) in enumerate(units, start=1):
            step = strides if index == len(units) else 1
            x = self.unit(x, filters, kernel_size, place, f"{name}{index}", step)
        return x

    def auxiliary(self, x: Any, classes: int, dropout: float, name: str) -> Any:
        """An auxiliary classifier's logits, float32 (N, classes); its places are ``head``.

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
    """3×3 pooling, "max" or "avg", of images that keep their edges."""
    make = keras.layers.MaxPooling2D if kind == "max" else keras.layers.AveragePooling2D
    return make(3, strides, padding="same", name=name)(x)


def classified(x: Any, classes: int, dropout: float, prefix: str = "") -> Any:
    """Dropout, where its rate is above 0, and a linear layer: float32 logits (N, classes)."""
    rate("dropout", dropout)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=drawn_seed(), name=f"{prefix}dropout")(x)
    return keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name=f"{prefix}logits"
    )(x)
