"""Augmentation and scaling of images inside the compiled step: :class:`Images`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from normbench.kernels.compile import compile_shared


@dataclass(frozen=True)
class Images:
    """How a data set's images are augmented and scaled.

    Args:
        mean: Mean of each channel of the training images scaled to 0..1, float32 (C,).
        std: Standard deviation of the same, float32 (C,).
        crop_padding: Width in pixels of the border of zeros that is added to an image before a
            random crop of its original size.
        flip: Mirror half of the images left to right.
    """

    mean: np.ndarray
    std: np.ndarray
    crop_padding: int
    flip: bool

    @property
    def offset(self) -> np.ndarray:
        """Value that is subtracted from the pixels of each channel, float32 (C,)."""
        return (self.mean * 255.0).astype(np.float32)

    @property
    def factor(self) -> np.ndarray:
        """Value that the pixels of each channel are then multiplied by, float32 (C,)."""
        return (1.0 / np.maximum(self.std * 255.0, 1e-6)).astype(np.float32)

    def scale(self, pixels: Any) -> Any:
        """Scale uint8 (N, H, W, C) to float32 of mean 0 and deviation 1 over the training set."""
        return (ops.cast(pixels, "float32") - self.offset) * self.factor

    def prepare(self, pixels: Any, words: tuple[Any, Any]) -> Any:
        """Crop, flip and scale uint8 (N, H, W, C), in one compiled pass where that is faster.

        Args:
            pixels: Images, uint8 (N, H, W, C).
            words: Two random words of each image, uint32 (N,).
        """
        augments = bool(self.crop_padding or self.flip)
        # TensorFlow gathers single pixels slowly at any batch size, so XLA always pays for that.
        function = compile_shared(_prepare, pixels, by_xla=True if augments else None)
        return function(
            pixels,
            *words,
            mean=tuple(self.mean.tolist()),
            std=tuple(self.std.tolist()),
            crop_padding=self.crop_padding,
            flip=self.flip,
        )

    def augment(self, pixels: Any, words: tuple[Any, Any]) -> Any:
        """Crop and flip images; arguments as for :meth:`prepare`."""
        if not self.crop_padding and not self.flip:
            return pixels
        count, height, width, channels = pixels.shape
        choices = 2 * self.crop_padding + 1
        high, low, bit = _bits(words[0], 16, 16), _bits(words[0], 0, 16), _bits(words[1], 0, 1)
        shift_y = ops.mod(high, choices) - self.crop_padding
        shift_x = ops.mod(low, choices) - self.crop_padding
        rows = ops.arange(height, dtype="int32")[None, :] + shift_y[:, None]
        columns = ops.arange(width, dtype="int32")[None, :]
        if self.flip:
            columns = columns + bit[:, None] * (width - 1 - 2 * columns)
        columns = columns + shift_x[:, None]
        inside = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
        rows = ops.clip(rows, 0, height - 1)
        columns = ops.clip(columns, 0, width - 1)
        image = ops.arange(count, dtype="int32")[:, None, None]
        positions = (image * height + rows[:, :, None]) * width + columns[:, None, :]
        flat = ops.reshape(pixels, (count * height * width, channels))
        moved = ops.take(flat, positions, axis=0)
        return ops.where(inside[..., None], moved, ops.zeros_like(moved))


def _prepare(
    pixels: Any,
    word0: Any,
    word1: Any,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_padding: int,
    flip: bool,
) -> Any:
    """Compute :meth:`Images.prepare`; the options are hashable, so that equal ones compile once."""
    images = Images(np.asarray(mean, "float32"), np.asarray(std, "float32"), crop_padding, flip)
    return images.scale(images.augment(pixels, (word0, word1)))


def _within(positions: Any, length: int) -> Any:
    return (positions >= 0) & (positions < length)


def _bits(words: Any, first: int, count: int) -> Any:
    """Return ``count`` bits of uint32 words from bit ``first`` on, as int32."""
    shifted = ops.bitwise_right_shift(words, ops.convert_to_tensor(np.uint32(first), "uint32"))
    mask = ops.convert_to_tensor(np.uint32(2**count - 1), "uint32")
    return ops.cast(ops.bitwise_and(shifted, mask), "int32")
