"""Safe reading of tar archives from untrusted sources: :func:`read_members`.

An archive of a few kilobytes can unpack to terabytes, and Python's ``tarfile`` reads a header of
any size into memory before it looks at it. The content is therefore unpacked piece by piece,
headers and members are limited to bounds that no archive of a data set comes near, and so is the
decompressor's memory. Anything beyond is refused within seconds.
"""

from __future__ import annotations

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, cast

from normbench.errors import UserError

MEMBERS = 1000
"""Largest number of members in an archive; the published ones have ten."""

EXTENDED = 1 << 16
"""Limit on the total bytes of headers longer than a block (long names, pax headers)."""

CONTENT = 1 << 29
"""Limit on the unpacked bytes of an archive; the largest published one has 186 million."""

KEPT = 200 << 20
"""Limit on the total bytes of all wanted files; the largest data set has 186 million."""

_CHUNK = 1 << 16
_DECODER_MEMORY = 128 << 20

_FORMATS: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(memlimit=_DECODER_MEMORY)),
    (b"\x5d\0\0", lambda: lzma.LZMADecompressor(memlimit=_DECODER_MEMORY)),
)


class _Stream:
    """The unpacked content of a file as a forward-only stream, for ``tarfile`` to read.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        start = self._file.read(6)
        self._file.seek(0)
        self._make = next((make for magic, make in _FORMATS if start.startswith(magic)), None)
        self._decoder: Any = None if self._make is None else self._make()
        self._packed = b""  # read from the file, not yet unpacked
        self._ready = b""  # unpacked, not yet returned
        self._position = 0
        self._extended = 0

    @property
    def is_packed(self) -> bool:
        return self._decoder is not None

    def close(self) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Skip forward; ``tarfile`` seeks backward only if a header has a negative size."""
        if position < self._position:
            raise tarfile.ReadError("a member that ends before it begins")
        if self._decoder is None:
            self._position = self._file.seek(position)
            return
        while self._position < position:
            if not self.take(min(position - self._position, _CHUNK)):
                return

    def read(self, size: int) -> bytes:
        """Return the bytes of a header; :meth:`take` reads everything else."""
        if size > tarfile.BLOCKSIZE:
            self._extended += size
            if self._extended > EXTENDED:
                raise UserError(
                    f"{self._path} has {self._extended:,} bytes of long headers "
                    f"(at most {EXTENDED:,} are read)"
                )
        return self.take(size)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or fewer at the end."""
        if self._decoder is None:
            data = self._file.read(size)
        else:
            parts, bytes_left = [], size
            while bytes_left:
                if not self._ready and not self._unpack():
                    break
                part, self._ready = self._ready[:bytes_left], self._ready[bytes_left:]
                parts.append(part)
                bytes_left -= len(part)
            data = b"".join(parts)
        self._position += len(data)
        if self._decoder is not None and self._position > CONTENT:
            raise UserError(
                f"{self._path} unpacks to more than {CONTENT:,} bytes, too many for a data set"
            )
        return data

    def _unpack(self) -> bool:
        """Unpack a piece into ``_ready``; return False at the end of the file."""
        assert self._make is not None
        while not self._ready:
            if self._decoder.eof:
                data = (self._decoder.unused_data or self._packed).lstrip(b"\0")
                data = data or self._file.read(_CHUNK).lstrip(b"\0")
                if not data:
                    return False
                # A file may consist of several streams.
                self._packed, self._decoder = data, self._make()
            at_end = False
            # zlib returns unread input as unconsumed_tail; the others keep it (needs_input=False).
            if not self._packed and getattr(self._decoder, "needs_input", True):
                self._packed = self._file.read(_CHUNK)
                at_end = not self._packed
            self._ready = self._decoder.decompress(self._packed, _CHUNK)
            self._packed = getattr(self._decoder, "unconsumed_tail", b"")
            if at_end and not self._ready and not self._decoder.eof:
                raise EOFError("the packed stream does not end")
        return True


def read_members(
    path: Path, wanted: Iterable[str], official: int | None = None
) -> dict[str, bytes]:
    """Return the files of an archive whose last path component is in ``wanted``.

    Args:
        path: Path of a tar archive, packed with gzip, bzip2 or xz, or unpacked.
        wanted: Names of files, without their folders.
        official: Size of the official archive in bytes, for messages.

    Raises:
        UserError: The archive is truncated or corrupted, or exceeds the bounds of this module.
    """
    size = path.stat().st_size
    try:
        stream = _Stream(path)
        try:
            return _read(stream, path, set(wanted))
        finally:
            stream.close()
    except EOFError as error:
        length = f"{size} of {official}" if official and size < official else f"{size}"
        raise UserError(f"{path} is truncated at {length} bytes") from error
    except tarfile.ReadError as error:
        # Only the message distinguishes a truncated archive from a file that is not an archive.
        if "end of data" in str(error):
            length = f"{size} of {official}" if official and size < official else f"{size}"
            raise UserError(f"{path} is truncated at {length} bytes") from error
        raise UserError(
            f"{path} is not a tar archive (packed or not), or is corrupted from its start"
        ) from error
    except (
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is corrupted, or cannot be read: {reason}") from error


def _read(stream: _Stream, path: Path, names: set[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    mode = cast("Literal['r:']", "r:")
    with tarfile.open(fileobj=cast("Any", stream), mode=mode) as archive:
        for count, member in enumerate(archive, start=1):
            if count > MEMBERS:
                raise UserError(
                    f"{path} has more than {MEMBERS:,} members, too many for a data set"
                )
            name = member.name.rpartition("/")[2]
            if name not in names or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                continue
            total += member.size
            if total > KEPT:
                raise UserError(f"{path}: {member.name} has {member.size:,} bytes, far too many")
            stream.seek(member.offset_data)
            parts = []
            while (bytes_left := member.size - sum(map(len, parts))) > 0:
                part = stream.take(min(bytes_left, 1 << 20))
                if not part:
                    raise EOFError(f"{member.name} ends {bytes_left} bytes early")
                parts.append(part)
            files[name] = b"".join(parts)
    # tarfile stops silently at a damaged header; the checksum at the end of the stream detects it.
    while stream.is_packed and stream.take(_CHUNK):
        pass
    return files
