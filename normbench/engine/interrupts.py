"""Ctrl-C and SIGTERM during training: delayed where work must not be torn in two, never lost.

:func:`delay_interrupts` protects a few statements; :func:`remember_interrupts` and
:func:`raise_remembered` raise again an interrupt that Python dropped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handler = Callable[..., Any]

_remembered: list[int] = []


@contextmanager
def _handled_by(wrapped: Callable[[Handler], Handler]) -> Iterator[None]:
    """Within the context, replace the handlers of SIGINT and SIGTERM by ``wrapped(handler)``.

    Does nothing outside of the main thread, the only one that signals interrupt.
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
    """Within the context, note each interrupt, so that :func:`raise_remembered` can raise it again.

    Python prints and drops an exception that a signal's handler raises while a finalizer or a
    callback from C runs, and there are many of them while a network is traced.
    """

    def remembering(handler: Handler) -> Handler:
        def handle(number: int, frame: Any) -> None:
            try:
                handler(number, frame)
            except BaseException:  # a handler that raises nothing does not want to end the run
                _remembered.append(number)
                raise

        return handle

    try:
        with _handled_by(remembering):
            yield
    finally:
        _remembered.clear()


def raise_remembered() -> None:
    """Raise KeyboardInterrupt if an interrupt within :func:`remember_interrupts` was dropped."""
    if _remembered:
        raise KeyboardInterrupt


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Within the context, make SIGINT and SIGTERM wait; handle them when it is left.

    Python handles a signal between any two of its instructions: for example after a compiled step
    has changed the weights and before it is counted. A run resumed from a checkpoint written at
    that moment would end in other numbers.
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
