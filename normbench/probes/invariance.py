"""Kernels whose scale has no effect on a network in training: :func:`scale_invariant`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from normbench.engine.optimizer import is_decayed

_SIZE, _FACTOR = 100.0, 4.0
"""Deviation of the inputs that layers are tested with, so large that ε does not matter, and the
factor by which the inputs are scaled in the second test."""

_TOLERANCE = 1e-3
_IMAGES = 8


def kernels(model: keras.Model) -> dict[str, list[int]]:
    """Return the indices of each layer's kernels in ``model.trainable_variables``.

    The result has the layers with kernels, by name, in the order of the network.
    """
    indices = {id(variable): index for index, variable in enumerate(model.trainable_variables)}
    result = {}
    for layer in model.layers:
        layer_indices = [indices[id(v)] for v in layer.trainable_variables if is_decayed(v)]
        if layer_indices:
            result[layer.name] = layer_indices
    return result


def scale_invariant(model: keras.Model) -> set[str]:
    """Return the names of the layers whose kernels' scale does not affect the network in training.

    Either a weight parametrization removes the kernel's scale, or the layer is linear and without
    bias, and all layers that use its output remove the scale of their input. This is tested by
    running layers on random numbers, which works for any normalization; the normalization's ε is
    neglected.

    Args:
        model: The network; layers inside a nested model are ignored.
    """
    operations = {id(operation) for operation in model.operations}
    names = set()
    for name in kernels(model):
        layer = model.get_layer(name)
        parametrization = getattr(layer, "parametrization", None)
        if parametrization is not None and _takes_scale_out_of_kernel(layer, parametrization):
            names.add(name)
            continue
        users = [n.operation for n in layer._outbound_nodes if id(n.operation) in operations]
        linear = getattr(layer, "activation", None) in (None, keras.activations.linear)
        plain = linear and not getattr(layer, "use_bias", False)
        if plain and users and all(_takes_scale_out(user) for user in users):
            names.add(name)
    return names


def _takes_scale_out(layer: Any) -> bool:
    """Return whether a layer's output in training mode is the same for a scaled input."""
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer.input, list | tuple | dict):
        return False
    if any(size is None for size in layer.input.shape[1:]):
        return False
    images = max(_IMAGES, int(getattr(layer, "virtual_batch", 0)))
    x = np.random.default_rng(0).standard_normal((images, *layer.input.shape[1:]))
    # Add 1, because a γ of 0 would hide all differences.
    weights = [ops.convert_to_tensor(v) + 1.0 for v in layer.trainable_variables]
    variables = [ops.convert_to_tensor(v) for v in layer.non_trainable_variables]
    options = {"training": True} if layer._call_has_training_arg else {}

    def output(factor: float) -> np.ndarray:
        scaled = ops.convert_to_tensor((x * factor * _SIZE).astype(np.float32))
        outputs, _ = layer.stateless_call(weights, variables, scaled, **options)
        return np.asarray(ops.convert_to_numpy(ops.cast(outputs, "float32")))

    return _same(output(1.0), output(_FACTOR))


def _takes_scale_out_of_kernel(layer: Any, parametrization: Any) -> bool:
    kernel = next(v for v in layer.trainable_variables if is_decayed(v))
    x = np.random.default_rng(0).standard_normal(tuple(kernel.shape)) * _SIZE

    def output(factor: float) -> np.ndarray:
        scaled = ops.convert_to_tensor((x * factor).astype(np.float32))
        return np.asarray(ops.convert_to_numpy(parametrization(scaled, training=False)))

    return _same(output(1.0), output(_FACTOR))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    largest = float(np.max(np.abs(one)))
    return largest > 0 and float(np.max(np.abs(other - one))) <= _TOLERANCE * largest
