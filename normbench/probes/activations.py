"""The distribution of layers' inputs over training."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from normbench.errors import UserError
from normbench.probes.probe import Probe

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

PERCENTILES = (15, 50, 85)
"""Those that Ioffe & Szegedy 2015 plot (figure 1)."""


class Activations(Probe):
    """Mean, deviation and percentiles of what chosen layers are given, in inference mode.

    After each epoch, on the same validation images. Ioffe & Szegedy 2015 (section 4.1, figures 1b
    and 1c) plot the 15th, 50th and 85th percentiles of the input of one typical sigmoid of the last
    hidden layer.

    Values by layer: ``<layer>/mean``, ``<layer>/std``, ``<layer>/p15``, ``p50`` and ``p85`` over
    images, places and units; and ``<layer>/unit<u>/p15`` … of single units (channels), over images
    and places.

    Args:
        layers: Names of layers, ``*`` standing for any text.
        images: How many validation images are shown.
        units: Those that get percentiles of their own.

    Raises:
        UserError: ``images`` below 1.
    """

    name = "activations"

    def __init__(self, *, layers: Sequence[str], images: int, units: Sequence[int]) -> None:
        if images < 1:
            raise UserError(f"probe.activations.images must be at least 1, got {images}")
        self.layers = tuple(layers)
        self.images = images
        self.units = tuple(units)

    def chosen(self, model: keras.Model) -> list[keras.layers.Layer]:
        """Return the layers whose names match, in the order of the network."""
        return [
            layer
            for layer in model.layers
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
        for layer in self.chosen(model):
            width = int(layer.input.shape[-1])
            for unit in self.units:
                if not 0 <= unit < width:
                    raise UserError(
                        f"probe.activations.units: {layer.name} has units 0..{width - 1}, "
                        f"not {unit}"
                    )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        layers = self.chosen(loop.model)
        values: dict[str, float] = {}
        names = tuple(layer.name for layer in layers)
        part = loop.part(("inputs", names), lambda model: inputs_of(model, names))
        inputs = loop.inspect(part, dataset.validation.images[: self.images])
        for layer, given in zip(layers, inputs, strict=True):
            given = np.asarray(given, np.float64)
            values[f"{layer.name}/mean"] = float(given.mean())
            values[f"{layer.name}/std"] = float(given.std())
            values |= _percentiles(f"{layer.name}/p", given)
            for unit in self.units:
                values |= _percentiles(f"{layer.name}/unit{unit}/p", given[..., unit])
        return values


def inputs_of(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Return the part of a model that ends in the inputs of the layers of these names."""
    import keras

    return keras.Model(model.inputs, [model.get_layer(name).input for name in names])


def _percentiles(name: str, values: np.ndarray) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f"{name}{at}": float(each) for at, each in zip(PERCENTILES, found, strict=True)}
