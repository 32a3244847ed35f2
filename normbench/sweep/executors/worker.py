"""A worker process: does what a sweep tells it over a pipe, one thing after the other.

Standard input brings messages, standard output carries them:

    {"do": "train", "config": …, "store": …, "command": …, "replace_damaged": …,
     "may_split": …}
        answered by {"event": "progress", …} any number of times, then {"event": "ended", …}
    {"do": "check", "config": …}
    {"do": "build", "config": …}
        answered by {"event": "answer", "problem": why it cannot be trained, or an empty text}
    {"do": "memory", "config": …}
        answered by {"event": "answer", "bytes": what training takes on a GPU, roughly}

A SIGINT has the run in progress write a checkpoint and the worker end. So does the end of standard
input: a worker whose sweep is gone does not train on. Whatever else is written to standard output
(by a library, by ``print``) goes where standard error goes, the worker's log.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.engine.reuse import WarmState
from normbench.store.files import jsonable
from normbench.store.store import Store
from normbench.sweep.cell import CellResult, ProgressObserver, train_cell
from normbench.sweep.preflight import memory, refusal

#: Seconds between two reports within an epoch.
EVERY = 0.5


class Worker:
    """Serves one sweep.

    Args:
        orders: Descriptor that brings messages.
        answers: Descriptor that takes them.
    """

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._warm = WarmState()
        self._built: dict[str, str] = {}
        self._stopping = False
        self._training = False

    def serve(self) -> None:
        """Do what is asked until nothing more will be."""
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            while not self._stopping and (message := self._queue.get()) is not None:
                if message["do"] == "train":
                    self._train(message)
                elif message["do"] in ("check", "build"):
                    config, here = Config.from_dict(message["config"]), message["do"] == "check"
                    self._tell("answer", problem=refusal(config, self._warm, self._built, here))
                elif message["do"] == "memory":
                    config = Config.from_dict(message["config"])
                    self._tell("answer", bytes=memory(config, self._warm))
        except BrokenPipeError:  # the sweep is gone; what ran has ended
            pass

    def _listen(self) -> None:
        try:
            for message in receive(self._orders):
                self._queue.put(message)
        finally:
            self._queue.put(None)
            os.kill(os.getpid(), signal.SIGINT)

    def _stop(self, number: int, frame: Any) -> None:
        if self._stopping:
            return  # a second one must not disturb the checkpoint; whoever cannot wait kills
        self._stopping = True
        self._queue.put(None)
        if self._training:
            raise KeyboardInterrupt

    def _train(self, message: Mapping[str, Any]) -> None:
        try:
            self._training = True
            if self._stopping:  # between the order and here
                raise KeyboardInterrupt
            ending = train_cell(
                Config.from_dict(message["config"]),
                Store(message["store"]),
                observer=ProgressObserver(self._progress()),
                command=message["command"],
                warm=self._warm,
                replace_damaged=message["replace_damaged"],
                may_split=message["may_split"],
            )
            self._training = False
        except KeyboardInterrupt:
            ending = CellResult("interrupted")
        finally:
            self._training = False
        self._tell("ended", **ending.to_dict())

    def _progress(self) -> Any:
        last = 0.0

        def tell(facts: Mapping[str, Any]) -> None:
            nonlocal last
            now = time.monotonic()
            # Within an epoch now and then; its start and its end always.
            if facts.get("step") and now - last < EVERY:
                return
            last = now
            with contextlib.suppress(BrokenPipeError):  # the end of input stops the run
                self._tell("progress", facts=facts)

        return tell

    def _tell(self, event: str, **facts: Any) -> None:
        send(self._answers, {"event": event, **facts})


def pin(cores: Sequence[int]) -> None:
    """Keep this process and its threads on ``cores``.

    TensorFlow and JAX then make as many threads as there are, and the record of a run says so.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="normbench.sweep.executors.worker", description=__doc__)
    parser.add_argument("--cores", default="", help="as 0,1: those it may use; all if left out")
    arguments = parser.parse_args(argv)
    pin([int(core) for core in arguments.cores.split(",") if core])
    faulthandler.enable()
    orders, answers = os.dup(0), os.dup(1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    Worker(orders, answers).serve()
    return 0


# --- the pipe between a sweep and its workers: one JSON object a line, in either direction --------


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
    return json.dumps(jsonable(dict(message)), allow_nan=False).encode() + b"\n"


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


if __name__ == "__main__":
    sys.exit(main())
