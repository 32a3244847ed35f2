"""Ctrl-C and SIGTERM during training: delayed during critical sections, and never lost.

:func:`delay_interrupts` protects a few statements; :func:`remember_interrupts` and
:func:`raise_remembered` re-raise an interrupt that Python dropped.
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
def _handled_by(wrapper: Callable[[Handler], Handler]) -> Iterator[None]:
    """Within the context, replace the handlers of SIGINT and SIGTERM by ``wrapped(handler)``.

    Does nothing outside the main thread, because signals interrupt only the main thread.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):  # neither ignored nor left to the system
                handlers[number] = handler
                signal.signal(number, wrapper(handler))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def remember_interrupts() -> Iterator[None]:
    """Within the context, record each interrupt, so that :func:`raise_remembered` can re-raise it.

    Python prints and drops an exception that a signal handler raises during a finalizer or a
    callback from C, and tracing a network runs many of those.
    """

    def remembering(handler: Handler) -> Handler:
        def handle(number: int, frame: Any) -> None:
            try:
                handler(number, frame)
            except BaseException:  # a handler that does not raise does not end the run
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
    """Within the context, delay SIGINT and SIGTERM; handle them on exit.

    Python may handle a signal between any two instructions: for example after a compiled step has
    changed the weights and before it is counted. A run resumed from a checkpoint written at that
    moment would end with different numbers.
    """
    calls: list[Callable[[], Any]] = []

    def waits(handler: Handler) -> Handler:
        return lambda *arguments: calls.append(lambda: handler(*arguments))

    try:
        with _handled_by(waits):
            yield
    finally:
        for handle in calls:
            handle()
