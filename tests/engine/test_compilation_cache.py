"""Compiled programs cached on disk: reused, with identical results, and never truncated.

Runs only cache them for GPUs; JAX reads and writes them in the same way for a CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from normbench.engine.compilation_cache import _drop_broken, keep
from tests.conftest import REPOSITORY

if keras.backend.backend() != "jax":
    pytest.skip("JAX's", allow_module_level=True)

TRAIN = """
import hashlib, sys
from pathlib import Path
import jax, numpy as np
from normbench.engine import compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
if len(sys.argv) > 1:
    compilation_cache._MIN_SECONDS = 0.2
    assert compilation_cache.keep(Path(sys.argv[1])) == Path(sys.argv[1])
from tests.engine.tinyloop import loop_of
loop, _ = loop_of("norm=bn")
loop.begin_epoch(0)
loop.train(0, np.full(2, 0.1, np.float32))
print(hits.count("/jax/compilation_cache/cache_hits"))
print(hashlib.sha256(loop.weights().tobytes()).hexdigest())
"""


def train(*folder: Path) -> tuple[int, str]:
    """Take two steps in a new process; return the number of programs read and a weights hash."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    read, weights = done.stdout.split()
    return int(read), weights


def test_cached_program_is_reused_with_identical_results(tmp_path):
    plain = train()
    assert plain[0] == 0
    assert train(tmp_path) == plain
    cached = sorted(tmp_path.glob("*-cache"))
    assert cached
    assert train(tmp_path) == (len(cached), plain[1])


def test_entries_truncated_by_a_crash_are_dropped(tmp_path):
    for name in ("whole", "empty", "unstamped", "stamp-empty"):
        (tmp_path / f"{name}-cache").write_bytes(b"" if name == "empty" else b"program")
        if name != "unstamped":
            (tmp_path / f"{name}-atime").write_bytes(b"" if name == "stamp-empty" else b"12345678")
    _drop_broken(tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {".lockfile"}
    assert left == {"whole-cache", "whole-atime"}


@pytest.fixture
def settings():
    """JAX's settings, restored afterwards."""
    import jax

    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_settings_of_the_user_are_respected(tmp_path, settings):
    settings.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep(tmp_path / "ours") is None
    assert settings.jax_compilation_cache_dir == str(tmp_path / "own")
    settings.update("jax_compilation_cache_dir", None)
    settings.update("jax_enable_compilation_cache", False)
    assert keep(tmp_path / "ours") is None
    assert not (tmp_path / "ours").exists()


def test_default_is_the_users_cache_folder(tmp_path, settings, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep() == tmp_path / "normbench" / "jax"
    assert settings.jax_compilation_cache_dir == os.fspath(tmp_path / "normbench" / "jax")


def test_nothing_is_cached_in_an_unwritable_folder(tmp_path, settings, caplog):
    (tmp_path / "file").touch()
    caplog.set_level("INFO", "normbench")
    assert keep(tmp_path / "file" / "folder") is None
    assert settings.jax_compilation_cache_dir is None
    assert "compiled programs are not cached" in caplog.text


def test_cpu_runs_cache_nothing(settings):
    from normbench.engine import backend

    backend.start("jax", "float32")
    assert settings.jax_compilation_cache_dir is None
