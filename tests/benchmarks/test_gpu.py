"""benchmarks/gpu.py without a GPU: it says so; its rehearsal runs; its reading of HLO counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

HLO = """\
HloModule jit_loop, is_scheduled=true

%fused (p.0: f32[100,8], p.1: s32[]) -> f32[1,8] {
  %p.0 = f32[100,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %c = s32[] constant(0)
  ROOT %part = f32[1,8]{1,0} dynamic-slice(%p.0, %p.1, %c), dynamic_slice_sizes={1,8}
}

%graph (q: f32[1,8]) -> (f32[1,8], u8[64]) {
  %q = f32[1,8]{1,0} parameter(0)
  ROOT %conv = (f32[1,8]{1,0}, u8[64]{0}) custom-call(%q), custom_call_target="library"
}

%body (s: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %s = (s32[], /*index=1*/f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[100,8]{1,0} get-tuple-element(%s), index=1
  %row = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %made = (f32[1,8]{1,0}, u8[64]{0}) call(%row), to_apply=%graph
  ROOT %t = (s32[], f32[100,8]{1,0}) tuple(%i, %x)
}

%condition (r: (s32[], f32[100,8])) -> pred[] {
  %r = (s32[], f32[100,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%r), index=0
  ROOT %less = pred[] compare(%n, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %a = (s32[], f32[100,8]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[100,8]{1,0}) while(%a), condition=%condition, body=%body
}
"""


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


def test_counts_what_a_step_launches_and_moves(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from compiled_step import Cost, Program  # pyright: ignore[reportMissingImports]

    # The slice and its index, read, and the slice written; the library's operand and result
    # without its workspace; the two numbers compared, and the answer.
    assert Program(HLO).loop_step() == Cost(3, (32 + 4 + 32) + (32 + 32) + (4 + 4 + 1))


@pytest.mark.slow
def test_rehearses(tmp_path):
    pytest.importorskip("torch")
    parts = ("throughput", "limits", "together", "sweep")
    ended = _run("--rehearse", "--parts", *parts, "--archs", "airbench", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("**REHEARSAL")
    assert "Left out" not in text
    assert (
        "airbench gn 1,972,504" in text
    )  # the same in both; where not, the script ends in an error
    assert (tmp_path / "gpu.json").is_file()
