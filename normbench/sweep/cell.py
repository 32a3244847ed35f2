"""One cell trained in this process, and whatever happens told as an :class:`CellResult`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.errors import chain, is_out_of_memory, reason
from normbench.store.store import Run, RunLocked, Store, StoreError


def train_cell(
    config: Config,
    store: Store,
    *,
    observer: Observer,
    command: Sequence[str],
    warm: WarmState,
    replace_damaged: bool = False,
    may_split: bool = True,
) -> CellResult:
    """Train a run unless it is complete; no failure of it leaves this function.

    Args:
        config: Of the run.
        store: Where it is kept.
        observer: Is told how it goes.
        command: What its record names as the command.
        warm: Of the run before in this process.
        replace_damaged: Set the run's folder aside and begin anew if its files are damaged.
        may_split: Whether ``accumulate=auto`` may split the batch where memory is short.

    Raises:
        KeyboardInterrupt: Passed on; the run was left resumable.
    """
    began = time.monotonic()
    run = store.run(config)

    def ended(
        result: Any, cause: Any = "", error: str = "", log: tuple[str, ...] = ()
    ) -> CellResult:
        return CellResult(result, cause, error, log, time.monotonic() - began)

    try:
        if replace_damaged:
            set_damaged_aside(run, command)
        if run.status in ("finished", "diverged"):  # spares the import of Keras
            return ended("skipped")
        from normbench.engine.train import train

        if not warm.has_loop_for(config):
            warm.drop_loop()
        outcome = train(
            config, store, observer=observer, command=command, warm=warm, may_split=may_split
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


# --- how a cell of a sweep ended, and what that says of the failure -------------------------------

Result = Literal["trained", "diverged", "skipped", "locked", "interrupted", "failed"]
"""``skipped``: complete already; ``locked``: another process trains it; ``interrupted``: left
resumable on request."""

Cause = Literal["", "refused", "memory", "disk", "died", "error"]
"""Of a failure: ``refused`` before anything was trained (the config, the data set), out of
``memory``, ``disk`` full, the worker ``died``, any other ``error``."""

LOG_LINES = 12


@dataclass(frozen=True)
class CellResult:
    """What became of a cell.

    Attributes:
        result: In one word.
        cause: Of a failure.
        error: Of a failure, in one line.
        log: The last lines of the log that say more, or none.
        seconds: From handing it out to its end.
        tries: How often it was begun in this sweep.
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


def cause_of(error: BaseException) -> Cause:
    """Say what kind of failure an exception is."""
    from normbench.errors import UserError

    if is_out_of_memory(error):
        return "memory"
    for each in chain(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk"
    return "refused" if isinstance(error, UserError) else "error"


def last_lines(text: str, count: int = LOG_LINES) -> tuple[str, ...]:
    """The last ``count`` lines of a log that are not empty, each cut at 300 characters.

    Where Python wrote on its death where it was, innermost call first, the lines around the
    beginning of that say more than its end.
    """
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    fatal = [n for n, line in enumerate(lines) if line.startswith("Fatal Python error")]
    if fatal:
        return tuple(lines[max(0, fatal[-1] - count // 2) :][:count])
    return tuple(lines[-count:])


# --- what a sweep shows of a run while it trains, told by the engine ------------------------------


class ProgressObserver(Observer):
    """Tells what is known of a run, as in :meth:`SweepObserver.progress`.

    Args:
        tell: Is handed the facts that are known anew.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._tell = tell

    def on_start(self, info: Mapping[str, Any]) -> None:
        self._tell(
            {
                "epoch": info.get("resumed_from") or 0,
                "epochs": info.get("epochs"),
                "step": 0,
                "steps": info.get("steps_per_epoch"),
            }
        )

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        self._tell(
            {
                "epoch": epoch - 1,  # completed ones
                "step": step,
                "steps": steps_per_epoch,
                "loss": loss,
                "acc": acc,
                "images_per_s": images_per_s,
            }
        )

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._tell(
            {
                "epoch": row["epoch"],
                "step": 0,
                "loss": row.get("train_loss"),
                "acc": row.get("train_acc"),
                "val_acc": row.get("val_acc"),
                "images_per_s": row.get("images_per_s"),
            }
        )
