"""MNIST, Fashion-MNIST and binary MNIST, each with 70,000 gray images of 28×28 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from normbench.data.base import Arrays, Say, Source, silent
from normbench.data.checksums import FASHION_MNIST_FILES, MNIST_FILES, IdxFile
from normbench.data.idx import read_family
from normbench.data.tfds import Examples, TfdsSource


class MNIST(TfdsSource):
    """MNIST (LeCun, Cortes & Burges), handwritten digits: http://yann.lecun.com/exdb/mnist/."""

    name = "mnist"
    title = "MNIST"
    version = "3.0.1"
    classes = 10
    shape = (28, 28, 1)
    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    train_count = 60_000
    test_count = 10_000
    files: ClassVar[Mapping[str, IdxFile]] = MNIST_FILES
    folders: ClassVar[tuple[str, ...]] = ("mnist", "MNIST/raw", "raw")
    """Subfolders that may contain the files: torchvision uses ``MNIST/raw``."""

    def read(self, path: Path, say: Say) -> tuple[Examples, Examples]:
        arrays = read_family(path, self.files, self.title, self.folders)
        say(f"{self.title}: the content of all four files is the published one")
        train, test = (
            {
                "image": arrays[f"{prefix}-images-idx3-ubyte"][..., None],
                "label": arrays[f"{prefix}-labels-idx1-ubyte"].astype("int32"),
            }
            for prefix in ("train", "t10k")
        )
        return train, test


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), articles of clothing.

    https://github.com/zalandoresearch/fashion-mnist; the file format is that of MNIST.
    """

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    files = FASHION_MNIST_FILES
    folders = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "data/fashion", "raw")


THRESHOLD = 128
"""Lowest gray level that counts as ink in :class:`BinaryMNIST`."""


class BinaryMNIST(Source):
    """MNIST with every pixel 0 or 255, for the MNIST study of Ioffe & Szegedy 2015.

    The paper says "binary images" without giving a threshold. The data set has no files of its own:
    preparing it prepares MNIST.
    """

    name = "mnist_binary"
    title = "binary MNIST"
    classes = MNIST.classes
    shape = MNIST.shape
    class_names = MNIST.class_names
    train_count = MNIST.train_count
    test_count = MNIST.test_count

    def __init__(self) -> None:
        self._gray = MNIST()

    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        gray = self._gray.arrays(data_dir)
        return Arrays(
            binary(gray.train_images), gray.train_labels, binary(gray.test_images), gray.test_labels
        )

    def location(self, data_dir: str | Path | None = None) -> Path | None:
        return self._gray.location(data_dir)

    def state(self, data_dir: str | Path | None = None) -> str:
        return self._gray.state(data_dir)

    def prepare(self, data_dir: str | Path | None = None, say: Say = silent) -> Path | None:
        return self._gray.prepare(data_dir, say)

    def import_from(
        self, path: str | Path, data_dir: str | Path | None = None, say: Say = silent
    ) -> Path | None:
        return self._gray.import_from(path, data_dir, say)


def binary(images: np.ndarray) -> np.ndarray:
    """Set pixels below ``THRESHOLD`` to 0 and all others to 255 (uint8, any shape)."""
    return np.where(images >= THRESHOLD, np.uint8(255), np.uint8(0))
