"""Files that a user imports: reading them, and listing them in messages."""

from __future__ import annotations

from pathlib import Path

from normbench.errors import UserError

MOST = 1 << 28
"""Largest file that is read into memory, in bytes."""


def read(path: Path, most: int = MOST) -> bytes:
    """Return the bytes of ``path``.

    Raises:
        UserError: It cannot be read, or has more than ``most`` bytes.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise UserError(f"{path} has {size:,} bytes, too many for a file of this data set")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def listing(folder: Path, most: int = 5) -> str:
    """Return the first names in ``folder``, for a message: ``a, b, c and 7 more`` or ``nothing``.

    Raises:
        UserError: The folder cannot be listed.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error
    if not names:
        return "nothing"
    suffix = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + suffix
