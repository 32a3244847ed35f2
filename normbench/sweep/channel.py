"""The pipe between a sweep and its workers: one JSON object a line, in either direction."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from normbench.files import plain


class Lines:
    """Cuts what arrives from a pipe into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the messages that ``data`` completes; what is torn off is kept for later."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            yield json.loads(line)


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as its line; NaN and infinities become null."""
    return json.dumps(plain(dict(message)), allow_nan=False).encode() + b"\n"


def send(descriptor: int, message: Mapping[str, Any]) -> None:
    """Write a message to a pipe.

    In one system call wherever the pipe takes it whole, so that an interrupt never tears it.

    Raises:
        BrokenPipeError: Nobody reads any more.
    """
    rest = memoryview(encoded(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> Iterator[dict[str, Any]]:
    """Yield messages from a pipe until its other end is closed."""
    lines = Lines()
    while data := os.read(descriptor, 1 << 16):
        yield from lines.feed(data)
