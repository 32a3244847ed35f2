"""The :class:`Norm` that a network is built with; it decides which normalization goes where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

from normbench.components import configured
from normbench.config import PLACES
from normbench.errors import UserError, nearest
from normbench.norms.convolution import Conv2D, DepthwiseConv2D
from normbench.norms.weights import (
    ParametrizedConv2D,
    ParametrizedDense,
    ParametrizedDepthwiseConv2D,
    WeightParametrization,
)

__all__ = [
    "Norm",
    "ParametrizedConv2D",
    "ParametrizedDense",
    "ParametrizedDepthwiseConv2D",
    "WeightParametrization",
    "make_norm",
]

LayerFactory = Callable[..., keras.layers.Layer]


class Norm:
    """Makes the normalizations, convolutions and hidden fully connected layers of one network.

    A network never asks which normalization it has. It calls ``norm(x, place)`` to normalize, and
    ``norm.conv(…, place=…)`` for a convolution that is followed by that place.

    Args:
        layer: Makes a normalization layer, called with ``name=``; None for no normalization.
        parametrization: Makes a new :class:`WeightParametrization` for a convolution; None to use
            kernels as stored.
        places: Overrides ``layer`` at some places.

    Raises:
        ValueError: ``places`` has an unknown place.
    """

    def __init__(
        self,
        layer: LayerFactory | None,
        parametrization: Callable[[], WeightParametrization] | None = None,
        places: Mapping[str, LayerFactory | None] | None = None,
    ) -> None:
        self._layers: dict[str, LayerFactory | None] = dict.fromkeys(PLACES, layer)
        for place, other in (places or {}).items():
            self._layers[self._known(place)] = other
        self._requested = tuple(places or ())
        self._used: set[str] = set()
        self._parametrization = parametrization

    def __call__(self, x: Any, place: str, name: str) -> Any:
        """Normalize ``x``, (N, ..., C), with this place's layer."""
        make = self._layers[self._known(place)]
        self._used.add(place)
        if make is None:
            return x
        layer = make(name=name)
        layer.place = place  # read by probes
        return layer(x)

    def normalizes(self, place: str) -> bool:
        """Return whether this place has a layer; if not, a convolution before it needs a bias."""
        return self._layers[self._known(place)] is not None

    def check_used(self) -> None:
        """Reject requested places that the built network does not have.

        Raises:
            ValueError: The network never normalizes at a place in ``places``.
        """
        for place in self._requested:
            if place not in self._used:
                names = ", ".join(other for other in PLACES if other in self._used) or "nowhere"
                raise ValueError(
                    f"the network never normalizes at the place {place!r} (it does at: {names})"
                )

    def conv(
        self,
        filters: int,
        kernel_size: int,
        *,
        place: str | None,
        name: str,
        strides: int = 1,
        padding: str = "same",
        groups: int = 1,
        use_bias: bool | None = None,
        kernel_initializer: Any = None,
    ) -> keras.layers.Layer:
        """Make a convolution under the chosen weight parametrization.

        Args:
            filters: Output channels.
            kernel_size: Height and width.
            place: Place of the normalization that follows; None if none does.
            name: The layer's name.
            strides: Spatial positions from one output to the next, on both axes.
            padding: "same" or "valid".
            groups: Groups of channels that are convolved separately.
            use_bias: By default True only if no normalization follows to make it redundant.
            kernel_initializer: He et al. 2015 by default.
        """
        options = self._conv_options(place, use_bias)
        options.update(
            strides=strides,
            padding=padding,
            groups=groups,
            name=name,
            kernel_initializer=kernel_initializer or _he_normal(depthwise=False),
        )
        if self._parametrization is None:
            return Conv2D(filters, kernel_size, **options)
        return ParametrizedConv2D(
            filters, kernel_size, parametrization=self._parametrization(), **options
        )

    def depthwise_conv(
        self,
        kernel_size: int,
        *,
        place: str | None,
        name: str,
        strides: int = 1,
        padding: str = "same",
        depth_multiplier: int = 1,
        use_bias: bool | None = None,
    ) -> keras.layers.Layer:
        """Make a depthwise convolution under the chosen weight parametrization; as :meth:`conv`."""
        options = self._conv_options(place, use_bias)
        options.update(
            strides=strides,
            padding=padding,
            depth_multiplier=depth_multiplier,
            name=name,
            depthwise_initializer=_he_normal(depthwise=True),
        )
        if self._parametrization is None:
            return DepthwiseConv2D(kernel_size, **options)
        return ParametrizedDepthwiseConv2D(
            kernel_size, parametrization=self._parametrization(), **options
        )

    def dense(
        self,
        units: int,
        *,
        place: str | None,
        name: str,
        use_bias: bool | None = None,
        kernel_initializer: Any = None,
    ) -> keras.layers.Layer:
        """Make a fully connected layer under the chosen weight parametrization; as :meth:`conv`."""
        options = self._conv_options(place, use_bias)
        options.update(
            name=name, kernel_initializer=kernel_initializer or _he_normal(depthwise=False)
        )
        if self._parametrization is None:
            return keras.layers.Dense(units, **options)
        return ParametrizedDense(units, parametrization=self._parametrization(), **options)

    def _conv_options(self, place: str | None, use_bias: bool | None) -> dict[str, Any]:
        if use_bias is None:
            use_bias = place is None or not self.normalizes(place)
        return {"use_bias": use_bias}

    @staticmethod
    def _known(place: str) -> str:
        if place not in PLACES:
            near = nearest(place, PLACES)
            hint = f": did you mean {near!r}?" if near else ""
            raise ValueError(f"unknown place {place!r}{hint} (allowed: {', '.join(PLACES)})")
        return place


def _he_normal(depthwise: bool) -> keras.initializers.Initializer:
    from normbench.initializers import HeNormal

    return HeNormal(depthwise=depthwise)


# --- from a config to a Norm ----------------------------------------------------------------------

_STRUCTURE = ("weight", "places", "place", "bfn")
"""Keys of the config group ``norm`` that are not options of its layer."""


def make_norm(spec: Mapping[str, Any]) -> Norm:
    """Make the ``Norm`` described by the config group ``norm``.

    Args:
        spec: ``name``, ``_target_`` (dotted path of a layer; None for no normalization) and that
            layer's options; ``weight``, a group of the same form for the weight parametrization;
            optionally ``places``, with a group of the same form for each place that differs, and
            ``bfn``, a group for one more place, named by ``place``.

    Raises:
        UserError: A ``_target_`` does not exist or is not a layer, or does not take an option.
        ValueError: A place is unknown.
    """
    places = dict(spec.get("places") or {})
    if spec.get("bfn"):
        places[spec["place"]] = spec["bfn"]
    return Norm(
        _factory("norm", spec),
        _factory("norm/weight", spec.get("weight") or {}),
        {place: _factory("norm", other, f" at {place}") for place, other in places.items()},
    )


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "epsilon": (lambda value: value >= 0, "0 or more"),
    "momentum": (lambda value: 0 <= value <= 1, "in 0..1"),
    "iterations": (lambda value: 1 <= value <= 100, "in 1..100"),
    "gamma": (lambda value: value > 0, "above 0"),
}
"""Ranges of options that have the same meaning in every built-in norm and parametrization."""


def _check_numbers(title: str, options: Mapping[str, Any]) -> None:
    """Reject values that would make a layer take roots of negative numbers or never finish.

    Raises:
        UserError: A value is out of range.
    """
    for name, value in options.items():
        if name in _RANGES and isinstance(value, int | float) and not isinstance(value, bool):
            fits, description = _RANGES[name]
            if not fits(value):
                raise UserError(f"{title}: {name} must be {description}, got {value:g}")


def _factory(group: str, spec: Mapping[str, Any], suffix: str = "") -> Any:
    """Return a callable that builds the component of ``spec``, or None if it has no target."""
    if spec.get("_target_") is None:
        return None
    title = f"{group}{suffix}={spec.get('name')}"
    component, options = configured(group, spec, called=title, structure=_STRUCTURE)
    if str(spec["_target_"]).startswith("normbench."):
        _check_numbers(title, options)
    return partial(component, **options)
