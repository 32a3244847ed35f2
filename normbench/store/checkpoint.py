"""Checkpoint files: named arrays and a JSON record in one ``.npz``, checked when it is loaded.

The file is an ordinary uncompressed ``.npz``: ``numpy.load(path)["stem/kernel"]`` reads it. In
addition to the arrays it contains ``normbench.json`` with the record and the arrays' names and
dtypes. NumPy's format does not support the dtypes of `ml_dtypes`, such as bfloat16, so these arrays
are stored as unsigned integers of the same width and converted back on loading.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from normbench.store import schema
from normbench.store.files import StoreError, dumps, store_error, write_atomic

HEADER = "normbench.json"

#: Errors that reading a zip archive with flipped or missing bytes may raise. RuntimeError occurs if
#: an entry claims to be encrypted, its subclass NotImplementedError for an unknown compression.
_CORRUPTION = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    OverflowError,
)


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    """Return ``array`` in C order and with a dtype that NumPy's format supports."""
    if array.dtype.hasobject or array.dtype.names is not None:
        raise TypeError(f"array {name!r} has dtype {array.dtype}, which a checkpoint cannot hold")
    values = np.asarray(array, order="C")
    if array.dtype.isbuiltin == 2:  # registered by another package: ml_dtypes
        return values.view(f"u{array.dtype.itemsize}")
    return values


def _restored(array: np.ndarray, dtype: str) -> np.ndarray:
    """Give ``array`` the dtype it had before `_storable`."""
    if str(array.dtype) == dtype:
        return array
    import ml_dtypes

    kind = getattr(ml_dtypes, dtype, None)
    if kind is None:
        raise ValueError(f"the installed ml_dtypes has no dtype {dtype!r}")
    return array.view(np.dtype(kind))


def save(path: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    """Write ``arrays`` and the JSON record ``info`` to ``path``, atomically.

    Args:
        path: Path of the file.
        arrays: Arrays by name, of any shape and numeric dtype, including those of `ml_dtypes`.
            Names may contain slashes.
        info: A record of values that strict JSON supports.

    Raises:
        StoreError: The file cannot be written; the old one is untouched.
    """
    values = {name: np.asarray(array) for name, array in arrays.items()}
    dtypes = {name: str(array.dtype) for name, array in values.items()}
    header = dumps({"schema": 1, "arrays": dtypes, "info": dict(info)})

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(HEADER, header)
            for name, array in values.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, _storable(name, array), allow_pickle=False)

    write_atomic(path, write)


_HEADER = schema.record(
    {"schema": schema.integer(), "arrays": schema.mapping(schema.text()), "info": schema.mapping()}
)


def _header(archive: zipfile.ZipFile) -> dict[str, Any]:
    header = schema.parse_record(_entry(archive, HEADER), _HEADER)
    if header["schema"] != 1:
        raise ValueError(f"its schema is {header['schema']}, but this version of normbench reads 1")
    return header


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of an entry. `zipfile` checks its CRC once the last byte is read.

    A compressed entry is refused, because it could expand to more than the machine's memory.
    """
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def _array(data: bytes, name: str) -> np.ndarray:
    """Return the array of a ``.npy`` file.

    The size in its header is first compared with the size of the data: a damaged header must not
    make NumPy allocate terabytes.
    """
    content = io.BytesIO(data)
    version = np.lib.format.read_magic(content)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"{name} has the unknown version {version}")
    shape, _, dtype = readers[version](content)
    if math.prod(shape) * dtype.itemsize != len(data) - content.tell():
        size = len(data) - content.tell()
        raise ValueError(f"{name} has {size} bytes, which does not match its shape {shape}")
    content.seek(0)
    return np.lib.format.read_array(content, allow_pickle=False)


def load(path: Path, arrays: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return the arrays and the record of the checkpoint at ``path``, or None if there is none.

    Args:
        path: Path of the file.
        arrays: If False, only the record is read and no arrays are returned.

    Raises:
        StoreError: The file is truncated or altered, as detected by CRC-32, or cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = _header(archive)
            contents: dict[str, np.ndarray] = {}
            for name, dtype in header["arrays"].items() if arrays else ():
                array = _array(_entry(archive, f"{name}.npy"), name)
                contents[name] = _restored(array, dtype)
            return contents, header["info"]
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.strerror is None:  # not from the system: a negative offset in the archive
            raise StoreError(f"cannot read {path}: corrupt checkpoint ({error})") from error
        raise store_error("read", path, error) from error
    except _CORRUPTION as error:
        reason = str(error).strip("'\"") or type(error).__name__
        raise StoreError(f"cannot read {path}: corrupt checkpoint ({reason})") from error
