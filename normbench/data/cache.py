"""The array cache: arrays in one file, written atomically and read memory-mapped.

Layout: the magic bytes, the length of the header as a little-endian uint64, a JSON header with the
arrays' names, dtypes, shapes and offsets, then each array in C order on a page boundary. It is a
single file, so that one rename replaces everything, while readers keep the file they have open.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from normbench.data.tfds_folder import HIDDEN
from normbench.errors import NormbenchError
from normbench.store import schema
from normbench.store.files import write_atomic

_MAGIC = b"NBARRAY1"
_PAGE = 4096
_WRITTEN = 1 << 26  # bytes of an array written at once; an array may be computed slice by slice

_HEADER = schema.record(
    {
        "about": schema.mapping(),
        "size": schema.integer(0),
        "arrays": schema.sequence(
            schema.record(
                {
                    "name": schema.text(),
                    "dtype": schema.text(),
                    "shape": schema.sequence(schema.integer(0)),
                    "offset": schema.integer(0),
                }
            )
        ),
    }
)


def _up(offset: int) -> int:
    """Round up to a page."""
    return -(-offset // _PAGE) * _PAGE


def write(path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write arrays and a description of them, atomically.

    Args:
        path: Path of the file.
        arrays: Arrays by name, or objects with a shape and dtype that return slices of an array.
            They are indexed in ascending order, so that an array may be larger than memory.
        about: Description, of JSON types only.

    Raises:
        StoreError: The file cannot be written; an older one is untouched.
    """
    entries = []
    # The header contains the offsets, which depend on its length, so space is reserved for it.
    start = _up(len(json.dumps(about)) + 512 * (len(arrays) + 1))
    for name, array in arrays.items():
        entries.append(
            {"name": name, "dtype": array.dtype.str, "shape": array.shape, "offset": start}
        )
        start = _up(start + array.dtype.itemsize * math.prod(array.shape))
    header = json.dumps({"about": about, "arrays": entries, "size": start}).encode()
    head = _MAGIC + len(header).to_bytes(8, "little") + header
    if entries and len(head) > entries[0]["offset"]:
        raise ValueError("the names and shapes of the arrays do not fit into the header")

    def write_arrays(file: BinaryIO) -> None:
        file.write(head)
        for entry, array in zip(entries, arrays.values(), strict=True):
            file.seek(entry["offset"])
            for chunk in _slices(array):
                file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
        file.truncate(start)

    write_atomic(path, write_arrays)


def _slices(array: Any) -> Iterator[Any]:
    """Yield an array in slices along its first axis, each of about ``_WRITTEN`` bytes."""
    if not array.shape:
        yield array
        return
    row = array.dtype.itemsize * math.prod(array.shape[1:])
    count = max(1, _WRITTEN // max(row, 1))
    for start in range(0, array.shape[0], count):
        yield array[start : start + count]


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return the description and the arrays, memory-mapped and read-only.

    Return None if the file is missing or incomplete: a cache is rebuilt, not repaired.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                return None
            header = schema.parse_record(file.read(length), _HEADER)
        if size != header["size"]:
            return None
        buffer = np.memmap(path, np.uint8, "r")
        arrays = {}
        for entry in header["arrays"]:
            dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            end = entry["offset"] + dtype.itemsize * math.prod(shape)
            # A plain array over the map, because indexing a memmap object is slower.
            data = np.asarray(buffer[entry["offset"] : end])
            arrays[entry["name"]] = data.view(dtype).reshape(shape)
    except (OSError, TypeError, ValueError):  # TypeError: an invalid dtype
        return None
    return header["about"], arrays


# --- the folder in which a data set is assembled --------------------------------------------------


def hidden(root: Path) -> Path:
    """Return normbench's hidden folder in a data folder, creating it if needed.

    Raises:
        NormbenchError: It cannot be created.
    """
    folder = root / HIDDEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NormbenchError(
            f"cannot write in the data folder {root} ({error.strerror}): set "
            "TFDS_DATA_DIR to another one"
        ) from error
    return folder


@contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder on the file system of ``root``, and remove it afterwards.

    A lock lets only one process at a time build the data set ``name``, so its owner may remove a
    folder left behind by a killed process.

    Raises:
        NormbenchError: The data folder cannot be written, or another process holds the lock.
    """
    folder = hidden(root)
    partial = folder / f"{name}.partial"
    try:
        lock = FileLock(folder / f"{name}.lock", timeout=0)
        with lock:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout as error:
        raise NormbenchError(f"another process is writing {name} to {root}: wait for it") from error
    except OSError as error:
        raise NormbenchError(
            f"cannot write {name} to the data folder {root}: {error.strerror or error}"
        ) from error


def publish(folder: Path, final: Path) -> None:
    """Rename a finished folder to its final name.

    Raises:
        NormbenchError: A folder of that name exists by now.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(final)
    except OSError as error:
        raise NormbenchError(f"cannot rename {folder} to {final}: {error.strerror}") from error
