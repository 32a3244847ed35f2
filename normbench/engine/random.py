"""Random words from (seed, stream, epoch, position), equal on every backend and machine.

:func:`epoch_order` shuffles the training images; :func:`epoch_words` determines their augmentation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

SHUFFLE = 0
AUGMENT = 1

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return two random words of Threefry-2x32 with 20 rounds (Salmon et al. 2011, section 4.2).

    A word depends only on its key and counter, so a resumed run can compute any epoch's choices
    without those before.

    Args:
        key: Two uint32 tensors of shapes that broadcast with the counter's.
        counter: Two uint32 tensors.

    Returns:
        Two uint32 tensors of the broadcast shape.
    """
    key0, key1 = (ops.cast(word, "uint32") for word in key)
    parity = ops.bitwise_xor(ops.bitwise_xor(key0, key1), _word(0x1BD11BDA))
    keys = (key0, key1, parity)
    x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ops.bitwise_or(
                ops.bitwise_left_shift(x1, _word(rotation)),
                ops.bitwise_right_shift(x1, _word(32 - rotation)),
            )
            x1 = ops.bitwise_xor(x1, x0)
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + _word(group + 1)
    return x0, x1


def epoch_words(seed: Any, stream: int, epoch: Any, count: int) -> tuple[Any, Any]:
    """Return two uint32 words, each (count,), for each position of an epoch.

    Args:
        seed: Seed of the run, 0..2**32 - 1, or a uint32 scalar tensor.
        stream: Purpose of the words; different streams of a seed are independent.
        epoch: Epoch counted from 0, scalar integer tensor.
        count: Number of positions in the epoch.
    """
    positions = ops.cast(ops.arange(count, dtype="int32"), "uint32")
    epochs = ops.broadcast_to(ops.cast(epoch, "uint32"), (count,))
    return threefry2x32((_word(seed), _word(stream)), (epochs, positions))


def epoch_order(seed: Any, epoch: Any, count: int) -> Any:
    """Return the order of ``count`` images in an epoch: a permutation, int32 (count,)."""
    words, _ = epoch_words(seed, SHUFFLE, epoch, count)
    # 31 bits, because not every backend sorts unsigned words. The sort is stable.
    return ops.cast(
        ops.argsort(ops.cast(ops.bitwise_right_shift(words, _word(1)), "int32")), "int32"
    )


def further_words(words: tuple[Any, Any], index: int) -> tuple[Any, Any]:
    """Return two more random words per image, uint32 (N,), derived only from its two words.

    Args:
        words: Two words of each image, uint32 (N,).
        index: Index of the further pair; each use of an image's words needs its own index.
    """
    counter = ops.zeros_like(words[0]) + _word(index)
    return threefry2x32(words, (counter, ops.zeros_like(words[0])))


def bits(words: Any, first: int, count: int) -> Any:
    """Return ``count`` bits of uint32 words, starting with bit ``first``, as int32."""
    shifted = ops.bitwise_right_shift(words, _word(first))
    return ops.cast(ops.bitwise_and(shifted, _word(2**count - 1)), "int32")


def _word(value: Any) -> Any:
    if ops.is_tensor(value):
        return value
    return ops.convert_to_tensor(np.uint32(value), dtype="uint32")
