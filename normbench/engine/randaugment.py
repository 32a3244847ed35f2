"""Color jitter and RandAugment on batches of uint8 images.

The entry points are :func:`jittered` and :func:`randaugmented`. All arithmetic uses integers, so
that all backends produce the same pixels. The operations are Pillow's (``ImageEnhance``,
``ImageOps``), which the reference implementations of RandAugment apply to one image at a time.

Each image draws one of the fourteen operations, but a batch must be processed by one program. There
are three kinds of operations. A geometric operation is a table of source positions, known in
advance because size and magnitude are the same for all images. An operation on single pixels is a
table of 256 levels per image and channel. Only two operations depend on other channels or
neighbors. So a batch takes two gathers and two blends, each of which leaves images that drew
another operation unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from keras import ops

from normbench.components import MOST_MAGNITUDE
from normbench.engine.random import bits

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""Operations that RandAugment draws from (Cubuk et al. 2020, section 3.2)."""

_ONE = 1 << 16  # 1 as a fixed-point number
_LEVELS = 256
_LUMA = (19595, 38470, 7471)  # red, green and blue of ITU-R 601-2 over 2**16, as in Pillow


def jittered(pixels: Any, word: Any, strength: float) -> Any:
    """Change brightness, contrast and saturation of each image, in this order.

    Each factor is drawn uniformly from 256 steps between 1 - strength and 1 + strength.

    Args:
        pixels: uint8 (N, H, W, C), with 1 or 3 channels.
        word: Random word of each image, uint32 (N,).
        strength: In (0, 1].

    Returns:
        uint8 (N, H, W, C).
    """
    steps = (np.arange(_LEVELS) + 0.5) / _LEVELS
    table = np.rint((1 - strength + 2 * strength * steps) * _ONE).astype(np.int32)
    factors = [
        ops.take(ops.convert_to_tensor(table), bits(word, first, 8))[:, None, None, None]
        for first in (0, 8, 16)
    ]
    levels = ops.cast(pixels, "int32")
    levels = _blend(ops.zeros_like(levels), levels, factors[0])
    levels = _blend(_mean_luma(levels)[:, None, None, None], levels, factors[1])
    levels = _blend(_luma(levels), levels, factors[2])
    return ops.cast(levels, "uint8")


def randaugmented(pixels: Any, words: Sequence[Any], magnitude: int) -> Any:
    """Apply random operations, drawn for each image, one after the other.

    Args:
        pixels: uint8 (N, H, W, C), with 1 or 3 channels.
        words: For each operation, a random word of each image, uint32 (N,). The number of
            operations is called N in Cubuk et al. 2020.
        magnitude: Strength of all operations, 0..30 (called M there).

    Returns:
        uint8 (N, H, W, C).
    """
    for word in words:
        operation = ops.mod(bits(word, 16, 16), len(OPERATIONS))
        pixels = apply_operations(pixels, operation, bits(word, 0, 1), magnitude)
    return pixels


def apply_operations(pixels: Any, operation: Any, sign: Any, magnitude: int) -> Any:
    """Apply one operation to each image.

    Args:
        pixels: uint8 (N, H, W, C), with 1 or 3 channels.
        operation: Position in ``OPERATIONS``, int32 (N,).
        sign: 1 to shear, shift and rotate in the opposite direction, and to weaken instead of
            strengthen; else 0. int32 (N,).
        magnitude: 0..30.

    Returns:
        uint8 (N, H, W, C).
    """
    strength = magnitude / MOST_MAGNITUDE
    images = _move(pixels, operation, sign, strength)
    levels = ops.cast(_by_tables(images, operation, sign, strength), "int32")

    def drew(name: str) -> Any:
        return ops.equal(operation, OPERATIONS.index(name))[:, None, None, None]

    factor = ops.take(ops.convert_to_tensor(_factors(strength)), sign)[:, None, None, None]
    levels = ops.where(drew("color"), _blend(_luma(levels), levels, factor), levels)
    levels = ops.where(drew("sharpness"), _blend(_smoothed(levels), levels, factor), levels)
    return ops.cast(levels, "uint8")


def _factors(strength: float) -> np.ndarray:
    """Return the fixed-point factors of an enhancement, int32 (2,): stronger and weaker."""
    return np.rint((1 + np.array([0.9, -0.9]) * strength) * _ONE).astype(np.int32)


# --- operations that move pixels ------------------------------------------------------------------


def _move(pixels: Any, operation: Any, sign: Any, strength: float) -> Any:
    """Apply the geometric operations: nearest pixel, black outside the image."""
    count, height, width, channels = pixels.shape
    tables = ops.convert_to_tensor(_sources(height, width, strength))
    positions = ops.take(tables, operation * 2 + sign, axis=0)  # (N, H·W)
    first = ops.arange(count, dtype="int32")[:, None] * (height * width)
    flat = ops.reshape(pixels, (count * height * width, channels))
    images = ops.take(flat, first + ops.maximum(positions, 0), axis=0)
    images = ops.where((positions >= 0)[..., None], images, ops.zeros_like(images))
    return ops.reshape(images, (count, height, width, channels))


@cache
def _sources(height: int, width: int, strength: float) -> np.ndarray:
    """Return the source position of each pixel, int32 (2·operations, H·W), -1 for outside.

    Rows 2k and 2k + 1 belong to operation k with sign 0 and 1.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    tables = []
    for name in OPERATIONS:
        for sign in (1, -1):
            y, x = rows + 0.5, columns + 0.5
            if name == "shear_x":
                x = x + sign * 0.3 * strength * y
            elif name == "shear_y":
                y = y + sign * 0.3 * strength * x
            elif name == "translate_x":
                x = x + sign * int(150 / 331 * width * strength)
            elif name == "translate_y":
                y = y + sign * int(150 / 331 * height * strength)
            elif name == "rotate":
                angle = math.radians(sign * 30 * strength)
                dx, dy = x - width / 2, y - height / 2
                x = math.cos(angle) * dx - math.sin(angle) * dy + width / 2
                y = math.sin(angle) * dx + math.cos(angle) * dy + height / 2
            # Round first, because an error of 1e-15 must not change the floor of an integer.
            row, column = (np.floor(np.round(v, 9)).astype(np.int64) for v in (y, x))
            is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            tables.append(np.where(is_inside, row * width + column, -1))
    return np.array(tables, np.int32)


# --- operations on single pixels ------------------------------------------------------------------


def _by_tables(pixels: Any, operation: Any, sign: Any, strength: float) -> Any:
    """Apply the operations that are a table of levels per image and channel."""
    count, height, width, channels = pixels.shape
    channel = ops.arange(count * channels, dtype="int32")
    first = ops.reshape(channel * _LEVELS, (count, 1, 1, channels))
    position = first + ops.cast(pixels, "int32")

    static = ops.convert_to_tensor(_static_tables(strength))
    tables = ops.take(static, operation * 2 + sign, axis=0)[:, None, :]  # (N, 1, 256)
    ones = ops.ones(count * height * width * channels, "int32")
    histogram = ops.segment_sum(ones, ops.reshape(position, (-1,)), count * channels * _LEVELS)
    histogram = ops.reshape(histogram, (count, channels, _LEVELS))
    factor = ops.take(ops.convert_to_tensor(_factors(strength)), sign)[:, None, None]
    levels = ops.arange(_LEVELS, dtype="int32")[None, None, :]
    mean = _mean_luma(ops.cast(pixels, "int32"))[:, None, None]
    for name, table in (
        ("contrast", _blend(mean, levels, factor)),
        ("autocontrast", _autocontrast(histogram)),
        ("equalize", _equalize(histogram)),
    ):
        is_drawn = ops.equal(operation, OPERATIONS.index(name))[:, None, None]
        tables = ops.where(is_drawn, table, tables)
    tables = ops.broadcast_to(tables, (count, channels, _LEVELS))
    return ops.take(ops.reshape(ops.cast(tables, "uint8"), (-1,)), position)


@cache
def _static_tables(strength: float) -> np.ndarray:
    """Return the tables of levels, int32 (2·operations, 256), that do not depend on the image."""
    levels = np.arange(_LEVELS)
    tables = []
    for name in OPERATIONS:
        for factor in _factors(strength).astype(np.int64):
            table = levels
            if name == "brightness":
                table = np.minimum(levels * factor // _ONE, _LEVELS - 1)
            elif name == "posterize":
                count = round(4 * strength)
                table = levels >> count << count
            elif name == "solarize":
                is_inverted = (levels >= 255 * (1 - strength)) & (strength > 0)
                table = np.where(is_inverted, 255 - levels, levels)
            tables.append(table)
    return np.array(tables, np.int32)


def _autocontrast(histogram: Any) -> Any:
    """Stretch the levels of each channel, int32 (N, C, 256), so that they range from 0 to 255."""
    levels = ops.arange(_LEVELS, dtype="int32")
    is_present = histogram > 0
    low = ops.min(ops.where(is_present, levels, _LEVELS), axis=-1, keepdims=True)
    high = ops.max(ops.where(is_present, levels, -1), axis=-1, keepdims=True)
    stretched = ops.floor_divide((levels - low) * 255, ops.maximum(high - low, 1))
    return ops.where(high > low, ops.clip(stretched, 0, 255), levels)


def _equalize(histogram: Any) -> Any:
    """Make the levels of each channel, int32 (N, C, 256), approximately equally frequent."""
    levels = ops.arange(_LEVELS, dtype="int32")
    is_present = histogram > 0
    high = ops.max(ops.where(is_present, levels, -1), axis=-1, keepdims=True)
    of_highest = ops.sum(ops.where(ops.equal(levels, high), histogram, 0), axis=-1, keepdims=True)
    total = ops.sum(histogram, axis=-1, keepdims=True)
    step = ops.floor_divide(total - of_highest, 255)
    counts_below = ops.cumsum(histogram, axis=-1) - histogram
    table = ops.floor_divide(ops.floor_divide(step, 2) + counts_below, ops.maximum(step, 1))
    return ops.where(step > 0, ops.minimum(table, 255), levels)


# --- blends ---------------------------------------------------------------------------------------


def _blend(base: Any, levels: Any, factor: Any) -> Any:
    """Return base + factor · (levels - base) in 0..255, int32; the factor is fixed-point."""
    change = ops.floor_divide(factor * (levels - base), _ONE)
    return ops.clip(base + change, 0, _LEVELS - 1)


def _luma(levels: Any) -> Any:
    """Return gray levels, int32 (N, H, W, 1), of (N, H, W, C)."""
    if levels.shape[-1] == 1:
        return levels
    weighted = levels * ops.convert_to_tensor(np.array(_LUMA, np.int32))
    summed = ops.sum(weighted, axis=-1, keepdims=True) + _ONE // 2
    return ops.floor_divide(summed, _ONE)


def _mean_luma(levels: Any) -> Any:
    """Return the mean gray level of each image, rounded, int32 (N,)."""
    luma = _luma(levels)
    pixels = luma.shape[1] * luma.shape[2]
    return ops.floor_divide(2 * ops.sum(luma, axis=(1, 2, 3)) + pixels, 2 * pixels)


def _smoothed(levels: Any) -> Any:
    """Average each pixel, with weight 5, with its eight neighbors; edges are unchanged."""
    _, height, width, _ = levels.shape
    if height < 3 or width < 3:
        return levels
    inner = [
        levels[:, top : height - 2 + top, left : width - 2 + left]
        for top in range(3)
        for left in range(3)
    ]
    total = sum(inner[1:], inner[0]) + 4 * inner[4]
    smooth = ops.floor_divide(2 * total + 13, 26)
    rows = ops.concatenate([levels[:, 1:-1, :1], smooth, levels[:, 1:-1, -1:]], axis=2)
    return ops.concatenate([levels[:, :1], rows, levels[:, -1:]], axis=1)
