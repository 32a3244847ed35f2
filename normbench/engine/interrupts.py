"""Ctrl-C: held back where what goes on must not be torn in two, and never lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, :func:`raise_lost` raises again an interrupt that did not get through.

    Python prints and drops what a signal's handler raises while a finalizer or a callback from C
    runs, and there are many of them while a network is traced. Outside of the main thread, which no
    signal interrupts, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}

    def remembering(handler: Any) -> Any:
        def handle(number: int, frame: Any) -> None:
            try:
                handler(number, frame)
            except BaseException:  # one that raises nothing wants nothing to end
                _asked.append(number)
                raise

        return handle

    for number in _HELD:
        handler = signal.getsignal(number)
        if callable(handler):  # not ignored, nor left to the system
            before[number] = handler
            signal.signal(number, remembering(handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def raise_lost() -> None:
    """Raise KeyboardInterrupt if an interrupt came within :func:`remembered` and work goes on."""
    if _asked:
        raise KeyboardInterrupt


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
    for number in _HELD:
        if callable(signal.getsignal(number)):  # not ignored, nor left to the system
            before[number] = signal.signal(number, lambda *signalled: waiting.append(signalled))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            before[number](number, frame)
