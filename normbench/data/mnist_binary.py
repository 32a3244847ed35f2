"""MNIST in black and white: each pixel 0 or 1, as in the MNIST study of Ioffe & Szegedy 2015."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normbench.data.base import Arrays, Say, Source, silent
from normbench.data.mnist import MNIST

THRESHOLD = 128
"""Levels from which on a pixel is ink; the paper says "binary images" and no more."""


class BinaryMNIST(Source):
    """MNIST with every pixel 0 or 255. It has no files of its own: preparing it prepares MNIST."""

    name = "mnist_binary"
    title = "binary MNIST"
    classes = MNIST.classes
    shape = MNIST.shape
    class_names = MNIST.class_names
    train_count = MNIST.train_count
    test_count = MNIST.test_count

    def __init__(self) -> None:
        self._grey = MNIST()

    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        grey = self._grey.arrays(data_dir)
        return Arrays(
            binary(grey.train_images), grey.train_labels, binary(grey.test_images), grey.test_labels
        )

    def location(self, data_dir: str | Path | None = None) -> Path | None:
        return self._grey.location(data_dir)

    def state(self, data_dir: str | Path | None = None) -> str:
        return self._grey.state(data_dir)

    def prepare(self, data_dir: str | Path | None = None, say: Say = silent) -> Path | None:
        return self._grey.prepare(data_dir, say)

    def import_from(
        self, path: str | Path, data_dir: str | Path | None = None, say: Say = silent
    ) -> Path | None:
        return self._grey.import_from(path, data_dir, say)


def binary(images: np.ndarray) -> np.ndarray:
    """Return uint8 images of any shape with 0 where they are below ``THRESHOLD``, else 255."""
    return np.where(images >= THRESHOLD, np.uint8(255), np.uint8(0))
