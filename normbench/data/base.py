"""The base class of data sets, :class:`Source`: uint8 images and their labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from normbench.errors import NormbenchError, UserError

Say = Callable[[str], None]
"""A function called with one line of progress at a time."""


def silent(line: str) -> None:
    """Ignore a line of progress."""


class MissingData(UserError):
    """The data set is not on this machine; the message says how to get it."""


class DamagedData(NormbenchError):
    """The data set on this machine is damaged or incomplete; the message names the file."""


@dataclass(frozen=True)
class Arrays:
    """All images of a data set, split as published. The arrays may be read-only.

    Attributes:
        train_images: uint8 [N, H, W, C], 0..255.
        train_labels: int32 [N], 0..classes-1.
        test_images: uint8 [M, H, W, C].
        test_labels: int32 [M].
        validation_images: uint8 [K, H, W, C], if the data set is published with a validation
            split; else None, and one is held out of the training images.
        validation_labels: int32 [K], or None.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None


class Source(ABC):
    """Base class of data sets.

    A subclass needs only the class attributes and :meth:`arrays`. It may be in any package, and is
    used by naming it as the ``_target_`` of a file in ``conf/dataset/``. The order of the images
    must be the same on every machine, because the splits are drawn by position.
    """

    name: ClassVar[str]
    """Name for ``dataset=``, in lower case."""
    title: str
    """Name of the data set in sentences and tables."""
    classes: ClassVar[int]
    shape: ClassVar[tuple[int, int, int]]
    """Height, width, channels."""
    class_names: ClassVar[tuple[str, ...]]
    train_count: ClassVar[int]
    test_count: ClassVar[int]
    validation_count: ClassVar[int] = 0
    """Number of images in a published validation split."""

    @abstractmethod
    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        """Return all images.

        Args:
            data_dir: The data folder; by default the source's usual one.

        Raises:
            MissingData: The data set is not on this machine.
            DamagedData: Files of the data set are missing or damaged.
        """

    def location(self, data_dir: str | Path | None = None) -> Path | None:
        """Return the folder of the data set, or None if it is not on this machine or has none."""
        return None

    def state(self, data_dir: str | Path | None = None) -> str:
        """Return ``ready``, ``missing``, ``built in``, or ``damaged: <why>``."""
        return "missing" if self.location(data_dir) is None else "ready"

    def prepare(self, data_dir: str | Path | None = None, say: Say = silent) -> Path | None:
        """Download the data set into the data folder, and return where it is.

        Raises:
            UserError: This source cannot be downloaded.
            NormbenchError: The download failed; nothing is left behind.
        """
        raise UserError(f"{self.name} cannot be downloaded by normbench: {type(self).__name__}"
                        " does not say how (no `prepare`)")  # fmt: skip

    def import_from(
        self, path: str | Path, data_dir: str | Path | None = None, say: Say = silent
    ) -> Path | None:
        """Import the data set from files on disk into the data folder, and return where it is.

        Raises:
            UserError: The files are incomplete or not this data set; nothing is left behind.
        """
        raise UserError(f"{self.name} cannot be imported by normbench: {type(self).__name__}"
                        " does not say how (no `import_from`)")  # fmt: skip
