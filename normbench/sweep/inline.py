"""The executor that trains a sweep's cells one after the other in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.store import RunLocked, Store

Result = Literal["trained", "diverged", "skipped", "failed", "locked"]


@dataclass(frozen=True)
class Cell:
    """What became of one cell of a sweep.

    Attributes:
        config: The cell's config.
        result: "skipped" where the run was complete already, "locked" where another process
            trains it.
        reason: Of a failure, in one line.
    """

    config: Config
    result: Result
    reason: str = ""


def run_inline(
    configs: Sequence[Config],
    store: Store,
    observer_of: Callable[[int], Observer],
    command: Sequence[str],
) -> list[Cell]:
    """Train each config that is not complete; a failure ends its own cell only.

    Raises:
        KeyboardInterrupt: Passed on once the running cell left a checkpoint.
    """
    return [
        _cell(config, store, observer_of(index), command) for index, config in enumerate(configs)
    ]


def _cell(config: Config, store: Store, observer: Observer, command: Sequence[str]) -> Cell:
    run = store.run(config)
    if run.status in ("finished", "diverged"):
        return Cell(config, "skipped")
    from normbench.engine.training import train

    try:
        outcome = train(config, store, observer=observer, command=command)
    except RunLocked as error:
        return Cell(config, "locked", str(error))
    except Exception as error:
        return Cell(config, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        _forget_models()
    if not outcome.trained:
        return Cell(config, "skipped")
    return Cell(config, "diverged" if outcome.summary["status"] == "diverged" else "trained")


def _forget_models() -> None:
    """Let go of the last cell's graphs, which Keras and TensorFlow would keep."""
    import sys

    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()
    gc.collect()
