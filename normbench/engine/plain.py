"""Layers of Keras's own that compute what this package's layers do: :func:`plain_layer`.

Equal means equal outputs in inference, within rounding. Weights are constants there, so that a
parametrized kernel is stored as it is convolved with. To give a further normalization an equal, add
it to :func:`_normalizations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from normbench import norms
from normbench.errors import UserError
from normbench.norms.convolution import KernelLayer

_WITH_KERNEL = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")
"""Endings of the options of Keras's layers that change nothing in inference."""

Equal = Callable[[Any, dict[str, Any]], keras.layers.Layer]
"""A function from a layer, and options that every layer takes, to its equal without weights."""


def plain_layer(layer: Any) -> Any:
    """Return the equal of a layer among Keras's own layers, without the values of its weights.

    Raises:
        UserError: The layer has no equal.
    """
    kind = type(layer)
    if not isinstance(layer, keras.layers.Layer):  # an operation such as keras.ops.add: no state
        return layer
    if kind.__module__.startswith("keras."):
        return kind.from_config(_without_training(layer.get_config()))
    options = {"name": layer.name, "dtype": layer.dtype_policy}
    if kind.__module__.startswith("normbench."):
        for base in _WITH_KERNEL:
            if isinstance(layer, base):
                return base.from_config(_without_training(base.get_config(layer)))
        if make := _normalizations().get(kind):
            return make(layer, options)
    raise UserError(
        f"layer {layer.name} ({kind.__name__}) has no equal among Keras's own layers: export the "
        "model without --plain"
    )


def plain_weights(layer: Any) -> dict[str, Any]:
    """Return the values of the weights of a layer's equal, by the attributes that hold them."""
    if isinstance(layer, _WITH_KERNEL):
        kernel = layer.effective_kernel(False) if isinstance(layer, KernelLayer) else layer.kernel
        return {"kernel": kernel, **({"bias": layer.bias} if layer.use_bias else {})}
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: getattr(layer, name, None) for name in names}
    return {name: weight for name, weight in weights.items() if weight is not None}


def _without_training(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a layer of Keras's without options that matter in training alone.

    They may name classes of this package, which a plain model must load without.
    """
    return {key: value for key, value in config.items() if not key.endswith(_TRAINING_ONLY)}


def _normalizations() -> dict[type, Equal]:
    """Return the equal of each normalization that has one."""
    return {
        norms.BatchNormalization: _batch,
        norms.GhostBatchNormalization: _batch,  # differs from batch normalization in training
        norms.PreciseBatchNormalization: _batch,  # the same
        norms.SynchronizedBatchNormalization: _batch,  # the same
        norms.MomentsBatchNormalization: _batch,
        norms.KerasBatchNormalization: _batch,
        norms.GroupNormalization: _group,
        norms.LayerNormalization: _group,  # one group: over positions and channels
        norms.InstanceNormalization: _group,  # a channel a group
        norms.PositionalNormalization: _positional,
    }


def _batch(layer: Any, options: dict[str, Any]) -> keras.layers.Layer:
    return keras.layers.BatchNormalization(
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        center=layer.center,
        scale=layer.scale,
        **options,
    )


def _group(layer: Any, options: dict[str, Any]) -> keras.layers.Layer:
    return keras.layers.GroupNormalization(
        groups=layer.groups_of(layer.channels),
        epsilon=layer.epsilon,
        center=layer.center,
        scale=layer.scale,
        **options,
    )


def _positional(layer: Any, options: dict[str, Any]) -> keras.layers.Layer:
    return keras.layers.LayerNormalization(
        epsilon=layer.epsilon, center=layer.center, scale=layer.scale, **options
    )
