"""One cell of a sweep, trained in this process: :func:`train_cell`."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.errors import UserError, chain, is_out_of_memory, reason
from normbench.store.store import Run, RunLocked, Store, StoreError

Result = Literal["trained", "diverged", "skipped", "locked", "interrupted", "failed"]
"""``skipped``: it was already complete; ``locked``: another process trains it; ``interrupted``: it
was stopped on request and can be resumed."""

RESULTS: tuple[Result, ...] = get_args(Result)
"""The results in the order in which counts list them."""

Cause = Literal["", "refused", "memory", "disk", "died", "error"]
"""Cause of a failure. ``refused``: nothing was trained, because of the config or the data set;
``memory``: out of memory; ``disk``: the disk is full; ``died``: the worker process died;
``error``: anything else."""

LOG_LINES = 12
"""Number of log lines that are shown with a failure."""


@dataclass(frozen=True)
class CellResult:
    """The result of a cell.

    Attributes:
        result: How it ended, in one word.
        cause: Kind of failure.
        error: Message of the failure, in one line.
        log: The lines of its log that explain the failure.
        seconds: Time from its start to its end.
        tries: Number of times that this sweep started it.
    """

    result: Result
    cause: Cause = ""
    error: str = ""
    log: tuple[str, ...] = ()
    seconds: float = 0.0
    tries: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> CellResult:
        return replace(cls(**{**tree, "log": ()}), log=tuple(tree["log"]))


def train_cell(order: Mapping[str, Any], observer: Observer, warm: WarmState) -> CellResult:
    """Train a cell unless its run is complete. Failures are returned, never raised.

    Args:
        order: The cell, as :meth:`~normbench.sweep.executors.base.SweepContext.order` returns it.
        observer: Receives the run's progress.
        warm: State of this process's previous run, which this run uses and replaces.

    Raises:
        KeyboardInterrupt: The run was interrupted; it can be resumed.
    """
    start = time.monotonic()
    config, store = Config.from_dict(order["config"]), Store(order["store"])
    run, command = store.run(config), order["command"]

    def ended(
        result: Result, cause: Cause = "", error: str = "", log: tuple[str, ...] = ()
    ) -> CellResult:
        return CellResult(result, cause, error, log, time.monotonic() - start)

    try:
        if order["replace_damaged"]:
            set_damaged_aside(run, command)
        if run.status in ("finished", "diverged"):  # checked before Keras is imported
            return ended("skipped")
        from normbench.engine.train import train

        if not warm.has_loop_for(config):
            warm.drop_loop()
        outcome = train(
            config,
            store,
            observer=observer,
            command=command,
            warm=warm,
            may_split=order["may_split"],
            tuned=order.get("tuned"),
        )
    except RunLocked as error:
        return ended("locked", error=str(error))
    except Exception as error:
        warm.drop_all()
        cause = cause_of(error)
        log = () if cause == "refused" else log_of(run)
        return ended("failed", cause, reason(error), log)
    if not outcome.trained:
        return ended("skipped")
    return ended("diverged" if outcome.summary["status"] == "diverged" else "trained")


def set_damaged_aside(run: Run, command: Sequence[str]) -> bool:
    """Rename the folder of a run if its files are damaged, even if the run is complete.

    The folder remains in the store under the hidden name ``.<name>.damaged-<time>``.

    Returns:
        True if the folder was moved.

    Raises:
        RunLocked: Another process trains the run.
        StoreError: The folder cannot be moved.
    """
    if not run.path.is_dir():
        return False
    with run.lock(command):
        if not _is_damaged(run):
            return False
        run.move_aside("damaged")
    return True


def _is_damaged(run: Run) -> bool:
    try:
        if run.verify() not in ("finished", "diverged"):
            run.load_checkpoint()
            run.load_checkpoint(best=True)
    except StoreError:
        return True
    return False


def cause_of(error: BaseException) -> Cause:
    """Return the kind of failure that an exception represents."""
    if is_out_of_memory(error):
        return "memory"
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk"
    return "refused" if isinstance(error, UserError) else "error"


def log_of(run: Run) -> tuple[str, ...]:
    """Return the last lines of a run's log; empty if it has no log."""
    try:
        return last_lines(run.log_path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ()


def last_lines(text: str, count: int = LOG_LINES) -> tuple[str, ...]:
    """Return the last ``count`` non-empty lines of a log, each truncated to 300 characters.

    When a signal kills Python, it prints the stack with the innermost call first. The lines around
    the start of that stack are then more informative than its end, and are returned instead.
    """
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    fatal = [n for n, line in enumerate(lines) if line.startswith("Fatal Python error")]
    if fatal:
        return tuple(lines[max(0, fatal[-1] - count // 2) :][:count])
    return tuple(lines[-count:])
