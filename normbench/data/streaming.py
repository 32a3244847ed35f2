"""Streaming of images that do not fit in memory: :func:`is_streamed` decides which do not.

A streamed data set remains in the file from which it is mapped; :class:`ImageView` is a split of
it. :func:`empty` allocates an array to decode one, on disk if memory is too small.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normbench.errors import UserError
from normbench.formats import size as as_size
from normbench.machine import image_memory, machine_memory, physical_memory

Stream = bool | Literal["auto"]
"""Values of the key ``stream``."""

LARGE = 2
"""Images are large if ``LARGE`` times their bytes do not fit in memory: while they are loaded,
there are briefly two copies, the one that was read and the backend's."""


def is_streamed(stream: Stream, title: str, needed: int) -> bool:
    """Return whether to read images from disk as they are needed.

    Args:
        stream: The key ``stream`` of the config.
        title: Name of the data set, for the message.
        needed: Bytes of all images of the three splits.

    Raises:
        UserError: ``stream`` is false, but the images do not fit in the machine's memory.
    """
    if stream == "auto":
        return LARGE * needed > image_memory(LARGE * needed)
    if not stream and needed > (memory := machine_memory()):
        raise UserError(
            f"stream=false, but {title} has images of {as_size(needed)}: this machine has "
            f"{as_size(memory)} of memory; stream=auto reads them from the disk as they are needed"
        )
    return stream


class ImageView:
    """A selection of an array's images, which are read only when they are indexed.

    It is indexed along its first axis like an array, and ``np.asarray`` reads all of it.

    Args:
        array: Images, uint8 (N, H, W, C), usually mapped from a file; or a view.
        positions: Positions of the selected images in it, int64 (M,).
    """

    def __init__(self, array: np.ndarray | ImageView, positions: np.ndarray) -> None:
        self._array = array
        self._positions = positions

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._positions), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        if isinstance(chosen, tuple):
            rows, *rest = chosen
            return self._array[(self._positions[rows], *rest)]
        return self._array[self._positions[chosen]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the images of a view are read from a file: that is a copy")
        return np.asarray(self[:], dtype)


# --- disk space -----------------------------------------------------------------------------------


def empty(shape: tuple[int, ...], dtype: Any, folder: Path, title: str) -> np.ndarray:
    """Return an array to decode images into, in memory or, if it is large, in a file.

    The file has no name and is removed with the array, so a killed process leaves nothing behind.

    Args:
        shape, dtype: Those of the array.
        folder: Folder of the file.
        title: Name of the images in messages.

    Raises:
        UserError: There is not enough disk space.
    """
    byte_count = math.prod(shape) * np.dtype(dtype).itemsize
    if LARGE * byte_count <= physical_memory():
        return np.empty(shape, dtype)
    refuse_full_disk(folder, byte_count, title)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Reserve the blocks now. If the disk is full when a mapped page is written, the process is
        # killed by a signal, which cannot be turned into an error message.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, byte_count)
        else:
            file.truncate(byte_count)
        # A plain array over the map, because indexing a memmap object is slower.
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def refuse_full_disk(folder: Path, needed: int, title: str) -> None:
    """Refuse images that do not fit on the cache's disk.

    Args:
        folder: Folder of the cache.
        needed: Bytes of the images.
        title: Name of the images in the message.

    Raises:
        UserError: There is not enough disk space.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{title} needs {as_size(needed)} for its images in {folder}, whose disk has "
            f"{as_size(free)} free: set XDG_CACHE_HOME to a folder that can hold them"
        )
