"""Augmentation and scaling of images inside the compiled step: :class:`Images`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from keras import ops

from normbench.engine import randaugment
from normbench.engine.random import bits, further_words
from normbench.kernels.compile import compile_shared

ERASED_AREA = (0.02, 0.4)
"""Smallest and largest share of an image's area that random erasing hides (Zhong et al. 2020)."""
ERASED_ASPECT = 0.3
"""Smallest ratio of the sides of an erased rectangle; the largest is its inverse."""
_TRIES = 8  # rectangles drawn until one fits; all 8 fail for 1 image in a million
_CUTOUT, _ERASING, _JITTER, _RANDAUGMENT = 0, 1, 8, 16  # index of the first further word of each
_LEVELS = 256  # areas and ratios to draw from: integers are equal on every backend


@dataclass(frozen=True)
class Images:
    """Augmentation and scaling of a data set's images.

    Args:
        mean: Mean of each channel of the training images scaled to 0..1, float32 (C,).
        std: Standard deviation of the same, float32 (C,).
        crop_padding: Width in pixels of the border of zeros that is added to an image before a
            random crop of its original size.
        flip: Mirror half of the images left to right.
        cutout: Side in pixels of a square that is hidden in every image, with its center at a
            random pixel, so that part of it may lie outside (DeVries & Taylor 2017).
        erasing: Probability of hiding a random rectangle of an image (Zhong et al. 2020,
            algorithm 1).
        jitter: Largest relative change of brightness, contrast and saturation.
        randaugment: Number of RandAugment operations on each image (Cubuk et al. 2020).
        magnitude: Strength of these operations, 0..30.

    Images are cropped and flipped, jittered, changed by RandAugment, and finally covered in part:
    hidden pixels get the mean color of the training images.
    """

    mean: np.ndarray
    std: np.ndarray
    crop_padding: int
    flip: bool
    cutout: int = 0
    erasing: float = 0.0
    jitter: float = 0.0
    randaugment: int = 0
    magnitude: int = 9

    @property
    def augments(self) -> bool:
        """Whether images are changed before they are scaled."""
        moves = self.crop_padding or self.flip
        return bool(moves or self.cutout or self.erasing or self.jitter or self.randaugment)

    @property
    def offset(self) -> np.ndarray:
        """Value subtracted from the pixels of each channel, float32 (C,)."""
        return (self.mean * 255.0).astype(np.float32)

    @property
    def factor(self) -> np.ndarray:
        """Factor applied to the pixels of each channel after ``offset``, float32 (C,)."""
        return (1.0 / np.maximum(self.std * 255.0, 1e-6)).astype(np.float32)

    def scale(self, pixels: Any) -> Any:
        """Scale uint8 (N, H, W, C) to float32 of mean 0 and deviation 1 over the training set."""
        return (ops.cast(pixels, "float32") - self.offset) * self.factor

    def prepare(self, pixels: Any, words: tuple[Any, Any]) -> Any:
        """Augment and scale uint8 (N, H, W, C), in one compiled pass where that is faster.

        Args:
            pixels: Images, uint8 (N, H, W, C).
            words: Two random words of each image, uint32 (N,).
        """
        # TensorFlow gathers single pixels slowly at any batch size, so XLA always pays off.
        function = compile_shared(_prepare, pixels, by_xla=True if self.augments else None)
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options |= {name: tuple(options[name].tolist()) for name in ("mean", "std")}
        return function(pixels, *words, **options)

    def augment(self, pixels: Any, words: tuple[Any, Any]) -> Any:
        """Augment images; arguments as for :meth:`prepare`, returns uint8 (N, H, W, C)."""
        images = self._moved(pixels, words)
        if self.jitter:
            word, _ = further_words(words, _JITTER)
            images = randaugment.jittered(images, word, self.jitter)
        if self.randaugment:
            random_words = [
                further_words(words, _RANDAUGMENT + i)[0] for i in range(self.randaugment)
            ]
            images = randaugment.randaugmented(images, random_words, self.magnitude)
        masks = []
        if self.cutout:
            masks.append(_cutout(pixels.shape, words, self.cutout))
        if self.erasing:
            masks.append(_erased(pixels.shape, words, self.erasing))
        color = ops.convert_to_tensor(np.rint(self.mean * 255.0).astype(np.uint8))
        for mask in masks:
            images = ops.where(mask[..., None], color, images)
        return images

    def _moved(self, pixels: Any, words: tuple[Any, Any]) -> Any:
        """Crop and flip images."""
        if not self.crop_padding and not self.flip:
            return pixels
        count, height, width, channels = pixels.shape
        choices = 2 * self.crop_padding + 1
        high, low, bit = bits(words[0], 16, 16), bits(words[0], 0, 16), bits(words[1], 0, 1)
        shift_y = ops.mod(high, choices) - self.crop_padding
        shift_x = ops.mod(low, choices) - self.crop_padding
        rows = ops.arange(height, dtype="int32")[None, :] + shift_y[:, None]
        columns = ops.arange(width, dtype="int32")[None, :]
        if self.flip:
            columns = columns + bit[:, None] * (width - 1 - 2 * columns)
        columns = columns + shift_x[:, None]
        mask = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
        rows = ops.clip(rows, 0, height - 1)
        columns = ops.clip(columns, 0, width - 1)
        image = ops.arange(count, dtype="int32")[:, None, None]
        positions = (image * height + rows[:, :, None]) * width + columns[:, None, :]
        flat = ops.reshape(pixels, (count * height * width, channels))
        images = ops.take(flat, positions, axis=0)
        return ops.where(mask[..., None], images, ops.zeros_like(images))


def _prepare(
    pixels: Any,
    word0: Any,
    word1: Any,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **options: Any,
) -> Any:
    """Compute :meth:`Images.prepare` from hashable options, so that equal ones compile once."""
    images = Images(np.asarray(mean, "float32"), np.asarray(std, "float32"), **options)
    return images.scale(images.augment(pixels, (word0, word1)))


def _cutout(shape: tuple[int, ...], words: tuple[Any, Any], side: int) -> Any:
    """Return a mask of a square at a random position in each image: bool (N, H, W)."""
    _, height, width, _ = shape
    word, _ = further_words(words, _CUTOUT)
    top = ops.mod(bits(word, 16, 16), height) - side // 2
    left = ops.mod(bits(word, 0, 16), width) - side // 2
    return _rectangle(shape, top, left, ops.full_like(top, side), ops.full_like(left, side))


def _erased(shape: tuple[int, ...], words: tuple[Any, Any], probability: float) -> Any:
    """Return a mask of a random rectangle in some of the images: bool (N, H, W)."""
    _, height, width, _ = shape
    chance, position = further_words(words, _ERASING)
    heights, widths = (ops.convert_to_tensor(table) for table in _rectangles(height, width))
    box_height = box_width = ops.zeros_like(bits(chance, 0, 16))
    for pair in range(_TRIES // 4):
        for word in further_words(words, _ERASING + 1 + pair):
            for first in (16, 0):  # the first rectangle that fits; others are 0×0 in the tables
                index = bits(word, first, 16)
                is_set = box_height > 0
                box_height = ops.where(is_set, box_height, ops.take(heights, index))
                box_width = ops.where(is_set, box_width, ops.take(widths, index))
    top = ops.mod(bits(position, 16, 16), height - box_height + 1)
    left = ops.mod(bits(position, 0, 16), width - box_width + 1)
    is_drawn = bits(chance, 0, 16) < round(probability * 2**16)
    return is_drawn[:, None, None] & _rectangle(shape, top, left, box_height, box_width)


def _rectangle(shape: tuple[int, ...], top: Any, left: Any, box_height: Any, box_width: Any) -> Any:
    """Return a mask of a rectangle in each image, bool (N, H, W); its sides are int32 (N,)."""
    _, height, width, _ = shape
    rows = ops.arange(height, dtype="int32")[None, :] - top[:, None]
    columns = ops.arange(width, dtype="int32")[None, :] - left[:, None]
    in_rows = (rows >= 0) & (rows < box_height[:, None])
    in_columns = (columns >= 0) & (columns < box_width[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


@cache
def _rectangles(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return heights and widths of erased rectangles, int32 (65536,), by 16 random bits.

    The upper 8 bits choose the area, the lower 8 the ratio of the sides, both uniformly. A
    rectangle that does not fit into the image is 0×0.
    """
    steps = (np.arange(_LEVELS) + 0.5) / _LEVELS
    area = height * width * (ERASED_AREA[0] + steps * (ERASED_AREA[1] - ERASED_AREA[0]))
    ratio = ERASED_ASPECT + steps * (1 / ERASED_ASPECT - ERASED_ASPECT)
    heights = np.rint(np.sqrt(area[:, None] * ratio)).astype(np.int32).reshape(-1)
    widths = np.rint(np.sqrt(area[:, None] / ratio)).astype(np.int32).reshape(-1)
    mask = (heights < height) & (widths < width) & (heights > 0) & (widths > 0)
    return np.where(mask, heights, 0).astype(np.int32), np.where(mask, widths, 0).astype(np.int32)


def _within(positions: Any, length: int) -> Any:
    return (positions >= 0) & (positions < length)
