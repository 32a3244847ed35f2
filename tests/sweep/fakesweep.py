"""``normbench`` with workers of the fake engine: python tests/sweep/fakesweep.py sweep …"""

from __future__ import annotations

from pathlib import Path

from normbench.cli import entry
from normbench.sweep import workerprocess

if __name__ == "__main__":
    workerprocess.WORKER = [str(Path(__file__).with_name("fakeengine.py"))]
    entry()
