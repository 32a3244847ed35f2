"""Jobs handed to worker processes, what goes wrong with them told apart and answered."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normbench.errors import NormbenchError
from normbench.store.provenance import utc_now
from normbench.store.store import Run, RunLocked
from normbench.sweep.cell import CellResult, last_lines
from normbench.sweep.executors.base import Job, Stop, SweepContext, SweepObserver
from normbench.sweep.executors.slots import Slot
from normbench.sweep.executors.worker import Lines, encoded

#: Seconds between two looks at whether a stop was requested.
LOOK = 0.2


@dataclass
class Attempt:
    """A job with what was tried before.

    Attributes:
        job: What is to be done.
        tries: Begun so often.
        out_of_memory: It ended for lack of memory once.
        began: When it was handed out last, in seconds of ``time.monotonic``.
    """

    job: Job
    tries: int = 0
    out_of_memory: bool = False
    began: float = 0.0


class Dispatch:
    """Carries out the jobs of one sweep on slots.

    - A worker is kept for the next job; one that died, or whose run failed other than by being
      refused, is replaced, and so is one whose GPU memory another program would need.
    - A job whose worker died is tried again ``retries`` times, then its run is marked as failed.
    - A job that found no memory is tried once more, with one job fewer on that device.
    - Once the disk is full, nothing more is begun.

    Args:
        jobs: In the order in which they are begun where nothing speaks for another.
        slots: Where they go.
        workers: Started before, by the names of their slots; taken from and added to.
        spawn: Starts a worker on a slot.
        task: Of the sweep.
        watch: Is told how it goes.
        stop: Is looked at a few times a second.
        retries: As above.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Slot],
        workers: dict[str, WorkerProcess],
        spawn: Callable[[Slot], WorkerProcess],
        task: SweepContext,
        watch: SweepObserver,
        stop: Stop,
        retries: int,
    ) -> None:
        self._waiting = [Attempt(job) for job in jobs]
        self._slots = slots
        self._workers = workers
        self._spawn = spawn
        self._task = task
        self._watch = watch
        self._stop = stop
        self._retries = retries
        self._busy: dict[str, Attempt] = {}
        self._room = Counter(slot.device for slot in slots)
        self._full_disk = False
        self._heeded = 0

    def run(self) -> None:
        """Carry out all, or as much as a stop allows."""
        while True:
            if not self._stop.requests and not self._full_disk:
                self._hand_out()
            if not self._busy:
                return
            self._listen()
            self._heed_stop()
            self._watch.idle()

    # --- handing out ---------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for slot in self._slots:
            if slot.name in self._busy or not self._waiting:
                continue
            busy = sum(1 for each in self._slots if each.name in self._busy
                       and each.device == slot.device)  # fmt: skip
            if busy < self._room[slot.device]:
                self._begin(slot, self._waiting.pop(self._choose(slot)))

    def _choose(self, slot: Slot) -> int:
        """The place in the queue of the job that suits a slot best.

        One whose compiled function the slot's worker has; else one that no other worker has; else
        the last, so that the worker which has it compiled goes on with those before.
        """
        worker = self._workers.get(slot.name)
        held = {each.program for name, each in self._workers.items() if name != slot.name}
        if worker is not None:
            for index, attempt in enumerate(self._waiting):
                if attempt.job.program == worker.program:
                    return index
        for index, attempt in enumerate(self._waiting):
            if attempt.job.program not in held:
                return index
        return len(self._waiting) - 1

    def _begin(self, slot: Slot, attempt: Attempt) -> None:
        job = attempt.job
        worker = self._workers.get(slot.name)
        if worker is not None and not _suits(worker, job):
            self._replace(slot.name)
            worker = None
        if worker is None:
            worker = self._workers[slot.name] = self._spawn(slot)
        worker.backend, worker.program = job.config.backend, job.program
        attempt.tries += 1
        attempt.began = time.monotonic()
        self._busy[slot.name] = attempt
        self._watch.started(job, slot.name)
        worker.send(
            {
                "do": "train",
                "config": job.config.to_dict(),
                "store": str(self._task.store.root),
                "command": list(self._task.command),
                "replace_damaged": job.replace_damaged,
                # First with less beside it, for that changes no number.
                "may_split": attempt.out_of_memory or self._room[slot.device] == 1,
            }
        )

    def _replace(self, name: str) -> None:
        self._workers.pop(name).close()

    # --- listening -----------------------------------------------------------------------------

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for name in self._busy:
                selector.register(self._workers[name], selectors.EVENT_READ, name)
            ready = [key.data for key, _ in selector.select(LOOK)]
        for name in ready:
            messages = self._workers[name].read()
            if messages is None:
                self._died(name)
                continue
            for message in messages:
                self._heard(name, message)

    def _heard(self, name: str, message: dict[str, Any]) -> None:
        attempt = self._busy.get(name)
        if attempt is None:  # said after its end
            return
        if message.pop("event") == "progress":
            self._watch.progress(attempt.job, message["facts"])
            return
        ending = CellResult.from_dict(message)
        del self._busy[name]
        if ending.result == "failed":
            self._failed(name, attempt, ending)
        elif ending.result == "interrupted" and not self._stop.requests:
            self._replace(name)  # somebody else interrupted it, and it ended with its run
            self._try_again(attempt, "its worker was interrupted", CellResult("interrupted"))
        else:
            self._end(attempt, ending)

    def _failed(self, name: str, attempt: Attempt, ending: CellResult) -> None:
        slot = next(slot for slot in self._slots if slot.name == name)
        if ending.cause != "refused":
            self._replace(name)
        if ending.cause == "disk" and not self._full_disk:
            self._full_disk = True
            self._watch.note("the disk is full: no further run is started")
        if ending.cause == "memory" and not attempt.out_of_memory and not self._stop.requests:
            attempt.out_of_memory = True
            self._room[slot.device] = max(1, self._room[slot.device] - 1)
            room = self._room[slot.device]
            runs = f"{room} run{'s' * (room > 1)} at a time"
            reason = f"out of memory on {slot.device}, which has {runs} from now on"
            self._watch.again(attempt.job, reason)
            self._waiting.insert(0, attempt)
            return
        self._end(attempt, ending)

    def _died(self, name: str) -> None:
        worker = self._workers.pop(name)
        how, words = worker.death(), worker.last_words()
        worker.close()
        attempt = self._busy.pop(name)
        job = attempt.job
        run = self._task.store.run(job.name)
        if self._stop.requests:
            self._end(attempt, CellResult("interrupted"))
            return
        try:
            status = run.status
        except NormbenchError:  # its damaged files are named when it is tried again
            status = "interrupted"
        if status in ("finished", "diverged"):  # it died after the last file was written
            self._end(attempt, CellResult("diverged" if status == "diverged" else "trained"))
            return
        reason = f"its worker was {how}" if how.startswith("killed") else f"its worker {how}"
        ending = CellResult("failed", "died", reason, words)
        self._try_again(attempt, reason, ending)

    def _try_again(self, attempt: Attempt, reason: str, ending: CellResult) -> None:
        """Put a job back into the queue, or end it where it was tried often enough."""
        if attempt.tries <= self._retries:
            self._watch.again(attempt.job, reason)
            self._waiting.insert(0, attempt)
            return
        if ending.result == "failed":
            mark_failed(self._task.store.run(attempt.job.name), reason, self._task.command)
        self._end(attempt, ending)

    def _end(self, attempt: Attempt, ending: CellResult) -> None:
        seconds = time.monotonic() - attempt.began
        self._watch.ended(attempt.job, replace(ending, seconds=seconds, tries=attempt.tries))

    # --- stopping ------------------------------------------------------------------------------

    def _heed_stop(self) -> None:
        if self._stop.requests == self._heeded:
            return
        for name in list(self._busy):
            if self._stop.requests > 1:
                self._workers[name].kill()
            else:
                self._workers[name].interrupt()
        self._heeded = min(self._stop.requests, 2)


def _suits(worker: WorkerProcess, job: Job) -> bool:
    if worker.backend not in (None, job.config.backend):
        return False  # Keras runs on one backend a process
    # GPU memory that TensorFlow took once comes back only with the end of its process.
    return not worker.slot.is_gpu or worker.program in (None, job.program)


def mark_failed(run: Run, message: str, command: Sequence[str]) -> None:
    """Write into a run's record that it failed, where its own process could not.

    Without it the next sweep would take the run for one that was cut off, and try it again.
    """
    try:
        with run.lock(command):
            if run.exists and run.summary is None:
                error = {"type": "WorkerDied", "message": message}
                run.update_meta(status="failed", ended=utc_now(), error=error)
    except (RunLocked, NormbenchError):  # another process has it, or the disk takes no more
        pass


# --- a worker process, seen from the sweep --------------------------------------------------------

#: What the interpreter is told to run.
WORKER = ["-m", "normbench.sweep.executors.worker"]

#: Seconds that a worker is given to end by itself.
GRACE = 30.0


class WorkerProcess:
    """A worker on a slot.

    It has a session of its own, so that Ctrl-C on the terminal reaches the sweep alone, which
    passes on what it means.

    Args:
        slot: Its place.
        log: A file that takes what it writes to standard output and error; None throws it away.
    """

    def __init__(self, slot: Slot, log: Path | None = None) -> None:
        self.slot = slot
        self.backend: str | None = None
        self.program: str | None = None
        self._log = log
        self._lines = Lines()
        where = [path or str(Path.cwd()) for path in sys.path]
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            **slot.environment,
            "PYTHONPATH": os.pathsep.join(where),
        }
        shared = ",".join(map(str, slot.cores))
        with Path(log or os.devnull).open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *WORKER, "--cores", shared],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                bufsize=0,
                start_new_session=True,
            )
        self._log_start = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor that has something to read when the worker says something or dies."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Tell it what to do; that it died meanwhile shows when it is read from."""
        assert self._process.stdin is not None
        if self._log is not None and self._log.exists():
            self._log_start = self._log.stat().st_size
        try:
            rest = memoryview(encoded(message))
            while rest:
                rest = rest[self._process.stdin.write(rest) or 0 :]
        except BrokenPipeError:
            pass

    def read(self) -> list[dict[str, Any]] | None:
        """What it said since, when its descriptor has something; None if it is gone."""
        data = os.read(self.fileno(), 1 << 16)
        return list(self._lines.feed(data)) if data else None

    def interrupt(self) -> None:
        """Have it write a checkpoint and end."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """End it: it is told that nothing more comes, and killed if that does not help."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def death(self) -> str:
        """In words, how it ended: ``killed by SIGKILL``, ``ended with exit status 1``."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            self.kill()
            code = self._process.wait()
        if code >= 0:
            return f"ended with exit status {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def last_words(self) -> tuple[str, ...]:
        """The last lines of its log since it was last told what to do."""
        if self._log is None:
            return ()
        try:
            with self._log.open("rb") as file:
                file.seek(self._log_start)
                return last_lines(file.read().decode("utf-8", "replace"))
        except OSError:
            return ()
