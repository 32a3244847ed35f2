"""Bitwise ReLU of half precision with TensorFlow on a CPU: :func:`rectified`.

TensorFlow's ReLU converts each number to float32 and back, and two per gradient. But positive
floats are ordered like their bits read as integers. So ReLU can select among integers, which XLA
compiles to one memory-bound pass. The results equal TensorFlow's, except that TensorFlow flushes
subnormal numbers to 0.
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
    """Return whether a layer is Keras's ReLU or ReLU6 without other options."""
    if type(layer) is not layers.ReLU or layer.negative_slope or layer.threshold:
        return False
    return layer.max_value in (None, _SIX)


def rectified(
    layer: Any, x: Tensor, addends: Sequence[Tensor] | None = None, uses: int = 1
) -> list[Tensor]:
    """Return the output of a rectifier, once for each use of it.

    Args:
        layer: The rectifier, ReLU or ReLU6.
        x: Its input, of any shape and dtype.
        addends: Tensors of one shape whose sum is x, if x is used nowhere else; one pass then adds
            and rectifies.
        uses: Number of uses of the output. The rectifier's own backward pass adds up the gradients
            of all uses.
    """
    is_half = layer.compute_dtype in ("bfloat16", "float16")
    if not is_half or tf.executing_eagerly() or not is_large(x) or not on_cpu():
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

    summands = [x] if addends is None or folds else addends
    return function(*(tf.cast(summand, layer.compute_dtype) for summand in summands))


def _folds(x: Tensor) -> bool:
    """Return whether TensorFlow fuses the ReLU with the convolution that outputs x."""
    summands = x.op.inputs if x.op.type == "AddV2" else [x]
    biased = [tensor.op for tensor in summands if tensor.op.type == "BiasAdd"]
    return any("Conv" in operation.inputs[0].op.type for operation in biased)


def _clipped(*addends: Tensor, ceiling: float | None) -> Tensor:
    """Return the sum of the addends, clipped to 0..ceiling; NaN stays NaN."""
    x = _sum(addends)
    bits = _bits(x)
    lowest, highest = _bits_of(float("-inf"), x.dtype), _bits_of(float("inf"), x.dtype)
    # As integers, negative numbers range from -0.0 (the lowest integer) up to -infinity; beyond it
    # are the NaNs.
    values = tf.where(bits <= lowest, tf.zeros_like(bits), bits)
    if ceiling is not None:
        top = _bits_of(ceiling, x.dtype)
        is_above = (values > top) & (values <= highest)
        values = tf.where(is_above, tf.fill(values.shape, top), values)
    return tf.bitcast(values, x.dtype)


def _passed(y: Tensor, *upstream: Tensor, ceiling: float | None) -> Tensor:
    """Return the sum of y's gradients where y is between 0 and the ceiling, else 0."""
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
        return tf.cast(sum(tf.cast(tensor, tf.float32) for tensor in tensors), dtype)
    return _to_bfloat16(sum(_from_bfloat16(tensor) for tensor in tensors))


def _from_bfloat16(x: Tensor) -> Tensor:
    """Cast bfloat16 to float32; XLA's cast is not vectorized on a CPU without such instructions."""
    bits = tf.cast(tf.bitcast(x, tf.uint16), tf.uint32)
    return tf.bitcast(tf.bitwise.left_shift(bits, _word(16)), tf.float32)


def _to_bfloat16(x: Tensor) -> Tensor:
    """Cast float32 to bfloat16, rounding to nearest even."""
    bits = tf.bitcast(x, tf.uint32)
    parity = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, _word(16)), _word(1))
    rounded = tf.bitwise.right_shift(bits + _word(0x7FFF) + parity, _word(16))
    return tf.bitcast(tf.cast(rounded, tf.uint16), tf.bfloat16)


def _word(value: int) -> Tensor:
    return tf.constant(value, tf.uint32)


def _bits(x: Tensor) -> Tensor:
    return tf.bitcast(x, tf.int16)


def _bits_of(value: float, dtype: Any) -> Tensor:
    return _bits(tf.constant(value, dtype))
