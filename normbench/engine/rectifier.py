"""ReLU of half precision on a CPU with TensorFlow, by the bits of its numbers.

TensorFlow converts each number to float32 and back, for the gradient two; read as integers, numbers
above 0 are in order, and XLA compiles choosing among them to a pass at the speed of memory. Results
are TensorFlow's, but that it takes subnormal numbers for 0.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import layers

from normbench.norms._compiled import in_a_row, is_large, on_cpu

Tensor = Any

_SIX = 6.0


def is_rectifier(layer: Any) -> bool:
    """Whether a layer is Keras's ReLU, or ReLU6, and no other of that class."""
    if type(layer) is not layers.ReLU or layer.negative_slope or layer.threshold:
        return False
    return layer.max_value in (None, _SIX)


def rectified(layer: Any, x: Tensor) -> Tensor:
    """Return what a rectifier gives for x, of any shape and dtype."""
    half = layer.compute_dtype in ("bfloat16", "float16")
    if not half or tf.executing_eagerly() or not is_large(x) or not on_cpu():
        return layer(x)
    x = tf.cast(x, layer.compute_dtype)
    ceiling = layer.max_value
    by_tensorflow = tf.nn.relu if ceiling is None else tf.nn.relu6

    @tf.custom_gradient
    def function(x: Tensor) -> Any:
        y = by_tensorflow(x) if _folds(x) else in_a_row(_clipped, x, ceiling=ceiling)
        return y, lambda dy: in_a_row(_passed, dy, y, ceiling=ceiling)

    return function(x)


def _folds(x: Tensor) -> bool:
    """Whether TensorFlow takes the ReLU of x in one with the convolution that gives it."""
    operation = x.op
    if operation.type == "AddV2":
        return any(each.op.type == "BiasAdd" for each in operation.inputs)
    return operation.type == "BiasAdd"


def _clipped(x: Tensor, *, ceiling: float | None) -> Tensor:
    """Return max(x, 0), or what of it is at most a ceiling; what is no number stays."""
    bits = _bits(x)
    lowest, highest = _bits_of(float("-inf"), x.dtype), _bits_of(float("inf"), x.dtype)
    # Of negative numbers the integers fall towards 0, beyond -infinity are those of no number.
    kept = tf.where(bits <= lowest, tf.zeros_like(bits), bits)
    if ceiling is not None:
        top = _bits_of(ceiling, x.dtype)
        kept = tf.where((kept > top) & (kept <= highest), tf.fill(kept.shape, top), kept)
    return tf.bitcast(kept, x.dtype)


def _passed(dy: Tensor, y: Tensor, *, ceiling: float | None) -> Tensor:
    """Return dy where 0 < y, and y is below the ceiling, else 0."""
    bits = _bits(y)
    passes = (bits > 0) & (bits <= _bits_of(float("inf"), y.dtype))
    if ceiling is not None:
        passes &= bits < _bits_of(ceiling, y.dtype)
    return tf.bitcast(tf.where(passes, _bits(dy), tf.zeros_like(bits)), dy.dtype)


def _bits(x: Tensor) -> Tensor:
    return tf.bitcast(x, tf.int16)


def _bits_of(value: float, dtype: Any) -> Tensor:
    return _bits(tf.constant(value, dtype))
