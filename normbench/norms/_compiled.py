"""Compiling the elementwise pieces of a layer by XLA where TensorFlow takes a pass for each step.

Sums are left to TensorFlow, which is as fast or faster at them on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import keras

WORTHWHILE = 2**19
"""Elements from which on memory is what takes the time, so that fewer passes over it win.

Below it, on two cores of an AMD EPYC, calling a compiled or fused piece costs what it saves, and
compiling takes 0.2 s a shape.
"""


def run(function: Callable[..., Any], *tensors: Any) -> Any:
    """Call ``function(*tensors)``, compiled where that is faster.

    That is on TensorFlow on a CPU, for a large first tensor in float32, where its shape is known.
    On a GPU, Keras compiles whole steps; on JAX all is compiled; what XLA compiles already is left
    alone.

    Args:
        function: Pure, of ``keras.ops``.
        *tensors: What it computes with.
    """
    if not is_compiled(tensors[0]):
        return function(*tensors)
    return _compiled(function, tuple((tuple(each.shape), each.dtype) for each in tensors))(*tensors)


def is_compiled(x: Any) -> bool:
    """Whether :func:`run` compiles for a first tensor like ``x``."""
    tensorflow = keras.backend.backend() == "tensorflow"
    return tensorflow and is_large(x) and not has_gpu() and not inside_xla()


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


@cache
def _compiled(function: Callable[..., Any], signature: Any) -> Any:
    """One compiled function for each signature, so that layers of a shape share it."""
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)
