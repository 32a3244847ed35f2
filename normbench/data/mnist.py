"""MNIST (LeCun, Cortes & Burges): 70,000 handwritten digits, 28×28, grey."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from normbench.data.base import Say
from normbench.data.checksums import MNIST_FILES
from normbench.data.checksums import IdxFile
from normbench.data.idx import read_family
from normbench.data.tfds_source import Examples, TfdsSource


class MNIST(TfdsSource):
    """MNIST: http://yann.lecun.com/exdb/mnist/."""

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
    """Where in a folder the files may lie: torchvision keeps them in ``MNIST/raw``."""

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
