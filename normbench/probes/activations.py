"""Distributions of layers' inputs, and dead or saturated units: :class:`Activations`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

PERCENTILES = (15, 50, 85)
"""The percentiles that Ioffe & Szegedy 2015 plot (figure 1)."""

_NONLINEAR = ("Activation", "ELU", "LeakyReLU", "PReLU", "ReLU")
"""Classes of Keras layers that are pure nonlinearities."""


class Activations(Probe):
    """The inputs of chosen layers, in inference mode, on the same validation images each time.

    Values by layer, over all images, spatial positions and units (channels):

    * ``<layer>/mean``, ``std``, and the percentiles ``p15``, ``p50``, ``p85``. Ioffe & Szegedy
      2015 (section 4.1, figures 1b and 1c) plot the percentiles of one typical sigmoid in the last
      hidden layer. Percentiles are taken at ``places`` random spatial positions of each image,
      drawn once; the other values at all positions.
    * ``<layer>/unit<u>/p15`` …, percentiles of single units, over images and positions.
    * For a ReLU, ``<layer>/dead``: share of units whose output is 0 at all positions of all images.
    * For a ReLU, ``<layer>/collapsed``: share of units whose input is positive in at most a share
      ``active`` of all positions and images. Qiao et al. 2019 (arXiv 1911.09738, abstract) define
      elimination singularities as the points where "neurons become consistently deactivated", and
      consider the normalized activations before the ReLU, which here are the input of the ReLU. The
      paper has no threshold; this one is ours.
    * For a sigmoid or tanh, ``<layer>/saturated``: share of outputs within ``margin`` of a limit,
      relative to the full range (for 0.05: below 0.05 or above 0.95; tanh: below −0.9 or above
      0.9).

    Args:
        layers: Names of layers, with ``*`` for any text; empty for every nonlinearity.
        images: Number of validation images; all if there are fewer.
        units: Indices of units that get their own percentiles.
        places: Number of spatial positions per image at which percentiles are taken.
        margin: Distance from a limit, as a share of the range, within which an output counts as
            saturated; in (0, 0.5).
        active: Share of positive inputs up to which a unit counts as collapsed; in [0, 1).
        every: Epochs between two measurements.

    Raises:
        UserError: An option is out of range.
    """

    name = "activations"
    values = (
        ProbeValue("*/dead", "Dead units", "%", 100.0, 1, False),
        ProbeValue("*/collapsed", "Collapsed units", "%", 100.0, 1, False),
        ProbeValue("*/saturated", "Saturated outputs", "%", 100.0, 1),
        ProbeValue("*/mean", "Mean of the inputs"),
        ProbeValue("*/std", "Deviation of the inputs"),
        ProbeValue("*/p15", "15th percentile of the inputs"),
        ProbeValue("*/p50", "Median of the inputs"),
        ProbeValue("*/p85", "85th percentile of the inputs"),
    )

    def __init__(
        self,
        *,
        layers: Sequence[str],
        images: int,
        units: Sequence[int],
        places: int,
        margin: float,
        active: float,
        every: int,
    ) -> None:
        for option, value in (("images", images), ("places", places)):
            if value < 1:
                raise UserError(f"probe.activations.{option} must be at least 1, got {value}")
        if not 0 < margin < 0.5:
            raise UserError(f"probe.activations.margin must be in (0, 0.5), got {margin:g}")
        if not 0 <= active < 1:
            raise UserError(f"probe.activations.active must be in [0, 1), got {active:g}")
        self.layers = tuple(layers)
        self.images = images
        self.units = tuple(units)
        self.places = places
        self.margin = margin
        self.active = active
        self.every = checked_every(self.name, every)

    def chosen(self, model: keras.Model) -> list[keras.layers.Layer]:
        """Return the layers to measure, in the order of the network.

        Layers with several inputs and input layers are never measured.
        """
        single = [layer for layer in model.layers if _has_one_input(layer)]
        if not self.layers:
            return [layer for layer in single if type(layer).__name__ in _NONLINEAR]
        return [
            layer
            for layer in single
            if any(fnmatchcase(layer.name, pattern) for pattern in self.layers)
        ]

    def check(self, model: keras.Model) -> None:
        names = [layer.name for layer in model.layers]
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"probe.activations.layers: no layer of {model.name} is called {pattern!r} "
                    f"(it has: {', '.join(names)})"
                )
        if not (layers := self.chosen(model)):
            subject = (
                "no layer with one input" if self.layers else "no layer that is a nonlinearity"
            )
            raise UserError(f"probe.activations.layers: {subject} in {model.name} is chosen")
        for layer in layers:
            width = int(layer.input.shape[-1])
            for unit in self.units:
                if not 0 <= unit < width:
                    raise UserError(
                        f"probe.activations.units: {layer.name} has units 0..{width - 1}, "
                        f"not {unit}"
                    )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        layers = self.chosen(loop.model)
        names = tuple(layer.name for layer in layers)
        sub_model = loop.sub_model(
            ("activations", names, self.places, self.margin), self._sub_model
        )
        pixels = dataset.validation.images[: self.images]
        batch = loop.settings.eval_batch
        chunks = [
            loop.inspect(sub_model, pixels[start : start + batch])
            for start in range(0, len(pixels), batch)
        ]
        outputs = [np.concatenate(chunk) for chunk in zip(*chunks, strict=True)]
        width = len(_Found._fields)
        values: dict[str, float] = {}
        for index, layer in enumerate(layers):
            statistics = _Found(*outputs[index * width : (index + 1) * width])
            values |= {
                f"{layer.name}/{key}": value for key, value in self._values(layer, statistics)
            }
        return values

    def _sub_model(self, model: keras.Model) -> keras.Model:
        """Build the sub-model that outputs the :class:`_Found` of each chosen layer."""
        import keras

        outputs = []
        for layer in self.chosen(model):
            outputs += _measured(layer.input, self.places, _limit(_kind(layer), self.margin))
        return keras.Model(model.inputs, outputs)

    def _values(self, layer: keras.layers.Layer, statistics: _Found) -> list[tuple[str, float]]:
        mean = np.asarray(statistics.mean, np.float64)
        square = np.asarray(statistics.variance, np.float64).mean() + mean.var()
        values = [("mean", float(mean.mean())), ("std", float(np.sqrt(square)))]
        values += _percentiles("p", statistics.sample)
        for unit in self.units:
            values += _percentiles(f"unit{unit}/p", statistics.sample[..., unit])
        kind = _kind(layer)
        if kind == "relu":
            values.append(("dead", float(np.mean(statistics.highest.max(axis=0) <= 0))))
            share = np.asarray(statistics.beyond, np.float64).mean(axis=0)
            values.append(("collapsed", float(np.mean(share <= self.active))))
        elif kind in ("sigmoid", "tanh"):
            values.append(("saturated", float(np.mean(statistics.beyond, dtype=np.float64))))
        return values


class _Found(NamedTuple):
    """Measurements of a layer's input, each (N, C); ``sample`` is (N, K, C).

    ``beyond`` is the share of positions at which the input, or its magnitude, exceeds a limit.
    """

    mean: np.ndarray
    variance: np.ndarray
    highest: np.ndarray
    beyond: np.ndarray
    sample: np.ndarray


def _measured(inputs: Any, places: int, limit: float) -> _Found:
    """Return a :class:`_Found` of symbolic outputs; with a ``limit`` of 0, test for x > 0."""
    from keras import ops

    size = int(np.prod(inputs.shape[1:-1], dtype=int))
    values = ops.cast(ops.reshape(inputs, (-1, size, inputs.shape[-1])), "float32")
    beyond = ops.cast(ops.abs(values) > limit if limit else values > 0, "float32")
    sample = values
    if size > places:
        positions = np.random.default_rng(0).choice(size, places, replace=False)
        sample = ops.take(values, np.sort(positions).astype(np.int32), axis=1)
    return _Found(
        ops.mean(values, axis=1),
        ops.var(values, axis=1),
        ops.max(values, axis=1),
        ops.mean(beyond, axis=1),
        sample,
    )


def _has_one_input(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is called once, on one tensor with units."""
    from normbench.network import calls_of

    if type(layer).__name__ == "InputLayer" or len(calls_of(layer)) != 1:
        return False
    tensor = layer.input
    return not isinstance(tensor, list | tuple | dict) and len(tensor.shape) > 1


def _kind(layer: keras.layers.Layer) -> str:
    """Return ``relu``, ``sigmoid`` or ``tanh``, or an empty string for any other layer."""
    if type(layer).__name__ == "ReLU":
        plain = layer.negative_slope == 0 and layer.threshold == 0  # pyright: ignore
        return "relu" if plain else ""
    function = getattr(getattr(layer, "activation", None), "__name__", "")
    if type(layer).__name__ != "Activation":
        return ""
    return {"relu": "relu", "relu6": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}.get(function, "")


def _limit(kind: str, margin: float) -> float:
    """Return the input magnitude beyond which the output is within ``margin`` of its limit."""
    # tanh(x) = 2·sigmoid(2x) − 1, so it reaches the same share of its range at half the input.
    logit = float(np.log((1 - margin) / margin))
    return {"sigmoid": logit, "tanh": logit / 2}.get(kind, 0.0)


def _percentiles(name: str, values: np.ndarray) -> list[tuple[str, float]]:
    percentiles = np.percentile(values, PERCENTILES)
    return [
        (f"{name}{at}", float(value)) for at, value in zip(PERCENTILES, percentiles, strict=True)
    ]
