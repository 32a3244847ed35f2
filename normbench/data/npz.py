"""A user's data set in one NumPy file: ``dataset=npz dataset.path=FILE`` (:class:`Npz`).

The file need not be trusted: nothing in it is unpickled, and headers are checked before an array is
unpacked. Arrays that are large compared with the machine's memory are unpacked to disk.
"""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normbench.data.base import Arrays
from normbench.data.content import (
    Contents,
    ContentSource,
    Labels,
    cache_folder,
    find_path,
    refuse_missing,
    stamp_of,
)
from normbench.data.streaming import empty
from normbench.errors import UserError

SPLITS = ("train", "validation", "test")

LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {
        "train": ("x_train", "y_train"),
        "validation": ("x_val", "y_val"),
        "test": ("x_test", "y_test"),
    },
    {
        "train": ("train_images", "train_labels"),
        "validation": ("val_images", "val_labels"),
        "test": ("test_images", "test_labels"),
    },
)
"""Names of the images and labels: as in Keras's files, and as in MedMNIST's."""

MEMBERS = 1000
"""Largest number of arrays in a file."""
_HEADER = 10_000  # largest header of an array in bytes, NumPy's own limit
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of np.savez and np.savez_compressed
_CHUNK = 1 << 20
_IMAGES = 1024  # converted at once


class Npz(ContentSource):
    """Arrays in a file of ``np.savez``: images (N, H, W) or (N, H, W, C), labels (N,) or (N, 1).

    Images are uint8, or floats in [0, 1], which are rounded to the 256 levels of uint8. Labels are
    whole numbers; the classes are the distinct labels of the training images, in ascending order.

    Args:
        path: The file.
        title: Name of the data set in tables; the file's name by default.
        content: Hash of the images, filled in when the config is composed.
    """

    name = "npz"

    def __init__(self, path: str, title: str = "", content: str = "") -> None:
        self.path = find_path(path, "file")
        super().__init__(str(self.path), title or self.path.stem, content)

    def resolved(self) -> dict[str, Any]:
        return {"path": str(self.path)}

    def stamp(self) -> list[Any]:
        refuse_missing(self.path, "file")
        return stamp_of(self.path)

    def reading(self) -> dict[str, Any]:
        return {}

    def read(self) -> Contents:
        return contents_of(read_arrays(self.path), self.path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of images and labels in a file, by name.

    Raises:
        UserError: The file is not an npz file, is damaged, lacks an array, or has one that fits
            neither in memory nor on the disk or is not a plain array of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MEMBERS:
                raise UserError(f"{path} has {len(members):,} members, more than {MEMBERS:,}")
            files = [info for info in members if info.filename.endswith(".npy")]
            infos = {info.filename.removesuffix(".npy"): info for info in files}
            names = _wanted(list(infos), path)
            return {name: _read_member(archive, infos[name], path) for name in names}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        if _starts_as_zip(path):
            raise UserError(f"{path} is damaged: {error}") from error
        raise UserError(
            f"{path} is not an npz file (a zip archive of arrays, as np.savez writes it)"
        ) from error
    except (ValueError, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _wanted(names: list[str], path: Path) -> list[str]:
    """Return the names of the arrays to read.

    Raises:
        UserError: An array is missing.
    """
    name_set = set(names)

    def required(layout: Mapping[str, tuple[str, str]]) -> list[str]:
        return [name for split in ("train", "test") for name in layout[split]]

    def present(layout: Mapping[str, tuple[str, str]]) -> int:
        return len(name_set & {name for pair in layout.values() for name in pair})

    layout = max(LAYOUTS, key=present)
    missing = [name for name in required(layout) if name not in name_set]
    validation = [name for name in layout["validation"] if name in name_set]
    if len(validation) == 1:
        missing += [name for name in layout["validation"] if name not in name_set]
    if missing:
        text = ", ".join(sorted(names)[:20]) or "no arrays"
        other = ", ".join(required(next(names for names in LAYOUTS if names is not layout)))
        raise UserError(
            f"{path} lacks {', '.join(missing)}: it has {text} (needed: "
            f"{', '.join(required(layout))}; or {other})"
        )
    return [*required(layout), *validation]


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """Unpack one array of numbers; its header determines how much is read.

    Raises:
        UserError: It contains Python objects, or its size does not match its header.
    """
    name = info.filename.removesuffix(".npy")
    if info.compress_type not in _METHODS:
        raise UserError(f"{path}: {name} is packed in a way that np.savez does not use")
    with archive.open(info) as member, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns about headers written by Python 2
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(member, _HEADER)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(member, _HEADER)
        else:
            raise UserError(f"{path}: {name} is not an array of numbers")
        shape, is_fortran, dtype = header
        if dtype.hasobject or dtype.kind not in "biuf":
            kind = "Python objects, which are not read" if dtype.hasobject else f"{dtype} values"
            raise UserError(f"{path}: {name} holds {kind}; images and labels must be numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != info.file_size - member.tell():
            raise UserError(f"{path}: {name} is damaged: it is not as large as its header says")
        array = empty(shape[::-1] if is_fortran else shape, dtype, cache_folder(), str(path))
        flat = array.reshape(-1).view(np.uint8)
        position = 0
        while position < size:
            chunk = member.read(min(_CHUNK, size - position))
            if not chunk:
                raise EOFError(f"{name} ends {size - position} bytes early")
            flat[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
            position += len(chunk)
        if member.read(1):  # reading to the end also verifies the CRC
            raise UserError(f"{path}: {name} is damaged: it continues after its end")
    return array.transpose() if is_fortran else array


# --- from arrays to images and labels -----------------------------------------------------------


def contents_of(arrays: Mapping[str, np.ndarray], origin: Path) -> Contents:
    """Check and convert the arrays of a file.

    Args:
        arrays: Arrays with the names of one of the ``LAYOUTS``.
        origin: The file, for messages.

    Raises:
        UserError: A shape, a type or a number does not fit.
    """
    layout = next(names for names in LAYOUTS if names["train"][0] in arrays)
    pairs = {split: layout[split] for split in SPLITS if layout[split][0] in arrays}
    first = pairs["train"][0]
    for x, _ in pairs.values():
        if arrays[x].dtype != arrays[first].dtype:
            raise UserError(
                f"{origin}: {first} is {arrays[first].dtype} and {x} is {arrays[x].dtype}: images "
                "must have one type"
            )
    result: dict[str, np.ndarray] = {}
    for split, (x, y) in pairs.items():
        images = _images(arrays[x], x, origin)
        if split != "train" and images.shape[1:] != result["train_images"].shape[1:]:
            shapes = [_by(result["train_images"].shape[1:]), _by(images.shape[1:])]
            raise UserError(f"{origin}: {first} has images of {shapes[0]}, {x} of {shapes[1]}")
        labels = _labels(arrays[y], y, origin)
        if len(images) != len(labels):
            raise UserError(f"{origin}: {x} has {len(images):,} images, {y} {len(labels):,} labels")
        if not len(images):
            raise UserError(f"{origin}: {x} is empty")
        result |= {f"{split}_images": images, f"{split}_labels": labels}
    coding = Labels(result["train_labels"])
    for split, (_, y) in pairs.items():
        result[f"{split}_labels"] = coding.encode(result[f"{split}_labels"], str(origin), y)
    return Contents(Arrays(**result), coding.names)


def _images(array: np.ndarray, name: str, origin: Path) -> np.ndarray:
    """Return images as uint8 (N, H, W, C)."""
    shape = array.shape
    if array.ndim not in (3, 4):
        raise UserError(
            f"{origin}: {name} has the shape ({_listed(shape)}); images must be (N, H, W) or "
            "(N, H, W, C)"
        )
    if array.ndim == 4 and shape[-1] > 4 and shape[1] <= 4:
        raise UserError(
            f"{origin}: {name} has the shape ({_listed(shape)}), which looks like (N, C, H, W): "
            "channels go last (np.moveaxis(x, 1, -1))"
        )
    if 0 in shape[1:]:
        raise UserError(f"{origin}: {name} has the shape ({_listed(shape)}): no pixels")
    images = array[..., None] if array.ndim == 3 else array
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise UserError(
            f"{origin}: {name} is {images.dtype}: images must be uint8, or floats in [0, 1]"
        )
    pixels = empty(images.shape, np.uint8, cache_folder(), str(origin))
    for start in range(0, len(images), _IMAGES):
        chunk = images[start : start + _IMAGES].astype(np.float64)
        if not (chunk.min() >= 0 and chunk.max() <= 1):  # also true for NaN
            values = f"{chunk.min():g}..{chunk.max():g}"
            raise UserError(
                f"{origin}: {name} is {images.dtype} with values of {values}: floats must be in "
                "[0, 1], levels of 0..255 uint8"
            )
        pixels[start : start + _IMAGES] = np.rint(chunk * 255)
    return pixels


def _labels(array: np.ndarray, name: str, origin: Path) -> np.ndarray:
    """Return labels as int64 (N,)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        one_hot = " (for one-hot labels use .argmax(1))" if array.ndim == 2 else ""
        raise UserError(
            f"{origin}: {name} has the shape ({_listed(array.shape)}); labels must be (N,) or "
            f"(N, 1){one_hot}"
        )
    if array.dtype.kind not in "iu":
        raise UserError(f"{origin}: {name} is {array.dtype}: labels must be whole numbers")
    return array.astype(np.int64)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
