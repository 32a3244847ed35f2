"""Worker processes on this machine; :class:`Dispatch` trains the cells of a sweep on them."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.errors import NormbenchError
from normbench.store.provenance import utc_now
from normbench.store.store import Run, RunLocked
from normbench.sweep.cell import CellResult, last_lines
from normbench.sweep.executors.base import Stop, SweepContext
from normbench.sweep.executors.slots import Slot
from normbench.sweep.executors.worker import Lines, encoded
from normbench.sweep.observer import SweepObserver
from normbench.sweep.plan import PlannedCell

#: Arguments of the Python interpreter that start a worker.
WORKER = ["-m", "normbench.sweep.executors.worker"]

#: Longest wait for a message in seconds; a stop is noticed at least that often.
WAIT = 0.2

#: Seconds that a worker has to exit by itself before it is killed.
GRACE = 30.0


@dataclass
class Attempt:
    """A cell in the queue or in training, and its earlier attempts.

    Attributes:
        cell: The cell.
        tries: Number of attempts so far.
        out_of_memory: True if an earlier attempt ran out of memory.
        began: Start of the last attempt, as ``time.monotonic()`` seconds.
    """

    cell: PlannedCell
    tries: int = 0
    out_of_memory: bool = False
    began: float = 0.0


class Dispatch:
    """Trains the cells of a sweep on slots.

    - A worker is reused for the next cell. It is replaced if it died, if its cell failed (unless
      the cell was refused before training), or if its GPU memory is needed for another program.
    - A cell whose worker died is tried again ``retries`` times; then its run is marked as failed.
    - A cell that ran out of memory is tried once more, with one cell fewer on that device.
    - Once the disk is full, no more cells are started.

    Args:
        cells: The queue. Its order is followed unless another cell suits a worker better.
        slots: The slots on which to train.
        pool: Workers, some of which may already be running.
        context: Settings shared by the cells.
        observer: Follows the cells.
        stop: Checked a few times a second.
        retries: See above.
    """

    def __init__(
        self,
        cells: Sequence[PlannedCell],
        slots: Sequence[Slot],
        pool: WorkerPool,
        context: SweepContext,
        observer: SweepObserver,
        stop: Stop,
        retries: int,
    ) -> None:
        self._waiting = [Attempt(cell) for cell in cells]
        self._slots = slots
        self._pool = pool
        self._context = context
        self._observer = observer
        self._stop = stop
        self._retries = retries
        self._busy: dict[str, Attempt] = {}  # by the names of the slots
        self._room = Counter(slot.device for slot in slots)  # cells at a time on each device
        self._full_disk = False
        self._stops_passed_on = 0

    def run(self) -> None:
        """Train all cells, or as many as a stop or a full disk allows."""
        while True:
            if not self._stop.requests and not self._full_disk:
                self._fill_slots()
            if not self._busy:
                return
            for name, messages in self._pool.listen(self._busy):
                if messages is None:
                    self._died(name)
                for message in messages or ():
                    self._received(name, message)
            self._pass_on_stop()
            self._observer.idle()

    def _fill_slots(self) -> None:
        """Start a waiting cell on every free slot whose device has room."""
        for slot in self._slots:
            if slot.name in self._busy or not self._waiting:
                continue
            count = sum(s.device == slot.device for s in self._slots if s.name in self._busy)
            if count < self._room[slot.device]:
                self._start(slot, self._waiting.pop(self._best_for(slot)))

    def _best_for(self, slot: Slot) -> int:
        """Return the index in the queue of the cell that suits a slot best.

        Prefer a cell whose program this worker has already compiled, then one whose program no
        worker has compiled, then the last in the queue: the worker that has compiled its program
        takes the cells before it.
        """
        worker = self._pool.get(slot.name)
        if worker is not None:
            for index, attempt in enumerate(self._waiting):
                if attempt.cell.program == worker.program:
                    return index
        other_programs = {other.program for name, other in self._pool.items() if name != slot.name}
        for index, attempt in enumerate(self._waiting):
            if attempt.cell.program not in other_programs:
                return index
        return len(self._waiting) - 1

    def _start(self, slot: Slot, attempt: Attempt) -> None:
        cell = attempt.cell
        worker = self._pool.get(slot.name)
        # TensorFlow releases GPU memory only when its process ends.
        if worker and worker.slot.is_gpu and worker.program not in (None, cell.program):
            self._pool.end(slot.name)
        worker = self._pool.worker_for(slot, cell.config)
        worker.program = cell.program
        attempt.tries += 1
        attempt.began = time.monotonic()
        self._busy[slot.name] = attempt
        self._observer.started(cell, slot.name)
        # Splitting a batch changes batch statistics, whereas running fewer cells on a device does
        # not, so the latter is tried first.
        may_split = attempt.out_of_memory or self._room[slot.device] == 1
        worker.send({"do": "train", **self._context.order(cell, may_split)})

    def _received(self, name: str, message: dict[str, Any]) -> None:
        attempt = self._busy.get(name)
        if attempt is None:  # the cell has ended
            return
        if message.pop("event") == "progress":
            self._observer.progress(attempt.cell, message["facts"])
            return
        result = CellResult.from_dict(message)
        del self._busy[name]
        if result.result == "failed":
            self._failed(name, attempt, result)
        elif result.result == "interrupted" and not self._stop.requests:
            self._pool.end(name)  # somebody else interrupted the worker, which then exits
            self._try_again(attempt, "its worker was interrupted", CellResult("interrupted"))
        else:
            self._end(attempt, result)

    def _failed(self, name: str, attempt: Attempt, result: CellResult) -> None:
        if result.cause != "refused":
            self._pool.end(name)
        if result.cause == "disk" and not self._full_disk:
            self._full_disk = True
            self._observer.note("the disk is full: no more runs are started")
        if result.cause == "memory" and not attempt.out_of_memory and not self._stop.requests:
            attempt.out_of_memory = True
            device = next(slot.device for slot in self._slots if slot.name == name)
            room = self._room[device] = max(1, self._room[device] - 1)
            runs = f"{room} run{'s' * (room > 1)} at a time"
            reason = f"out of memory on {device}, which now takes {runs}"
            self._observer.retrying(attempt.cell, reason)
            self._waiting.insert(0, attempt)
            return
        self._end(attempt, result)

    def _died(self, name: str) -> None:
        worker = self._pool.pop(name)
        reason, log = f"its worker {worker.death()}", worker.last_output()
        worker.close()
        attempt = self._busy.pop(name)
        if self._stop.requests:
            self._end(attempt, CellResult("interrupted"))
            return
        try:
            status = self._context.store.run(attempt.cell.name).status
        except NormbenchError:  # the next attempt reports the damaged files
            status = "interrupted"
        if status in ("finished", "diverged"):  # the worker died after writing the last file
            self._end(attempt, CellResult("diverged" if status == "diverged" else "trained"))
            return
        self._try_again(attempt, reason, CellResult("failed", "died", reason, log))

    def _try_again(self, attempt: Attempt, reason: str, result: CellResult) -> None:
        """Put a cell back in the queue, or end it with ``result`` after too many attempts."""
        if attempt.tries <= self._retries:
            self._observer.retrying(attempt.cell, reason)
            self._waiting.insert(0, attempt)
            return
        if result.result == "failed":
            mark_failed(self._context.store.run(attempt.cell.name), reason, self._context.command)
        self._end(attempt, result)

    def _end(self, attempt: Attempt, result: CellResult) -> None:
        seconds = time.monotonic() - attempt.began
        self._observer.ended(attempt.cell, replace(result, seconds=seconds, tries=attempt.tries))

    def _pass_on_stop(self) -> None:
        """Interrupt the workers at the first request to stop, and kill them at the second."""
        requests = min(self._stop.requests, 2)
        if requests == self._stops_passed_on:
            return
        self._stops_passed_on = requests
        for name in self._busy:
            worker = self._pool[name]
            worker.kill() if requests > 1 else worker.interrupt()


def mark_failed(run: Run, message: str, command: Sequence[str]) -> None:
    """Write to a run's record that it failed, because its own process could not.

    Otherwise the next sweep would treat the run as interrupted and try it again.
    """
    try:
        with run.lock(command):
            if run.exists and run.summary is None:
                error = {"type": "WorkerDied", "message": message}
                run.update_meta(status="failed", ended=utc_now(), error=error)
    except (RunLocked, NormbenchError):  # another process trains the run, or the disk is full
        pass


class WorkerPool(dict[str, "WorkerProcess"]):
    """Worker processes by slot name, started when they are first needed.

    Attributes:
        logs: Folder for the output of workers started from now on; None to discard it.
    """

    logs: Path | None = None

    def worker_for(self, slot: Slot, config: Config) -> WorkerProcess:
        """Return a slot's worker for a config; Keras allows only one backend per process."""
        worker = self.get(slot.name)
        if worker is not None and worker.backend != config.backend:
            self.end(slot.name)
            worker = None
        if worker is None:
            name = f"worker-{slot.name.replace(' ', '')}.log"
            log = None if self.logs is None else self.logs / name
            worker = self[slot.name] = WorkerProcess(slot, log, config.backend)
        return worker

    def listen(self, names: Iterable[str]) -> Iterator[tuple[str, list[dict[str, Any]] | None]]:
        """Wait up to ``WAIT`` seconds for messages of the workers on the slots ``names``.

        Yields:
            The name of a slot and its worker's messages; None instead of messages if the worker
            is gone.
        """
        with selectors.DefaultSelector() as selector:
            for name in names:
                selector.register(self[name], selectors.EVENT_READ, name)
            ready_names = [key.data for key, _ in selector.select(WAIT)]
        for name in ready_names:
            yield name, self[name].read()

    def ask(
        self,
        slots: Sequence[Slot],
        question: str,
        configs: Sequence[Config],
        if_died: Callable[[str], Any],
    ) -> list[Any]:
        """Ask workers the same question about every config, and return the answers in order.

        Args:
            slots: The slots whose workers are asked.
            question: ``check``, ``build`` or ``memory``: see :mod:`.worker`.
            configs: The configs, asked about one by one, grouped by backend.
            if_died: Returns an answer for a worker that died, given how it died.
        """
        queue = sorted(range(len(configs)), key=lambda index: configs[index].backend)
        answers: list[Any] = [None] * len(configs)
        indices: dict[str, int] = {}
        while queue or indices:
            for slot in slots[: len(configs)]:
                if queue and slot.name not in indices:
                    config = configs[queue[0]]
                    message = {"do": question, "config": config.to_dict()}
                    self.worker_for(slot, config).send(message)
                    indices[slot.name] = queue.pop(0)
            for name, messages in self.listen(indices):
                if messages is None:
                    answers[indices.pop(name)] = if_died(self[name].death())
                    self.end(name)
                for message in messages or ():
                    answers[indices.pop(name)] = message["answer"]
        return answers

    def end(self, name: str) -> None:
        """End the worker on the slot ``name``."""
        self.pop(name).close()

    def close(self) -> None:
        """End all workers; runs in training are interrupted and can be resumed."""
        for worker in self.values():
            worker.interrupt()
        for name in list(self):
            self.end(name)


class WorkerProcess:
    """The sweep's handle of a worker process.

    The process has its own session, so that Ctrl-C in the terminal reaches only the sweep, which
    passes it on.

    Args:
        slot: Slot on which the worker runs.
        log: File to which its standard output and error are appended; None to discard them.
        backend: Keras backend of the configs that the worker serves.

    Attributes:
        program: Identifies the program that the worker compiled; see :attr:`PlannedCell.program`.
    """

    def __init__(self, slot: Slot, log: Path | None = None, backend: str = "tensorflow") -> None:
        self.slot = slot
        self.backend = backend
        self.program: str | None = None
        self._log = log
        self._log_start = 0  # size of the log at the last message sent
        self._lines = Lines()
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            **slot.environment,
            # The worker searches the same folders for modules as this process.
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        cores = ",".join(map(str, slot.cores))
        with Path(log or os.devnull).open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *WORKER, "--cores", cores],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                bufsize=0,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the worker writes a message or dies."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message. If the worker has died, the next :meth:`read` returns None."""
        assert self._process.stdin is not None
        if self._log is not None and self._log.exists():
            self._log_start = self._log.stat().st_size
        try:
            data = memoryview(encoded(message))
            while data:
                data = data[self._process.stdin.write(data) or 0 :]
        except BrokenPipeError:
            pass

    def read(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived, or None if the worker is gone."""
        data = os.read(self.fileno(), 1 << 16)
        return list(self._lines.feed(data)) if data else None

    def interrupt(self) -> None:
        """Make the worker write a checkpoint and exit."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """Close the pipes, which makes the worker exit; kill it if it does not."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._wait()

    def _wait(self) -> int:
        try:
            return self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def death(self) -> str:
        """Return how the process ended: ``was killed by SIGKILL``, ``ended with exit status 1``."""
        code = self._wait()  # its pipe is closed, but the process may still be running
        if code >= 0:
            return f"ended with exit status {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def last_output(self) -> tuple[str, ...]:
        """Return the last lines of the log written since the last message was sent."""
        if self._log is None:
            return ()
        try:
            with self._log.open("rb") as file:
                file.seek(self._log_start)
                return last_lines(file.read().decode("utf-8", "replace"))
        except OSError:
            return ()
