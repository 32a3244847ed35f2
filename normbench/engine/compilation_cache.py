"""An on-disk cache of the programs that JAX compiles; :func:`keep` turns it on.

It is for GPUs, where compiling takes longest because XLA times kernels to choose between them. The
other workers of a sweep, and later sweeps, reuse what one worker has compiled. XLA's choices are
stored with the program, so that a resumed run computes as before.

It is not used on a CPU, where it would only save seconds: JAX logs a line when a program was
compiled for another processor, but still runs it and may crash (jax-ml/jax issue 38445).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import filelock

from normbench.store.files import user_cache

log = logging.getLogger("normbench")

MAX_BYTES = 2 * 2**30
"""Size of the cache above which JAX drops the least recently used programs."""

_MIN_SECONDS = 0.5
"""A program that compiles in less time is not stored."""


def keep(folder: Path | None = None) -> Path | None:
    """Make JAX read programs from the cache and store newly compiled ones there.

    A folder set through ``JAX_COMPILATION_CACHE_DIR`` or JAX's own settings is left unchanged. If
    the folder cannot be written, JAX compiles without a cache and the log says so.

    Args:
        folder: Folder of the cache; by default one in the user's cache folder.

    Returns:
        The folder, or None if the cache is not turned on here.
    """
    import jax

    settings: Any = jax.config  # its attributes are made at run time
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return None
    folder = folder or user_cache() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_broken(folder)
    except OSError as error:
        log.info("compiled programs are not cached: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
    return folder


def _drop_broken(folder: Path) -> None:
    """Remove files that a process had not finished writing when it, or its machine, died.

    JAX neither replaces such a file nor counts its size correctly.
    """
    try:
        with filelock.FileLock(folder / ".lockfile", timeout=1):  # JAX's own
            for entry in folder.glob("*-cache"):
                stamp = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
                if not entry.stat().st_size or not stamp.is_file() or not stamp.stat().st_size:
                    entry.unlink()
                    stamp.unlink(missing_ok=True)
    except filelock.Timeout:  # in use: the other process has just cleaned up
        return
