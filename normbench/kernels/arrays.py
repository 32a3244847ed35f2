"""Array helpers for layers and kernels: flattening, variables as tensors, upstream gradients."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def flatten_spatial(x: Tensor) -> Tensor:
    """Return (N, ..., C) as (N, S, C), where S is 1 if there are no spatial axes.

    Half precision and float32 are preserved. float64, which no kernel supports, becomes float32.
    """
    channels = int(x.shape[-1])
    positions = 1
    for length in x.shape[1:-1]:
        positions = -1 if length is None or positions == -1 else positions * length
    if keras.backend.standardize_dtype(x.dtype) == "float64":
        x = ops.cast(x, "float32")
    if positions == -1:
        images = x.shape[0] if x.shape[0] is not None else ops.shape(x)[0]
        return ops.reshape(x, (images, -1, channels))
    return ops.reshape(x, (-1 if x.shape[0] is None else x.shape[0], positions, channels))


def image_sets(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Make each image of (N, S, C), and its mask, a separate set: (N, 1, S, C)."""
    return ops.expand_dims(x, 1), None if valid is None else ops.expand_dims(valid, 1)


def as_tensor(variable: Any) -> Tensor:
    """Return a variable's value as a plain tensor, as TensorFlow's custom gradients require."""
    return ops.multiply(variable, 1)


def first_gradient(upstream: Any) -> Tensor:
    """Return the gradient of a custom function's first output.

    Backends differ: they pass a gradient, several gradients, or a tuple of them.
    """
    while isinstance(upstream, (tuple, list)):
        upstream = upstream[0]
    return upstream


def both_gradients(upstream: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of a custom function's two outputs."""
    if len(upstream) == 1:
        (upstream,) = upstream
    return upstream[0], upstream[1]
