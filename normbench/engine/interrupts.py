"""Ctrl-C: held back where what goes on must not be torn in two, and never lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handler = Callable[..., Any]

_asked: list[int] = []


@contextmanager
def _handled_by(wrapped: Callable[[Handler], Handler]) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM go to what ``wrapped`` makes of their handlers.

    Outside of the main thread, which no signal interrupts, it does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):  # not ignored, nor left to the system
                before[number] = handler
                signal.signal(number, wrapped(handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def remember_interrupts() -> Iterator[None]:
    """Within it, :func:`raise_remembered` raises again an interrupt that did not get through.

    Python prints and drops what a signal's handler raises while a finalizer or a callback from C
    runs, and there are many of them while a network is traced.
    """

    def remembering(handler: Handler) -> Handler:
        def handle(number: int, frame: Any) -> None:
            try:
                handler(number, frame)
            except BaseException:  # one that raises nothing wants nothing to end
                _asked.append(number)
                raise

        return handle

    try:
        with _handled_by(remembering):
            yield
    finally:
        _asked.clear()


def raise_remembered() -> None:
    """Raise KeyboardInterrupt if an interrupt came within :func:`remembered` and work goes on."""
    if _asked:
        raise KeyboardInterrupt


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM wait; they are handled as it is left.

    Python handles a signal between any two of its instructions: after a compiled step has changed
    the weights, say, and before it is counted. A checkpoint written then would go on with other
    numbers.
    """
    waiting: list[Callable[[], Any]] = []

    def waits(handler: Handler) -> Handler:
        return lambda *signalled: waiting.append(lambda: handler(*signalled))

    try:
        with _handled_by(waits):
            yield
    finally:
        for handle in waiting:
            handle()
