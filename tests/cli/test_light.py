"""Fast start of the command line: slow modules are imported only when they are needed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAVY = (
    "tensorflow",
    "keras",
    "jax",
    "tensorflow_datasets",
    "pandas",
    "matplotlib",
    "scipy",
    "sklearn",
    "hydra",
    "omegaconf",
)
REPORT = f"""
import sys
print("imported:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""
IMPORT = "import normbench" + REPORT
HELP = f"""
import sys
sys.argv = ["normbench", "--help"]
from normbench.cli import main
try:
    status = main()
except SystemExit as end:
    status = end.code
{REPORT}
sys.exit(status)
"""


def python(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import normbench", "normbench --help"])
def test_no_heavy_module_is_imported(code: str) -> None:
    assert python(code).splitlines()[-1].strip() == "imported:"


def test_help_reads_no_configs() -> None:
    code = HELP.replace("sys.exit(status)", "print('yaml' in sys.modules)")
    assert python(code).splitlines()[-1] == "False"


def test_check_detects_a_heavy_module() -> None:
    assert python("import omegaconf" + REPORT).strip() == "imported: omegaconf"


def test_help_lists_the_commands() -> None:
    text = python(HELP)
    for command in ("run", "sweep", "report", "list", "show", "data", "doctor"):
        assert command in text


def test_help_takes_less_than_0_3_seconds() -> None:
    # Processor time rather than wall time, so that a busy machine does not matter.
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(HELP)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3, seconds
