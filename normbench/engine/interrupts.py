"""Ctrl-C held back for as long as what goes on must not be torn in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_back() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM wait; they are handled as it is left.

    Python handles a signal between any two of its instructions: after a compiled step has changed
    the weights, say, and before it is counted. A checkpoint written then would go on with other
    numbers. Outside of the main thread, which no signal interrupts, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, Any]] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):  # not ignored, nor left to the system
            before[number] = signal.signal(number, lambda *signalled: waiting.append(signalled))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            before[number](number, frame)
