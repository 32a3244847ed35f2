"""The sweep's end of a worker process: starting it, telling it what to do, hearing of its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench.sweep.channel import Lines, encoded
from normbench.sweep.ending import last_lines
from normbench.sweep.slots import Slot

#: What the interpreter is told to run.
WORKER = ["-m", "normbench.sweep.worker"]

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
