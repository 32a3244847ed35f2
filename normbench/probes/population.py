"""Population statistics of layers for inference, and the true statistics of their inputs.

:func:`keepers` finds the layers; :func:`input_statistics` measures their inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from normbench.engine.loop import variable_names
from normbench.errors import UserError
from normbench.kernels.arrays import flatten_spatial
from normbench.kernels.standardize import moments
from normbench.network import calls_of, layers_within
from normbench.probes.minibatches import equal_parts, spread

if TYPE_CHECKING:
    from normbench.data.streaming import ImageView
    from normbench.engine.loop import Loop

KNOWN = ("moving_mean", "moving_variance", "moving_deviation")
"""Names of variables, (C,), for a mean, a variance, or the root of variance plus ε."""


@dataclass(frozen=True)
class Statistics:
    """Mean and variance of each channel of a layer's input, float64 (C,); None if not known."""

    mean: np.ndarray | None
    variance: np.ndarray | None


@dataclass(frozen=True)
class Keeper:
    """A layer with population statistics.

    Attributes:
        layer: The layer.
        depth: Index in the network, from 1, of the convolution or fully connected layer that the
            layer follows; the last one if there are several.
        variables: Variables with the statistics, by name.
    """

    layer: Any
    depth: int
    variables: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.layer.name

    def read(self, values: Mapping[int, np.ndarray]) -> Statistics:
        """Return the layer's statistics from ``values``, which are by the variable's id."""
        arrays = {
            name: values[id(variable)].astype(np.float64)
            for name, variable in self.variables.items()
        }
        variance = arrays.get("moving_variance")
        if "moving_deviation" in arrays:
            variance = np.square(arrays["moving_deviation"]) - self.layer.epsilon
        return Statistics(arrays.get("moving_mean"), variance)

    def write(self, statistics: Statistics) -> dict[int, np.ndarray]:
        """Return the values of the layer's variables for ``statistics``, by the variable's id."""
        assert statistics.mean is not None
        assert statistics.variance is not None
        values = {
            "moving_mean": statistics.mean,
            "moving_variance": statistics.variance,
            "moving_deviation": np.sqrt(statistics.variance + self.layer.epsilon),
        }
        return {
            id(variable): values[name].astype(np.float32)
            for name, variable in self.variables.items()
        }


def keepers(model: keras.Model) -> list[Keeper]:
    """Return the layers with population statistics, in the order of the network.

    Raises:
        UserError: A layer has statistics other than :data:`KNOWN`, is inside another layer, or is
            used more than once.
    """
    order = {id(layer): index for index, layer in enumerate(model.layers)}
    weighted = [layer for layer in model.layers if hasattr(layer, "kernel")]
    depths = {id(layer): depth for depth, layer in enumerate(weighted, start=1)}
    result = []
    for layer in model.layers:
        if variables := _statistics_variables(layer):
            for name in variables:
                if name not in KNOWN:
                    raise UserError(
                        f"{layer.name} ({type(layer).__name__}) keeps {name}, which cannot be "
                        f"recomputed from its input (allowed: {', '.join(KNOWN)})"
                    )
            if len(calls_of(layer)) != 1:
                raise UserError(f"{layer.name} keeps statistics and is used more than once")
            result.append(Keeper(layer, _depth(layer, depths), variables))
    for layer in layers_within(model):
        if id(layer) not in order and _statistics_variables(layer):
            raise UserError(f"{layer.name} keeps statistics and is inside another layer")
    return result


def values_of(loop: Loop, state: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Return the value of each of the model's variables in a loop's state, by its id."""
    variables = loop.model.variables
    return {
        id(variable): state[name]
        for name, variable in zip(variable_names(variables), variables, strict=True)
    }


def replaced(
    loop: Loop, state: Mapping[str, np.ndarray], values: Mapping[int, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return a loop's state with some of the model's variables, given by id, replaced."""
    variables = loop.model.variables
    names = {id(v): name for name, v in zip(variable_names(variables), variables, strict=True)}
    return {**state, **{names[key]: value for key, value in values.items()}}


def input_statistics(
    loop: Loop, layers: list[Keeper], pixels: np.ndarray, *, most: int, batch_statistics: bool
) -> list[Statistics]:
    """Return the statistics of layers' inputs over images, with the present weights.

    They are computed per mini-batch in float32, relative to a value near the mean, and combined in
    float64 (Chan, Golub & LeVeque 1983, eq. 2.1).

    Args:
        loop: Loop with the model.
        layers: At least one layer.
        pixels: Images, uint8 (N, H, W, C).
        most: Largest size of a mini-batch; all have the same size, and leftover images are left
            out.
        batch_statistics: Whether layers normalize with the mini-batch, as in training.
    """
    names = tuple(layer.name for layer in layers)
    sub_model = loop.sub_model(
        ("input statistics", names), lambda model: _moments_of(model, layers)
    )
    count, size = equal_parts(len(pixels), most, batch_multiple(layers))
    means, variances = None, None
    for index in range(count):
        images = pixels[index * size : (index + 1) * size]
        outputs = loop.inspect(sub_model, images, batch_statistics=batch_statistics)
        # The outputs alternate between mean and variance.
        arrays = [output.astype(np.float64) for output in outputs]
        if means is None or variances is None:
            means, variances = arrays[::2], arrays[1::2]
            continue
        share = 1 / (index + 1)
        for i, (mean, variance) in enumerate(zip(arrays[::2], arrays[1::2], strict=True)):
            difference = mean - means[i]
            means[i] = means[i] + difference * share
            variances[i] = (
                variances[i]
                + (variance - variances[i]) * share
                + np.square(difference) * (share * (1 - share))
            )
    assert means is not None
    assert variances is not None
    return [Statistics(*pair) for pair in zip(means, variances, strict=True)]


def chosen_images(pixels: np.ndarray | ImageView, wanted: int) -> np.ndarray:
    """Return at most ``wanted`` images, spread evenly over all."""
    return pixels[spread(len(pixels), wanted)]


def batch_multiple(layers: list[Keeper]) -> int:
    """Return the number that a mini-batch's size must be a multiple of, for ghost batches."""
    return math.lcm(*(getattr(keeper.layer, "virtual_batch", 1) for keeper in layers))


def _statistics_variables(layer: Any) -> dict[str, Any]:
    """Return a layer's variables of population statistics, by name, without nested layers."""
    variables = layer._non_trainable_variables
    return {v.name: v for v in variables if v.name.startswith("moving_")}


def _depth(operation: Any, depths: Mapping[int, int]) -> int:
    """Return the largest index of the weighted layers directly before an operation, or 0."""
    depth = 0
    for tensor in calls_of(operation)[0].input_tensors:
        source = tensor._keras_history.operation
        depth = max(depth, depths[id(source)] if id(source) in depths else _depth(source, depths))
    return depth


def _moments_of(model: keras.Model, layers: list[Keeper]) -> keras.Model:
    """Build the sub-model that outputs mean and variance of each layer's input."""
    outputs = []
    for keeper in layers:
        axis = getattr(keeper.layer, "axis", -1)
        outputs += _Moments(axis, name=f"{keeper.name}_input_moments")(keeper.layer.input)
    return keras.Model(model.inputs, outputs)


class _Moments(keras.layers.Layer):
    """Mean and biased variance of each channel over images and positions: two float32 (C,)."""

    def __init__(self, axis: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.axis = axis

    def compute_output_spec(self, inputs: Any) -> list[Any]:
        channels = (inputs.shape[self.axis],)
        return [keras.KerasTensor(channels, "float32") for _ in range(2)]

    def call(self, inputs: Any) -> list[Any]:
        x = ops.moveaxis(inputs, self.axis, -1)
        mean, variance = moments(flatten_spatial(x)[None], int(x.shape[-1]))
        return [mean[0], variance[0]]
