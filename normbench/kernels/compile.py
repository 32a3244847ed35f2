"""Compile a function once for all layers of a shape: :func:`compile_shared`.

This is the only module that uses private functions of TensorFlow (checked against version 2.21):
``control_flow_util.GraphOrParentsInXlaContext``, ``save_context.in_save_context`` and
``save_context.save_context``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import keras
from keras import ops

WORTHWHILE = 2**15
"""Number of elements above which compiling an operation with XLA pays off.

A compiled call is faster from 2^13 elements (two cores of an AMD EPYC), but compiling takes 0.2 s
per shape, which 30 µs saved per call only earn back in runs of several thousand steps.
"""


def compile_shared(
    function: Callable[..., Any], x: Any, by_xla: bool | None = None
) -> Callable[..., Any]:
    """Return ``function`` in its fastest form for inputs like ``x``.

    On TensorFlow, layers of the same shape share a single trace, because tracing dominates the time
    to start a run. On a CPU, XLA compiles the function if ``x`` is large, which saves passes over
    memory. The function is returned unchanged if everything is compiled anyway: on JAX, and inside
    code that XLA compiles. On a GPU it is traced, but not compiled by XLA.

    Args:
        function: A pure function of tensors and hashable keyword constants.
        x: A tensor of the size that the function will work on.
        by_xla: Whether XLA should compile the function on a CPU; by default if ``x`` is large.
    """
    if keras.backend.backend() != "tensorflow" or None in x.shape or inside_xla():
        return function
    if exporting():
        return function
    import tensorflow as tf

    is_compiled = (is_large(x) if by_xla is None else by_xla) and not has_gpu()
    if tf.executing_eagerly() and not is_compiled:
        return function

    def call(*tensors: Any, **constants: Any) -> Any:
        signature = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
        return _graph(function, is_compiled, signature, tuple(constants.items()))(*tensors)

    return call


def elementwise(function: Callable[..., Any], *tensors: Any, **constants: Any) -> Any:
    """Call an elementwise function of tensors of one shape, compiled by :func:`compile_shared`.

    The tensors are flattened first, because XLA does not vectorize half precision over several
    axes.
    """
    flat = [ops.reshape(tensor, (-1,)) for tensor in tensors]
    return ops.reshape(compile_shared(function, flat[0])(*flat, **constants), tensors[0].shape)


def on_cpu() -> bool:
    """Return whether TensorFlow's own operations (not XLA) will compute on this machine's CPU."""
    if keras.backend.backend() != "tensorflow" or exporting():
        return False
    return not has_gpu() and not inside_xla()


def inside_xla() -> bool:
    """Return whether TensorFlow is tracing a function that XLA will compile."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def exporting() -> bool:
    """Return whether TensorFlow is tracing a graph to be saved for another program.

    Such a graph must consist of basic operations. TensorFlow Lite, for example, has neither bitwise
    operations nor EuclideanNorm, and an optimization for this machine may not help elsewhere.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    from tensorflow.python.saved_model.save_context import in_save_context

    return in_save_context()


@contextmanager
def as_if_exporting() -> Iterator[None]:
    """Within the context, make :func:`exporting` return True.

    TensorFlow sets this itself while it writes a SavedModel, but not for other formats.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf
    from tensorflow.python.saved_model.save_context import save_context

    with save_context(tf.saved_model.SaveOptions()):
        yield


def is_large(x: Any) -> bool:
    """Return whether a tensor is known to have at least :data:`WORTHWHILE` elements."""
    return None not in x.shape and math.prod(x.shape) >= WORTHWHILE


@cache
def has_gpu() -> bool:
    """Return whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


@cache
def _graph(function: Callable[..., Any], by_xla: bool, signature: Any, constants: Any) -> Any:
    """Return a function's graph for a signature, shared by all layers of that shape."""
    import tensorflow as tf

    body = partial(function, **dict(constants))
    body.__name__ = function.__name__  # type: ignore[attr-defined]  # shown in profiles
    return tf.function(body, jit_compile=by_xla or None, autograph=False)
