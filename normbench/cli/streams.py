"""Standard streams whose errors cannot end a command; the entry point is `protect`.

A command prints while it trains or writes files, and printing may fail: the reader of a pipe has
exited (``| head -1``), the disk of a log file is full, the terminal was closed, a shell started the
command with ``>&-``, or the encoding lacks a character. The command then continues, and only its
output is lost.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from typing import Any

#: Name of the error handler that replaces characters that the encoding lacks.
SPELLED = "normbench.spelled"

#: Replacements of characters that Unicode does not decompose legibly.
_SPELLINGS = {
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "─": "-", "━": "-", "╸": "-",
    "╺": "-", "│": "|", "┃": "|", "‖": "||", "•": "*", "·": "*", "‘": "'", "’": "'", "“": '"',
    "”": '"', "×": "x", "±": "+/-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->",
    "←": "<-", "√": "sqrt", "∇": "grad", "°": "deg", "⁄": "/", "†": "+", "‡": "++", "²": "^2",
    "³": "^3", "⁸": "^8", "⁻": "^-", "ᵀ": "^T", "Σ": "sum", "λ": "lambda", "µ": "mu",
}  # fmt: skip


class _Raw(io.RawIOBase):
    """A raw stream that writes until writing fails, and then drops everything."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        while self.error is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program shares the pipe and made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def protect() -> None:
    """Replace the standard streams of this process by ones that never raise write errors.

    A closed descriptor is opened on the null device. Otherwise the next file to be opened, perhaps
    one in a run folder, would get its number, and printed text would end up in that file.
    """
    codecs.register_error(SPELLED, _spell)
    was_closed = [_open_on_null(descriptor) for descriptor in range(3)]
    if was_closed[0] or sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = _text_stream(1, sys.stdout)
    sys.stderr = _text_stream(2, sys.stderr)


def loss() -> str:
    """Return the reason why output was lost, or an empty string.

    A reader that exited, or output that was closed on purpose, does not count as a loss.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Raw) else None
    return "" if error is None or error.errno == errno.EPIPE else error.strerror or str(error)


def _open_on_null(descriptor: int) -> bool:
    """Open a descriptor on the null device if it is closed; return whether it was."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(
            os.devnull, os.O_RDWR
        )  # gets the lowest free number, unless a thread is faster
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)
        return True
    return False


def _text_stream(descriptor: int, stream: Any) -> io.TextIOWrapper:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    errors = getattr(stream, "errors", None) or "strict"
    if errors in (
        "strict",
        "surrogateescape",
        "backslashreplace",
    ):  # defaults, not the user's choice
        errors = SPELLED
    # Flush after each line, even on a pipe, so that a log is always up to date.
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(descriptor)), encoding=encoding, errors=errors, line_buffering=True
    )


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks; restore the raw bytes of a file name."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelling = b""
    for character in error.object[error.start : error.end]:
        if "\udc80" <= character <= "\udcff":
            spelling += bytes([ord(character) - 0xDC00])
        elif not unicodedata.combining(character):
            spelling += _plain(character).encode("ascii", "ignore") or b"?"
    return spelling, error.end


def _plain(character: str) -> str:
    if character in _SPELLINGS:
        return _SPELLINGS[character]
    name = unicodedata.name(character, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        letter = name.partition(" LETTER ")[2].partition(" ")[0]
        return letter.title() if "CAPITAL" in name else letter.lower()
    return "".join(_SPELLINGS.get(c, c) for c in unicodedata.normalize("NFKD", character))
