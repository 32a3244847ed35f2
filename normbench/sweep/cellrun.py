"""One cell trained in this process, and whatever happens told as an :class:`Ending`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.engine.reuse import Kept
from normbench.errors import reason
from normbench.store import Run, RunLocked, Store, StoreError
from normbench.sweep.ending import Ending, cause_of, last_lines


def train_cell(
    config: Config,
    store: Store,
    *,
    observer: Observer,
    command: Sequence[str],
    kept: Kept,
    mend: bool = False,
    may_split: bool = True,
) -> Ending:
    """Train a run unless it is complete; no failure of it leaves this function.

    Args:
        config: Of the run.
        store: Where it is kept.
        observer: Is told how it goes.
        command: What its record names as the command.
        kept: Of the run before in this process.
        mend: Set the run's folder aside and begin anew if its files are damaged.
        may_split: Whether ``accumulate=auto`` may split the batch where memory is short.

    Raises:
        KeyboardInterrupt: Passed on; the run was left resumable.
    """
    began = time.monotonic()
    run = store.run(config)

    def ended(result: Any, cause: Any = "", error: str = "", log: tuple[str, ...] = ()) -> Ending:
        return Ending(result, cause, error, log, time.monotonic() - began)

    try:
        if mend:
            set_damaged_aside(run, command)
        if run.status in ("finished", "diverged"):  # spares the import of Keras
            return ended("skipped")
        from normbench.engine.training import train

        if not kept.serves(config):
            kept.forget_loop()
        outcome = train(
            config, store, observer=observer, command=command, kept=kept, may_split=may_split
        )
    except RunLocked as error:
        return ended("locked", error=str(error))
    except Exception as error:
        kept.forget()
        cause = cause_of(error)
        log = () if cause == "refused" else log_of(run)
        return ended("failed", cause, reason(error), log)
    if not outcome.trained:
        return ended("skipped")
    return ended("diverged" if outcome.summary["status"] == "diverged" else "trained")


def log_of(run: Run) -> tuple[str, ...]:
    """The last lines of a run's log; none where there is no log."""
    try:
        return last_lines(run.log_path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ()


def set_damaged_aside(run: Run, command: Sequence[str]) -> bool:
    """Move a run's folder out of the way if its files are damaged, be the run complete or not.

    It stays in the store as a hidden folder, ``.<name>.damaged-<time>``, for a person to look at.

    Returns:
        Whether it was moved.

    Raises:
        RunLocked: Another process trains the run.
        StoreError: It cannot be moved.
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
