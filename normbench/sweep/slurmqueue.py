"""Slurm's queue: which jobs left it without a word, and how running ones are told to stop."""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Callable, Iterable

LOOK = 10.0
"""Seconds between two questions to the controller, which serves a whole cluster."""


class SlurmQueue:
    """Asks ``squeue`` for this user's jobs, all of them with one question.

    submitit learns of a job that Slurm killed from ``sacct``, at first within seconds and later
    within ten minutes; and never on a cluster that keeps no accounts.

    Args:
        ask: Returns the ids of the jobs that wait or run, or None where that is not to be had.
    """

    def __init__(self, ask: Callable[[], set[str] | None] | None = None) -> None:
        self._ask = _queued if ask is None else ask
        self._asked = time.monotonic()  # a job is not in the queue at the moment it is submitted
        self._missed: set[str] = set()

    def lost(self, ids: Iterable[str]) -> set[str]:
        """Return those of ``ids`` that were missing in two looks, one after the other.

        Two, since a job leaves the queue before all machines that share its folder see its result.
        """
        if time.monotonic() - self._asked < LOOK:
            return set()
        self._asked = time.monotonic()
        queued = self._ask()
        if queued is None:
            return set()
        missing = set(ids) - queued
        lost, self._missed = missing & self._missed, missing
        return lost


def _queued() -> set[str] | None:
    asked = _call(["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"])
    return None if asked is None else set(asked.split())


def stop_softly(ids: Iterable[str]) -> None:
    """Take waiting jobs back, and have running ones write a checkpoint and end.

    SIGINT, as from Ctrl-C: submitit's jobs ignore the SIGTERM of a plain ``scancel``, and are
    killed some 30 seconds after it.
    """
    ids = list(ids)
    if ids:
        _call(["scancel", "--state=PENDING", *ids])
        _call(["scancel", "--state=RUNNING", "--signal=INT", *ids])


def _call(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
