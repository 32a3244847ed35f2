"""Train, validation and test splits of a source, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normbench.data.base import Arrays, Source
from normbench.data.streaming import ImageView, Stream, is_streamed
from normbench.errors import UserError

_CHUNK = 1 << 24  # pixels per bincount call, which converts each to 8 bytes


@dataclass(frozen=True)
class Split:
    """Images and labels; the arrays may be read-only.

    Attributes:
        images: uint8 [N, H, W, C], 0..255. Those of a streamed data set are read from disk when
            they are indexed.
        labels: int32 [N].
        indices: int64 [N], ascending: positions in the source's training images (or its test
            images, or its own validation images).
    """

    images: np.ndarray | ImageView
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A source that has been split.

    Attributes:
        name: As in ``dataset=``.
        classes: Number of classes.
        class_names: One per class.
        shape: Height, width, channels.
        train: The images to train on.
        validation: The images for all choices, held out of the published training images or
            published as a validation split.
        test: The published test images.
        mean: float32 [C], of ``train.images`` scaled to 0..1.
        std: float32 [C], population standard deviation of the same.
        fingerprint: Hash of all images and labels of the source; None if not requested.
        streamed: True if images are read from disk as they are needed.
    """

    name: str
    classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    validation: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    fingerprint: str | None = None
    streamed: bool = False


def _stratified_order(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the positions in an order of which every prefix is stratified by class.

    Within a class, the order is that of ``keys``. The r-th of a class's n images is placed at
    (r + ½)/n, so that each prefix has all classes in proportion, up to rounding (Webster's method).
    """
    by_class = np.lexsort((keys, labels))
    sorted_labels = labels[by_class]
    _, first, counts = np.unique(sorted_labels, return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    position = (2 * rank + 1) / (2 * np.repeat(counts, counts))
    return by_class[np.lexsort((keys[by_class], position))]


def split_indices(
    labels: np.ndarray,
    validation: int,
    split_seed: int,
    train_size: int | None = None,
    *,
    held_out_of_train: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a source's training images into images to train on and validation images.

    Both are stratified by class. The images for a larger ``validation`` include those for a smaller
    one with the same seed, and the images for a larger ``train_size`` include those for a smaller
    one with the same seed and ``validation``.

    Args:
        labels: int [N], the labels of all training images.
        validation: Number of images to hold out.
        split_seed: Seed of the draw, which uses the raw output of PCG64: NumPy guarantees that this
            is the same on every platform and in every release (NEP 19).
        train_size: Number of images to train on; by default all that are not held out.
        held_out_of_train: False for a data set with its own validation split, for which no training
            images are held out.

    Returns:
        Positions of the training and of the validation images, int64, each ascending; disjoint.

    Raises:
        UserError: A size is impossible, or the seed is negative.
    """
    classes = len(np.unique(labels))
    if held_out_of_train:
        _between(
            "validation",
            validation,
            classes,
            len(labels) - classes,
            f"of the {len(labels)} training images, at least one per class on either side",
        )
    rest = len(labels) - validation
    if train_size is not None:
        _between(
            "train_size",
            train_size,
            classes,
            rest,
            f"or null for all: {validation} of the {len(labels)} training images are held out",
        )
    if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
        raise UserError(f"split_seed {split_seed!r} is not a whole number of at least 0")
    keys = _keys(len(labels), split_seed)
    order = _stratified_order(labels, keys)
    held_out, train = order[:validation], np.sort(order[validation:])
    if train_size is not None:
        train = train[_stratified_order(labels[train], keys[train])[:train_size]]
    return np.sort(train), np.sort(held_out)


def _keys(count: int, seed: int) -> np.ndarray:
    """Draw a random word for each of ``count`` images."""
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)


def stratified_draw(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a fraction of the images, stratified by class, in the same way on every machine.

    Args:
        labels: int [N].
        share: The fraction, in (0, 1); the number of images is rounded.
        seed: Seed of the draw.

    Returns:
        Positions, int64, ascending.
    """
    order = _stratified_order(labels, _keys(len(labels), seed))
    return np.sort(order[: round(share * len(labels))])


def sizes(source: Source, validation: int | None, train_size: int | None) -> tuple[int, int]:
    """Return the numbers of training and validation images of a source after :func:`load`.

    Raises:
        UserError: As for :func:`load`, as far as the numbers alone decide.
    """
    held_out = _held_out(source, source.train_count, source.classes, validation)
    return (source.train_count - held_out if train_size is None else train_size), (
        held_out or source.validation_count
    )


def _held_out(source: Source, images: int, classes: int, validation: int | None) -> int:
    """Return the number of training images to hold out for validation.

    Args:
        source: The data set.
        images: Number of its training images.
        classes: Number of their classes.
        validation: As in the config: a number, or None for the published validation split, or a
            tenth of the training images if there is none.
    """
    if not source.validation_count:
        return max(classes, images // 10) if validation is None else validation
    if validation is not None:
        raise UserError(
            f"{source.title} has {source.validation_count} validation images of its own: "
            f"dataset.validation must be null for it, got {validation!r}"
        )
    return 0


def _between(name: str, value: int, least: int, most: int, reason: str) -> None:
    """Refuse a size that is not a whole number in ``least``..``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} {value!r} is not possible: allowed {least}..{most} ({reason})")


def channel_statistics(images: np.ndarray | ImageView) -> tuple[np.ndarray, np.ndarray]:
    """Return each channel's mean and standard deviation, for pixels scaled to 0..1.

    They are computed from an integer histogram of the 256 levels, so only the end result is
    rounded.

    Args:
        images: uint8 [N, H, W, C].

    Returns:
        Mean and population standard deviation, float32 [C].
    """
    levels = np.arange(256)
    channels = images.shape[-1]
    histograms = np.zeros((channels, 256), np.int64)
    size = max(1, _CHUNK // max(1, math.prod(images.shape[1:-1])))
    for start in range(0, len(images), size):
        chunk = images[start : start + size].reshape(-1, channels)
        for channel in range(channels):
            histograms[channel] += np.bincount(chunk[:, channel], minlength=256)
    means, stds = [], []
    for histogram in histograms:
        # Python integers, because the square of the sum overflows int64 for a large data set.
        count, total, squares = (
            int(histogram.sum()), int(histogram @ levels), int(histogram @ levels**2)
        )  # fmt: skip
        means.append(total / (255 * count))
        stds.append((squares * count - total * total) ** 0.5 / (255 * count))
    return np.array(means, np.float32), np.array(stds, np.float32)


def load(
    source: Source,
    validation: int | None,
    split_seed: int,
    train_size: int | None = None,
    data_dir: str | Path | None = None,
    fingerprint: Callable[[Arrays], str] | None = None,
    stream: Stream = False,
) -> Dataset:
    """Load a source and split it; see `split_indices` for the other arguments.

    Args:
        validation: Number of training images to hold out; None for the published validation split,
            or a tenth if there is none.
        fingerprint: Computes ``Dataset.fingerprint`` from all images and labels.
        stream: The key ``stream``: whether to read images from disk as they are needed.

    Raises:
        MissingData: The data set is not on this machine.
        DamagedData: Its files are missing or damaged.
        UserError: A size is impossible, or the images do not fit in memory.
    """
    arrays = source.arrays(data_dir)
    labels = arrays.train_labels
    count = _held_out(source, len(labels), source.classes, validation)
    train_indices, held_out_indices = split_indices(
        labels, count, split_seed, train_size, held_out_of_train=not source.validation_count
    )
    images = len(train_indices) + len(held_out_indices) + len(arrays.test_labels)
    if arrays.validation_labels is not None:
        images += len(arrays.validation_labels)
    byte_count = images * math.prod(arrays.train_images.shape[1:])
    streamed = is_streamed(stream, source.title, byte_count)

    def part(positions: np.ndarray) -> Split:
        all_images = arrays.train_images
        view = ImageView(all_images, positions) if streamed else all_images[positions]
        return Split(view, labels[positions], positions)

    if arrays.validation_images is not None and arrays.validation_labels is not None:
        positions = np.arange(len(arrays.validation_labels))
        held_out_split = Split(arrays.validation_images, arrays.validation_labels, positions)
    else:
        held_out_split = part(held_out_indices)
    train = part(train_indices)
    mean, std = channel_statistics(train.images)
    return Dataset(
        name=source.name,
        classes=source.classes,
        class_names=source.class_names,
        shape=source.shape,
        train=train,
        validation=held_out_split,
        test=Split(arrays.test_images, arrays.test_labels, np.arange(len(arrays.test_labels))),
        mean=mean,
        std=std,
        fingerprint=None if fingerprint is None else fingerprint(arrays),
        streamed=streamed,
    )
