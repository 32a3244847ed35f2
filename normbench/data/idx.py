"""The idx files of the MNIST family: :func:`read_family` unpacks, checks and decodes them.

Format: two zero bytes, a type byte (0x08, unsigned byte), the number of dimensions, each dimension
as a big-endian uint32, then the bytes in C order (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import hashlib
import shlex
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normbench.data.checksums import IDX_NAMES, IDX_SETS, IdxFile
from normbench.data.files import listing, read
from normbench.errors import UserError

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
_MOST = 1 << 26  # the largest file of the family has 47 million bytes


def header(data: bytes) -> tuple[tuple[int, ...], int] | None:
    """Return the dimensions in an idx file and the length of its header; None if it is not one."""
    if len(data) < 4 or data[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        return None
    end = 4 + 4 * data[3]
    if data[3] == 0 or len(data) < end:
        return None
    return tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, end, 4)), end


def decode(data: bytes) -> np.ndarray:
    """Return the uint8 array in an idx file.

    Raises:
        ValueError: ``data`` is not an idx file of unsigned bytes, or is incomplete.
    """
    layout = header(data)
    if layout is None:
        raise ValueError("not an idx file of unsigned bytes")
    shape, start = layout
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def unpack(data: bytes, path: Path, official: int | None = None) -> bytes:
    """Unpack a gzip file; data that is not gzip is returned unchanged.

    Args:
        data: The bytes of the file.
        path: Path of the file, for messages.
        official: Size of the official packed file in bytes, for messages.

    Raises:
        UserError: The gzip stream is truncated or corrupted.
    """
    if not data.startswith(_GZIP):
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(data, _MOST)
    except zlib.error as error:
        raise UserError(f"{path} is corrupted: {error} ({len(data)} bytes)") from error
    if not stream.eof:
        if stream.unconsumed_tail:
            raise UserError(f"{path} unpacks to more than {_MOST} bytes (the limit)")
        length = (
            f"{len(data)} of {official}" if official and len(data) < official else f"{len(data)}"
        )
        raise UserError(f"{path} is truncated at {length} bytes: its gzip stream does not end")
    if stream.unused_data:
        raise UserError(f"{path} has {len(stream.unused_data)} foreign bytes after its gzip stream")
    return content


def _owner(data: bytes) -> tuple[str, str] | None:
    """Return the data set and the file name if ``data`` is a known idx file."""
    digest = hashlib.sha256(data).hexdigest()
    for name, (_, files) in IDX_SETS.items():
        for file, published in files.items():
            if published.sha256 == digest:
                return name, file
    return None


def _wrong(path: Path, data: bytes, file: str, expected: IdxFile, title: str) -> UserError:
    """Build the error for a file whose content is not the published one."""
    owner = _owner(data)
    if owner is not None:
        name, other = owner
        owner_title = IDX_SETS[name][0]
        if owner_title == title:
            return UserError(f"{path} holds {title}'s {other}, not {file}: rename it")
        return UserError(
            f"{path} is a file of {owner_title} ({other}), not of {title}: "
            f"normbench data import {name} --from {shlex.quote(str(path.parent))}"
        )
    layout = header(data)
    if layout is None:
        return UserError(
            f"{path} is not an idx file of unsigned bytes: it starts with "
            f"{data[:4].hex() or 'nothing'}, not with 0000080{len(expected.shape)}"
        )
    shape, start = layout
    if shape != expected.shape:
        actual, expected_shape = ("x".join(map(str, s)) for s in (shape, expected.shape))
        return UserError(f"{path} holds {actual} values, {title}'s {file} has {expected_shape}")
    size = start + int(np.prod(shape, dtype=np.int64))
    if len(data) < size:
        return UserError(f"{path} is truncated at {len(data)} of {size} bytes (unpacked)")
    if len(data) > size:
        return UserError(f"{path} has {len(data) - size} bytes too many ({size} expected)")
    return UserError(
        f"{path} is corrupted, or not {title}: its content has sha256 "
        f"{hashlib.sha256(data).hexdigest()[:16]}…, the published file {expected.sha256[:16]}…"
    )


def _find(folder: Path, file: str) -> Path | None:
    """Return the file ``file`` in ``folder``, packed or not, under any of its names."""
    for name in (file, file.replace("-idx", ".idx")):
        for candidate in (folder / f"{name}.gz", folder / name):
            if candidate.is_file():
                return candidate
    return None


def read_family(
    path: Path, files: Mapping[str, IdxFile], title: str, folders: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Read the four files of a data set of the MNIST family.

    Args:
        path: The folder with the files, or one of the four.
        files: Published checksums by file name.
        title: Name of the data set in messages.
        folders: Subfolders of ``path`` to search, too.

    Returns:
        The uint8 array of each file by name, [N, H, W] or [N], checked against its checksum.

    Raises:
        UserError: A file is missing, unreadable, truncated, corrupted or another data set's.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    start = path if path.is_dir() else path.parent
    for folder in (start, *(start / name for name in folders)):
        if any(_find(folder, file) for file in IDX_NAMES):
            break
    else:
        raise UserError(
            f"{start} does not contain {title}: expected {', '.join(IDX_NAMES)}, each with or "
            f"without .gz; found {listing(start)}"
        )
    arrays = {}
    for file in IDX_NAMES:
        file_path = _find(folder, file)
        if file_path is None:
            raise UserError(f"{folder} lacks {file} (with or without .gz), which {title} needs")
        expected = files[file]
        data = unpack(read(file_path, _MOST), file_path, expected.packed)
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise _wrong(file_path, data, file, expected, title)
        arrays[file] = decode(data)
    return arrays
