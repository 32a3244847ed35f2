"""One graph for what layers of a shape compute, compiled by XLA where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import keras
from keras import ops

WORTHWHILE = 2**15
"""Elements from which on a compiled operation's fewer passes over memory win.

From 2^13 on, on two cores of an AMD EPYC, a call takes less than the operations one by one; but
compiling takes 0.2 s a shape, which 30 µs a call earn back only in runs of some thousand steps.
"""


def compile_shared(
    function: Callable[..., Any], x: Any, by_xla: bool | None = None
) -> Callable[..., Any]:
    """Return a function that does what ``function`` does, made the quickest for inputs like ``x``.

    On TensorFlow, in a graph, layers of one shape share one trace of it: tracing is most of what it
    takes to begin a run. On a CPU XLA compiles it where ``x`` is large, which saves passes over
    memory. On a GPU Keras compiles whole steps; on JAX all is compiled; what XLA compiles already
    is left alone.

    Args:
        function: Pure, of ``keras.ops``: any number of tensors and, by keyword, of hashable
            constants.
        x: A tensor.
        by_xla: Whether XLA is to compile it on a CPU; by default where ``x`` is large.
    """
    if keras.backend.backend() != "tensorflow" or None in x.shape or inside_xla():
        return function
    if exporting():
        return function
    import tensorflow as tf

    compiled = (is_large(x) if by_xla is None else by_xla) and not has_gpu()
    if tf.executing_eagerly() and not compiled:
        return function

    def call(*tensors: Any, **constants: Any) -> Any:
        signature = tuple((tuple(each.shape), each.dtype) for each in tensors)
        return _graph(function, compiled, signature, tuple(constants.items()))(*tensors)

    return call


def elementwise(function: Callable[..., Any], *tensors: Any, **constants: Any) -> Any:
    """Call, :func:`compile_shared`, what works number by number with tensors of a shape as rows.

    Along more axes XLA goes through half precision step by step.
    """
    rows = [ops.reshape(each, (-1,)) for each in tensors]
    return ops.reshape(compile_shared(function, rows[0])(*rows, **constants), tensors[0].shape)


def on_cpu() -> bool:
    """Whether TensorFlow's own operations will compute, on a CPU of this machine, and not XLA."""
    if keras.backend.backend() != "tensorflow" or exporting():
        return False
    return not has_gpu() and not inside_xla()


def inside_xla() -> bool:
    """Whether TensorFlow is tracing what XLA will compile."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def exporting() -> bool:
    """Whether TensorFlow is tracing a graph to be saved, for another program or machine to run.

    Such a graph is to consist of plain operations: TensorFlow Lite, for one, has neither bitwise
    operations nor EuclideanNorm, and what is quickest on this machine need not be elsewhere.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    from tensorflow.python.saved_model.save_context import in_save_context  # as of 2.21

    return in_save_context()


def is_large(x: Any) -> bool:
    """Whether a tensor has at least :data:`WORTHWHILE` elements, as far as is known."""
    return None not in x.shape and math.prod(x.shape) >= WORTHWHILE


@cache
def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


@cache
def _graph(function: Callable[..., Any], by_xla: bool, signature: Any, constants: Any) -> Any:
    """One graph for each signature, so that layers of a shape share it."""
    import tensorflow as tf

    whole = partial(function, **dict(constants))
    whole.__name__ = function.__name__  # type: ignore[attr-defined]  # for a profile to say
    return tf.function(whole, jit_compile=by_xla or None, autograph=False)
