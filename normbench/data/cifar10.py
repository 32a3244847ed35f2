"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of ten kinds of things, 32×32."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from normbench.data.base import Say
from normbench.data.checksums import CIFAR10_PACKINGS
from normbench.data.checksums import Packing
from normbench.data.cifar_files import read_cifar
from normbench.data.tfds_source import Examples, TfdsSource


class CIFAR10(TfdsSource):
    """CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar.html."""

    name = "cifar10"
    title = "CIFAR-10"
    version = "3.0.2"
    classes = 10
    shape = (32, 32, 3)
    class_names = (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    label_names: ClassVar = {"label": class_names}
    train_count = 50_000
    test_count = 10_000
    packings: ClassVar[tuple[Packing, ...]] = CIFAR10_PACKINGS

    def read(self, path: Path, say: Say) -> tuple[Examples, Examples]:
        train, test, found = read_cifar(path, self.packings, self.title)
        what = "the archive is" if found.checked else "all files are"
        say(f"{self.title}: {what} the published {found.packing.kind} version ({found.where})")
        return train, test
