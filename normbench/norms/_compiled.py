"""Compiling a hot piece of a layer by XLA where TensorFlow would run it operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import keras

WORTHWHILE = 2**18
"""Elements from which on memory is what takes the time, so that fewer passes over it win.

Below it, on two cores of an AMD EPYC, calling a compiled or fused piece costs what it saves, and
compiling takes 0.2 s a shape.
"""


def run(function: Callable[..., Any], *tensors: Any, **options: Any) -> Any:
    """Call ``function(*tensors, **options)``, compiled where that is faster.

    That is on TensorFlow on a CPU, for a large first tensor in float32, where all shapes are known.
    On a GPU, Keras compiles whole steps; on JAX all is compiled; what XLA compiles already is left
    alone.

    Args:
        function: Pure, of ``keras.ops``.
        *tensors: What it computes with.
        **options: Hashable.
    """
    if keras.backend.backend() != "tensorflow" or not _is_worth_it(tensors):
        return function(*tensors, **options)
    signature = tuple((tuple(each.shape), each.dtype) for each in tensors)
    return _compiled(function, signature, tuple(sorted(options.items())))(*tensors)


def inside_xla() -> bool:
    """Whether TensorFlow is tracing what XLA will compile."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def is_large(x: Any) -> bool:
    """Whether a tensor has at least :data:`WORTHWHILE` elements, as far as can be told."""
    return None not in x.shape and math.prod(x.shape) >= WORTHWHILE


@cache
def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def _is_worth_it(tensors: tuple[Any, ...]) -> bool:
    known = all(None not in each.shape for each in tensors)
    return known and is_large(tensors[0]) and not has_gpu() and not inside_xla()


@cache
def _compiled(function: Callable[..., Any], signature: Any, options: Any) -> Any:
    """One compiled function for each signature, so that layers of a shape share it."""
    import tensorflow as tf

    return tf.function(partial(function, **dict(options)), jit_compile=True, autograph=False)
