"""Files that survive a crash: atomic replacement, strict JSON, and appended lines of JSON."""

from __future__ import annotations

import json
import math
import numbers
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from normbench.errors import NormbenchError, UserError
from normbench.store import schema

#: Largest record that is read, in bytes. No real one comes near it, and it still fits in memory.
MOST = 1 << 28


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` and ``~name`` at its start replaced by the home folder.

    Raises:
        UserError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise UserError(f"{str(path)!r}: there is no home folder of the user {user!r}") from None


class StoreError(NormbenchError):
    """A file of the store cannot be read or written; the message names the file and the reason."""


def store_error(verb: str, path: Path, error: OSError) -> StoreError:
    """Turn an ``OSError`` into one line with the failed action, the file and the reason."""
    return StoreError(f"cannot {verb} {path}: {error.strerror or error}")


def user_cache() -> Path:
    """Return normbench's cache folder, in ``XDG_CACHE_HOME`` or the user's home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "normbench"


def jsonable(value: Any) -> Any:
    """Convert ``value`` to types that strict JSON supports; NaN and infinities become None.

    NumPy scalars and 0-d arrays become Python numbers, tuples become lists, paths become strings.
    Other unsupported types are left unchanged, and refused when they are written.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return jsonable(value.item())
    return value


def printable(value: Any) -> Any:
    """Return ``value`` with all strings encodable in UTF-8.

    Arguments and file names that are not UTF-8 reach Python as lone surrogates. These are escaped
    as ``\\udcff``, so that recording a command line never fails.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """Serialize ``value`` to strict JSON.

    Raises:
        ValueError: A NaN or an infinity; :func:`jsonable` turns them into None.
        TypeError: A type that JSON does not support.
    """
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)


def sync_folder(folder: Path) -> None:
    """Flush the file names in ``folder`` to disk; otherwise a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file ``path`` atomically; ``write`` writes the content to an open binary file.

    Whatever happens meanwhile (a full disk, a kill, a power cut), ``path`` has either all of the
    old content or all of the new: the content is written to a temporary file and flushed to disk
    before the file is renamed.

    Raises:
        StoreError: The file cannot be written; the old one is untouched.
    """
    # Every call uses its own temporary file, so that two writers never mix their content.
    # `sweep_temporary` recognizes those left by killed processes by the dot and ".tmp".
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                # A file system may carry out the rename before it writes the content. After a power
                # cut, the new name would then belong to an empty file.
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise store_error("write", path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of ``path`` with ``data``, atomically."""
    write_atomic(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` with ``text`` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def sweep_temporary(folder: Path) -> None:
    """Remove the temporary files that a killed writer left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def damaged(path: Path, reason: object) -> StoreError:
    """Build the error for a file whose content is invalid or has changed."""
    return StoreError(f"cannot read {path}: {' '.join(str(reason).split())}")


def _regular_size(path: Path) -> int:
    """Return the size of a file in bytes; refuse a pipe, which would block a reader forever."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
        raise damaged(path, "not a regular file")
    return info.st_size


def read_bytes(path: Path, most: int = MOST) -> bytes | None:
    """Return the content of ``path``, or None if there is no such file.

    Raises:
        StoreError: It cannot be read, is larger than ``most`` bytes, or is not a regular file.
    """
    try:
        size = _regular_size(path)
        if size > most:
            raise damaged(path, f"it has {size:,} bytes (at most {most:,} are read)")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error("read", path, error) from error


def read_json(path: Path, check: schema.Check | None = None) -> dict[str, Any] | None:
    """Return the JSON object in ``path``, or None if there is no such file.

    Args:
        path: Path of the file.
        check: Check of the object.

    Raises:
        StoreError: The file cannot be read, or is not a single JSON object that ``check`` allows.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        return schema.parse_record(data, check)
    except ValueError as error:
        raise damaged(path, error) from error


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object on ``line``, or None if it is not one.

    A prefix of an object is not valid JSON, so a torn line is never mistaken for a shorter row.
    """
    try:
        return schema.parse_record(line)
    except schema.Mismatch:
        raise
    except ValueError:
        return None


def read_lines(
    path: Path,
    check: schema.Check | None = None,
    *,
    torn: Callable[[bytes], bool] = lambda line: True,
    data: bytes | None = None,
) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines of a JSON-lines file, each as its bytes and its object.

    A torn last line, whose writer died, is left out. A file that does not exist has no lines.

    Args:
        path: Path of the file.
        check: Check of each line's object.
        torn: Called with a last line that is not an object; returns whether a crash may have left
            it behind.
        data: The content of the file if it has already been read.

    Raises:
        StoreError: A line before the last is not a JSON object, or one that ``check`` forbids, or
            the file cannot be read.
    """
    content = (read_bytes(path) or b"") if data is None else data
    lines = content.splitlines(keepends=True)
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(line)
            if row is not None and check is not None:
                check(row, "")
        except schema.Mismatch as error:
            raise damaged(path, f"line {number}: {error}") from error
        if row is not None:
            rows.append((line.rstrip(b"\r\n"), row))
        elif number < len(lines) or not torn(line):
            raise damaged(path, f"line {number} is not a JSON object")
    return rows


def is_torn(line: bytes) -> bool:
    """Return whether an append interrupted by a crash may have left ``line``.

    A crash leaves the start of the line, or zeros where a block was not written. A complete line
    with other content is damage instead.
    """
    if b"\0\0" in line:
        return True
    if line.endswith(b"\n"):
        return False
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return line.startswith(b"{")
    return False


def _sound_tail(file: BinaryIO | FileIO) -> tuple[int, bool, dict[str, Any] | None]:
    """Find where the intact lines of a JSON-lines file end, reading only its tail.

    Returns:
        The offset after the last intact line, whether that line ends in a line feed, and its object
        (None if there is no such line).
    """
    size = file.seek(0, os.SEEK_END)
    window = 1 << 13
    while True:
        start = max(0, size - window)
        file.seek(start)
        lines = file.read(size - start).splitlines(keepends=True)
        # The window may start in the middle of a line, so its first line is not used. The last two
        # lines are needed, because the last one may be torn.
        if start == 0 or len(lines) > 2:
            break
        window *= 8
    if not lines:
        return 0, True, None
    row = _row(lines[-1])
    if row is not None:
        return size, lines[-1].endswith(b"\n"), row
    return size - len(lines[-1]), True, _row(lines[-2]) if len(lines) > 1 else None


def last_line(path: Path, check: schema.Check | None = None) -> dict[str, Any] | None:
    """Return the object on the last intact line, or None, reading only the end of the file.

    Raises:
        StoreError: ``check`` forbids it, or the file cannot be read.
    """
    try:
        _regular_size(path)
        with path.open("rb") as file:
            row = _sound_tail(file)[2]
        if row is not None and check is not None:
            check(row, "")
        return row
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error("read", path, error) from error
    except schema.Mismatch as error:
        raise damaged(path, f"its last line: {error}") from error


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append ``value`` as one line of JSON, durable on return; a torn last line is removed first.

    Raises:
        StoreError: It cannot be written; the earlier lines are unchanged, with nothing after them.
    """
    data = dumps(value).encode() + b"\n"
    try:
        is_new = not path.exists()
        with path.open("a+b", buffering=0) as file:
            end, has_line_feed, _ = _sound_tail(file)
            if not has_line_feed:  # a crash cut off only the line feed
                data = b"\n" + data
            try:
                file.truncate(end)
                rest = memoryview(data)
                while rest:  # an unbuffered write may take only part of the bytes
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # leave no partial line behind on a full disk
                raise
        if is_new:  # a new file's name must reach the disk, too
            sync_folder(path.parent)
    except OSError as error:
        raise store_error("write", path, error) from error
    except schema.Mismatch as error:
        raise damaged(path, f"its last line: {error}") from error
