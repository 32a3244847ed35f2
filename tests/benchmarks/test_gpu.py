"""The scripts of benchmarks/gpu on a machine without a GPU: refusals and rehearsals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"

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


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # the suite's XLA_FLAGS make steps slow
    command = [sys.executable, str(GPU / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=500
    )


def test_speed_without_a_gpu_is_refused_in_one_line():
    process = _run("fast.py")
    assert process.returncode == 1
    assert "there is none on this machine" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_loop_step_counts_launches_and_bytes(monkeypatch):
    monkeypatch.syspath_prepend(GPU)
    from compiled_step import Cost, Program  # pyright: ignore[reportMissingImports]

    # Bytes: the slice and its index read, and the slice written; the library's operand and result
    # without its workspace; the two numbers compared, and the result.
    assert Program(HLO).loop_step() == Cost(3, (32 + 4 + 32) + (32 + 32) + (4 + 4 + 1))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.syspath_prepend(GPU)
    from wheels import missing  # pyright: ignore[reportMissingImports]

    lock = """\
jax==0.10.2 \\
    --hash=sha256:00
keras==3.15.1 \\
    --hash=sha256:11
Markup_Safe==3.0.4 \\
    --hash=sha256:22
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:33
optree==0.20.0 \\
    --hash=sha256:44
"""
    assert missing(lock, "numpy==2.5\nmarkup-safe==2.0\n") == ["keras==3.15.1", "optree==0.20.0"]


@pytest.mark.slow
def test_speed_is_rehearsed(tmp_path):
    pytest.importorskip("torch")
    process = _run("fast.py", "--rehearse", "--archs", "airbench", "--out", str(tmp_path))
    assert process.returncode == 0, process.stderr
    text = (tmp_path / "fast.md").read_text()
    assert text.startswith("**REHEARSAL")
    assert "Left out" not in text
    # The script ends in an error if the number differs between the two implementations.
    assert "airbench gn 1,972,504" in text
    assert (tmp_path / "fast.json").is_file()


@pytest.mark.slow
def test_step_is_compared_with_the_reference(tmp_path):
    reference, out = tmp_path / "reference.npz", tmp_path / "right.json"
    words = ("--norms", "xbn", "--workers", "1")
    process = _run("right.py", "--write", str(reference), *words)
    assert process.returncode == 0, process.stderr

    def compare() -> dict:
        _run("right.py", "--against", str(reference), "--out", str(out), *words)
        return json.loads(out.read_text())

    result = compare()
    assert result["failed"] == result["missing"] == []
    assert set(result["cases"]) == {"xbn float32", "xbn tf32", "xbn mixed_bfloat16"}
    assert result["cases"]["xbn float32"]["distances"]["gradient"] == 0.0  # the same machine

    with np.load(reference) as file:
        arrays = dict(file)
    arrays["xbn float32/gradient"] = arrays["xbn float32/gradient"] * 1.01
    np.savez(reference, **arrays)
    assert compare()["failed"] == ["xbn float32"]


@pytest.mark.slow
def test_complete_runs_are_rehearsed(tmp_path):
    words = ("--epochs", "1", "--seeds", "0", "--grid", "epochs=1", "--out", str(tmp_path))
    process = _run("useful.py", "--rehearse", *words)
    assert process.returncode == 0, process.stderr
    assert "| 1 | 1 | " in process.stdout
    with tarfile.open(tmp_path / "stores.tar.gz") as archive:
        names = archive.getnames()
    assert sum(name.endswith("summary.json") for name in names) == 3
    assert not any("checkpoint" in name for name in names)


@pytest.mark.slow
@pytest.mark.data
def test_unpacking_packed_images_restores_the_published_files(tmp_path, real_data):
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    process = _run(
        "images.py",
        "pack",
        str(real_data / "cifar-10-batches-py"),
        str(packed),
        "--files",
        "test_batch",
    )
    assert process.returncode == 0, process.stderr
    assert (packed / "test_batch.webp").stat().st_size < 18_000_000
    process = _run("images.py", "unpack", str(packed), str(unpacked))
    assert process.returncode == 0, process.stderr  # the script compares the published checksum
    assert (unpacked / "test_batch.bin").stat().st_size == 10_000 * 3073
