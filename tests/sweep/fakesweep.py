"""``normbench`` with workers of the fake engine: python tests/sweep/fakesweep.py sweep …"""

from __future__ import annotations

import sys
from pathlib import Path

from normbench.cli import main
from normbench.sweep import workerprocess

if __name__ == "__main__":
    workerprocess.WORKER = [str(Path(__file__).with_name("fakeengine.py"))]
    sys.exit(main())
