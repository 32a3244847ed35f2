"""Arrays in one file, written atomically and read memory-mapped.

Layout: the magic bytes, the length of the header as a little-endian uint64, a JSON header with the
arrays' names, dtypes, shapes and offsets, then each array in C order on a page boundary. One file,
so that one rename replaces all of it while readers keep the one they have.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from normbench.data.tfds_folder import HIDDEN
from normbench.errors import NormbenchError
from normbench.store import schema

_MAGIC = b"NBARRAY1"
_PAGE = 4096

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


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write arrays and what they are about, whole or not at all.

    Raises:
        OSError: the file cannot be written; an older one is untouched.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    entries = []
    # The header holds the offsets and its length moves them: leave it room to spare.
    start = _up(len(json.dumps(about)) + 512 * (len(whole) + 1))
    for name, array in whole.items():
        entries.append(
            {"name": name, "dtype": array.dtype.str, "shape": array.shape, "offset": start}
        )
        start = _up(start + array.nbytes)
    header = json.dumps({"about": about, "arrays": entries, "size": start}).encode()
    head = _MAGIC + len(header).to_bytes(8, "little") + header
    if entries and len(head) > entries[0]["offset"]:
        raise ValueError("the names and shapes of the arrays do not fit into the header")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(head)
            for entry, array in zip(entries, whole.values(), strict=True):
                file.seek(entry["offset"])
                file.write(array.reshape(-1).view(np.uint8).data)
            file.truncate(start)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return what the arrays are about and the arrays, memory-mapped and read-only.

    None where there is no such file, or not a whole one: a cache is made again, not mended.
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
        mapped = np.memmap(path, np.uint8, "r")
        arrays = {}
        for entry in header["arrays"]:
            dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            end = entry["offset"] + dtype.itemsize * math.prod(shape)
            # A plain array over the map: indexing a memmap object costs more, and gains nothing.
            part = np.asarray(mapped[entry["offset"] : end])
            arrays[entry["name"]] = part.view(dtype).reshape(shape)
    except (OSError, TypeError, ValueError):  # TypeError: a dtype that is none
        return None
    return header["about"], arrays


# --- A place beside the data sets where one is made before it gets its name -----------------------


def hidden(root: Path) -> Path:
    """Return normbench's own folder in a data folder, making it where it is not there.

    Raises:
        NormbenchError: it cannot be made.
    """
    folder = root / HIDDEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NormbenchError(
            f"cannot write in the data folder {root} ({error.strerror}): name another one in "
            "TFDS_DATA_DIR"
        ) from error
    return folder


@contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder on the file system of ``root`` that is gone afterwards.

    One process at a time makes a data set of one name. A folder that a killed process left is
    removed by the next one: whoever holds the lock knows that nobody else works in it.

    Raises:
        NormbenchError: the data folder cannot be written, or another process is at it.
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
        raise NormbenchError(
            f"another process is bringing {name} into {root}: wait for it"
        ) from error
    except OSError as error:
        raise NormbenchError(
            f"cannot bring {name} into the data folder {root}: {error.strerror or error}"
        ) from error


def publish(made: Path, final: Path) -> None:
    """Give a finished folder its name.

    Raises:
        NormbenchError: something else has that name by now.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(final)
    except OSError as error:
        raise NormbenchError(f"cannot rename {made} to {final}: {error.strerror}") from error
