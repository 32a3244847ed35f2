"""``normbench`` with the fake engine: python tests/sweep/fakesweep.py sweep …

The workers of a sweep use it; so does this process for the command ``run``.

The environment variable ``FAKE_KILL`` may hold ``module:Class.method count``: the process kills
itself with SIGKILL as it makes that call for the count-th time.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from normbench.cli import entry
from normbench.sweep.executors import pool


def kill_at(place: str) -> None:
    """Have the process kill itself at a call; see the module."""
    path, count = place.split()
    module, _, name = path.partition(":")
    owner_name, _, method = name.rpartition(".")
    owner = getattr(import_module(module), owner_name)
    original, calls_left = getattr(owner, method), [int(count)]

    def call(*arguments: Any, **options: Any) -> Any:
        calls_left[0] -= 1
        if not calls_left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, method, call)


if __name__ == "__main__":
    pool.WORKER = [str(Path(__file__).with_name("fakeengine.py"))]
    if place := os.environ.get("FAKE_KILL"):
        kill_at(place)
    if sys.argv[1:2] == ["run"]:
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from tests.sweep.fakeengine import install

        install()
    entry()
