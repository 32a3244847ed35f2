"""``normbench`` with the fake engine: python tests/sweep/fakesweep.py sweep …

The workers of a sweep run it; so does this process for the command ``run``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from normbench.cli import entry
from normbench.sweep.executors import pool

if __name__ == "__main__":
    pool.WORKER = [str(Path(__file__).with_name("fakeengine.py"))]
    if sys.argv[1:2] == ["run"]:
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from tests.sweep.fakeengine import install

        install()
    entry()
