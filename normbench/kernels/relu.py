"""ReLU of half precision on a CPU with TensorFlow, by the bits of its numbers.

TensorFlow converts each number to float32 and back, for the gradient two; read as integers, numbers
above 0 are in order, and XLA compiles choosing among them to a pass at the speed of memory. Results
are TensorFlow's, but that it takes subnormal numbers for 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import layers

from normbench.kernels.compile import elementwise, is_large, on_cpu

Tensor = Any

_SIX = 6.0


def is_rectifier(layer: Any) -> bool:
    """Whether a layer is Keras's ReLU, or ReLU6, and no other of that class."""
    if type(layer) is not layers.ReLU or layer.negative_slope or layer.threshold:
        return False
    return layer.max_value in (None, _SIX)


def rectified(
    layer: Any, x: Tensor, addends: Sequence[Tensor] | None = None, uses: int = 1
) -> list[Tensor]:
    """Return what a rectifier gives for x, of any shape and dtype, once for each use of it.

    Args:
        layer: The rectifier.
        x: Its input.
        addends: What x is the sum of, of one shape, if x is used nowhere else: one pass adds and
            rectifies then.
        uses: How many there are. Their gradients are added up in the pass through the rectifier.
    """
    half = layer.compute_dtype in ("bfloat16", "float16")
    if not half or tf.executing_eagerly() or not is_large(x) or not on_cpu():
        return [layer(x)] * uses
    ceiling = layer.max_value
    folds = _folds(x)

    @tf.custom_gradient
    def function(*addends: Tensor) -> Any:
        if folds:
            y = (tf.nn.relu if ceiling is None else tf.nn.relu6)(*addends)
        else:
            y = elementwise(_clipped, *addends, ceiling=ceiling)

        def gradient(*upstream: Tensor) -> Any:
            dx = elementwise(_passed, y, *upstream, ceiling=ceiling)
            return [dx] * len(addends)

        return [y] * uses, gradient

    given = [x] if addends is None or folds else addends
    return function(*(tf.cast(each, layer.compute_dtype) for each in given))


def _folds(x: Tensor) -> bool:
    """Whether TensorFlow takes the ReLU of x in one with the convolution that gives it."""
    given = x.op.inputs if x.op.type == "AddV2" else [x]
    biased = [each.op for each in given if each.op.type == "BiasAdd"]
    return any("Conv" in each.inputs[0].op.type for each in biased)


def _clipped(*addends: Tensor, ceiling: float | None) -> Tensor:
    """Return max(sum, 0), or what of it is at most a ceiling; what is no number stays."""
    x = _sum(addends)
    bits = _bits(x)
    lowest, highest = _bits_of(float("-inf"), x.dtype), _bits_of(float("inf"), x.dtype)
    # Of negative numbers the integers fall towards 0, beyond -infinity are those of no number.
    kept = tf.where(bits <= lowest, tf.zeros_like(bits), bits)
    if ceiling is not None:
        top = _bits_of(ceiling, x.dtype)
        kept = tf.where((kept > top) & (kept <= highest), tf.fill(kept.shape, top), kept)
    return tf.bitcast(kept, x.dtype)


def _passed(y: Tensor, *upstream: Tensor, ceiling: float | None) -> Tensor:
    """Return the sum of y's gradients where 0 < y, and y is below the ceiling, else 0."""
    dy = _sum(upstream)
    bits = _bits(y)
    passes = (bits > 0) & (bits <= _bits_of(float("inf"), y.dtype))
    if ceiling is not None:
        passes &= bits < _bits_of(ceiling, y.dtype)
    return tf.bitcast(tf.where(passes, _bits(dy), tf.zeros_like(bits)), dy.dtype)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Add up tensors of one dtype in float32 and round once."""
    if len(tensors) == 1:
        return tensors[0]
    dtype = tensors[0].dtype
    if dtype != tf.bfloat16:
        return tf.cast(sum(tf.cast(each, tf.float32) for each in tensors), dtype)
    return _to_bfloat16(sum(_of_bfloat16(each) for each in tensors))


def _of_bfloat16(x: Tensor) -> Tensor:
    """As a cast to float32, which XLA does number by number on a CPU without such instructions."""
    bits = tf.cast(tf.bitcast(x, tf.uint16), tf.uint32)
    return tf.bitcast(tf.bitwise.left_shift(bits, _word(16)), tf.float32)


def _to_bfloat16(x: Tensor) -> Tensor:
    """As a cast of float32: to the nearest, of two to the even one."""
    bits = tf.bitcast(x, tf.uint32)
    odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, _word(16)), _word(1))
    rounded = tf.bitwise.right_shift(bits + _word(0x7FFF) + odd, _word(16))
    return tf.bitcast(tf.cast(rounded, tf.uint16), tf.bfloat16)


def _word(value: int) -> Tensor:
    return tf.constant(value, tf.uint32)


def _bits(x: Tensor) -> Tensor:
    return tf.bitcast(x, tf.int16)


def _bits_of(value: float, dtype: Any) -> Tensor:
    return _bits(tf.constant(value, dtype))
