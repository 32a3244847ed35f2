"""The program of a worker process, :func:`main`: it processes messages one after the other.

Messages are JSON objects, one per line. The worker reads these from standard input:

    {"do": "train", "config": …, "store": …, "command": …, "replace_damaged": …, "may_split": …,
     "tuned": …}
        answered on standard output by any number of {"event": "progress", "facts": …}, then
        {"event": "ended", …} with the fields of a CellResult
    {"do": "check", "config": …}
        answered by {"event": "answer", "answer": why the config cannot be trained on this machine,
        or an empty string}
    {"do": "build", "config": …}
        the same, for a machine with an unknown amount of memory
    {"do": "memory", "config": …}
        answered by {"event": "answer", "answer": estimated bytes of GPU memory for training}

On SIGINT, the current run writes a checkpoint and the worker exits. The same happens at the end of
standard input, so that no worker outlives its sweep. All other output to standard output, by a
library or by ``print``, is redirected to standard error, which is the worker's log.
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
from normbench.sweep.cell import CellResult, train_cell
from normbench.sweep.observer import ProgressObserver
from normbench.sweep.preflight import memory, refusal

#: Seconds between two reports of progress within an epoch.
REPORT_EVERY = 0.5


class Worker:
    """Serves one sweep.

    A thread reads the messages, so that the end of input is noticed during training.

    Args:
        orders: Descriptor to read messages from.
        answers: Descriptor to write messages to.
    """

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._warm = WarmState()
        self._built: dict[str, str] = {}
        self._stopping = False
        self._training = False
        self._reported = 0.0

    def serve(self) -> None:
        """Process messages until there are no more."""
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        # Slurm sends one of these to every process of a job that is about to end; the process that
        # started this worker handles it.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            while not self._stopping and (message := self._queue.get()) is not None:
                self._carry_out(message.pop("do"), message)
        except BrokenPipeError:  # the sweep is gone, and the last run has ended
            pass

    def _carry_out(self, action: str, message: Mapping[str, Any]) -> None:
        if action == "train":
            self._send("ended", **self._train(message).to_dict())
        elif action == "memory":
            config = Config.from_dict(message["config"])
            self._send("answer", answer=memory(config, self._warm))
        else:
            config, is_local = Config.from_dict(message["config"]), action == "check"
            self._send("answer", answer=refusal(config, self._warm, self._built, is_local))

    def _listen(self) -> None:
        try:
            for message in receive(self._orders):
                self._queue.put(message)
        finally:
            self._queue.put(None)
            os.kill(os.getpid(), signal.SIGINT)

    def _stop(self, number: int, frame: Any) -> None:
        if self._stopping:
            return  # a second signal must not interrupt writing the checkpoint
        self._stopping = True
        self._queue.put(None)
        if self._training:
            raise KeyboardInterrupt

    def _train(self, order: Mapping[str, Any]) -> CellResult:
        try:
            self._training = True  # from here on, a signal raises KeyboardInterrupt
            if self._stopping:  # the signal arrived earlier
                raise KeyboardInterrupt
            result = train_cell(order, ProgressObserver(self._report), self._warm)
            self._training = False  # inside the try: a signal before this line raises
            return result
        except KeyboardInterrupt:
            return CellResult("interrupted")
        finally:
            self._training = False

    def _report(self, facts: Mapping[str, Any]) -> None:
        """Send progress: at each start and end of an epoch, and occasionally within an epoch."""
        now = time.monotonic()
        if facts.get("step") and now - self._reported < REPORT_EVERY:
            return
        self._reported = now
        with contextlib.suppress(BrokenPipeError):  # the end of input interrupts the run
            self._send("progress", facts=facts)

    def _send(self, event: str, **fields: Any) -> None:
        send(self._answers, {"event": event, **fields})


def pin(cores: Sequence[int]) -> None:
    """Restrict this process and its threads to ``cores``.

    TensorFlow and JAX then start as many threads as there are cores, which is also the number in
    the run's record.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="normbench.sweep.executors.worker", description=__doc__)
    parser.add_argument("--cores", default="", help="cores to use, such as 0,1; all by default")
    arguments = parser.parse_args(argv)
    pin([int(core) for core in arguments.cores.split(",") if core])
    faulthandler.enable()
    orders, answers = os.dup(0), os.dup(1)
    with Path(os.devnull).open("rb") as null_device:
        os.dup2(null_device.fileno(), 0)
    os.dup2(2, 1)
    Worker(orders, answers).serve()
    return 0


class Lines:
    """Splits the bytes that arrive from a pipe into messages."""

    def __init__(self) -> None:
        self._torn = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the messages that ``data`` completes; keep the start of the next one."""
        *lines, self._torn = (self._torn + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def encoded(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line; NaN and infinities become null."""
    return json.dumps(jsonable(dict(message)), allow_nan=False).encode() + b"\n"


def send(descriptor: int, message: Mapping[str, Any]) -> None:
    """Write a message to a pipe, in one system call if it fits.

    Raises:
        BrokenPipeError: The pipe no longer has a reader.
    """
    data = memoryview(encoded(message))
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> Iterator[dict[str, Any]]:
    """Yield the messages that arrive from a pipe until its other end is closed."""
    lines = Lines()
    while data := os.read(descriptor, 1 << 16):
        yield from lines.feed(data)


if __name__ == "__main__":
    sys.exit(main())
