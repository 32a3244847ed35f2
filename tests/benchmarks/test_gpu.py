"""benchmarks/gpu.py without a GPU: it says so, and its rehearsal runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # the suite's makes steps slow
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=500
    )


def test_says_that_there_is_no_gpu():
    ended = _run()
    assert ended.returncode == 1
    assert "there is none on this machine" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_rehearses(tmp_path):
    pytest.importorskip("torch")
    parts = ("throughput", "together")
    ended = _run("--rehearse", "--parts", *parts, "--archs", "airbench", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("**REHEARSAL")
    assert "Left out" not in text
    assert (
        "airbench gn 1,972,504" in text
    )  # the same in both; where not, the script ends in an error
    assert (tmp_path / "gpu.json").is_file()
