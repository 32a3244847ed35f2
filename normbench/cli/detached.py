"""``normbench sweep --detach``: a sweep that keeps running after the terminal is closed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from normbench.errors import NormbenchError
from normbench.store import lock, sweeps

LOGS = ".detached"
"""Folder in a store for the output of detached sweeps."""

_LOOK = 0.2
"""Seconds between checks whether the sweep has begun to train."""


def start(command: Sequence[str], store: str) -> int:
    """Start a sweep in its own session, and wait until it trains or has ended.

    Args:
        command: The command line, ``normbench sweep … --detach``.
        store: Folder of the store.

    Returns:
        0 if the sweep trains; else the exit code that it ended with.

    Raises:
        NormbenchError: The file for its output cannot be written.
    """
    root = Path(store)
    words = [word for word in command[1:] if word != "--detach"]
    old_folders = set(sweeps.folders(root))
    log = root / LOGS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("x", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "normbench", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # closing the terminal does not end it
            )
    except OSError as error:
        raise NormbenchError(f"cannot write {log}: {error.strerror}") from None
    while process.poll() is None:
        # Also the folders of other sweeps that begin just now.
        folders = set(sweeps.folders(root)) - old_folders
        owners = {folder.name: lock.owner_of(folder / "lock") or {} for folder in folders}
        name = next((name for name, owner in owners.items() if owner.get("pid") == process.pid), "")
        if name:
            print(f"sweep {name} runs in process {process.pid}; its output goes to {log}")
            print(f"normbench sweep status {name} --store {root}   # shows its progress")
            print(f"kill -INT {process.pid}   # stops it; the same command resumes it")
            return 0
        time.sleep(_LOOK)
    print(log.read_text(encoding="utf-8", errors="replace"), end="")
    log.unlink()
    return process.returncode
