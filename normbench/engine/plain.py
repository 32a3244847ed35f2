"""Equivalents of this package's layers among Keras's own layers: :func:`plain_layer`.

Equivalent layers have equal outputs in inference, within rounding. Because weights are constant in
inference, the effective kernel of a parametrized layer is stored. To add an equivalent for another
normalization, add it to :func:`_normalizations`.
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
"""Suffixes of options of Keras layers that have no effect in inference."""

Equivalent = Callable[[Any, dict[str, Any]], keras.layers.Layer]
"""A function from a layer, and options that every layer takes, to its equivalent."""


def plain_layer(layer: Any) -> Any:
    """Return a layer's equivalent among Keras's own layers, without the values of its weights.

    Raises:
        UserError: The layer has no equivalent.
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
        f"layer {layer.name} ({kind.__name__}) has no equivalent among Keras's own layers: export "
        "the model without --plain"
    )


def plain_weights(layer: Any) -> dict[str, Any]:
    """Return the weights of a layer's equivalent, by attribute name."""
    if isinstance(layer, _WITH_KERNEL):
        kernel = layer.effective_kernel(False) if isinstance(layer, KernelLayer) else layer.kernel
        return {"kernel": kernel, **({"bias": layer.bias} if layer.use_bias else {})}
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: getattr(layer, name, None) for name in names}
    return {name: weight for name, weight in weights.items() if weight is not None}


def _without_training(config: dict[str, Any]) -> dict[str, Any]:
    """Return a Keras layer's config without options that only matter in training.

    They may refer to classes of this package, which a plain model must not need to load.
    """
    return {key: value for key, value in config.items() if not key.endswith(_TRAINING_ONLY)}


def _normalizations() -> dict[type, Equivalent]:
    """Return the equivalents of normalizations, by class."""
    return {
        norms.BatchNormalization: _batch,
        norms.GhostBatchNormalization: _batch,  # differs from batch normalization in training
        norms.PreciseBatchNormalization: _batch,  # the same
        norms.SynchronizedBatchNormalization: _batch,  # the same
        norms.MomentsBatchNormalization: _batch,
        norms.KerasBatchNormalization: _batch,
        norms.GroupNormalization: _group,
        norms.LayerNormalization: _group,  # one group: over positions and channels
        norms.InstanceNormalization: _group,  # one channel per group
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
