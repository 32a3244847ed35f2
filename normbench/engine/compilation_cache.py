"""What JAX compiles, kept on disk for processes to come.

For a GPU, where XLA times kernels to choose between them, compiling takes longest; a sweep's
workers, and the sweep of tomorrow, then read what one has compiled. The choices are kept with it,
so that a run that goes on computes as it did before.

Not for a CPU, where it would save seconds: what was compiled for one processor is run on another
after no more than a line in the log, and may crash there (jax-ml/jax issue 38445).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import filelock

from normbench.store.files import user_cache

log = logging.getLogger("normbench")

LARGEST = 2 * 2**30
"""Bytes, beyond which JAX drops what has not been used for longest."""

_WORTHWHILE = 0.5
"""Seconds to compile from which on a program is kept."""


def keep(folder: Path | None = None) -> Path | None:
    """Have JAX read what it has compiled before, and keep what it compiles from here on.

    A folder that the user has named, by ``JAX_COMPILATION_CACHE_DIR``, or JAX's own settings, stay.
    Without a folder that can be written JAX goes on compiling anew, which is said in the log.

    Args:
        folder: Where; by default in the user's cache folder.

    Returns:
        The folder, or None where it was left to JAX.
    """
    import jax

    settings: Any = jax.config  # whose attributes it makes as it runs
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return None
    folder = folder or user_cache() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_broken(folder)
    except OSError as error:
        log.info("nothing compiled is kept: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTHWHILE)
    return folder


def _drop_broken(folder: Path) -> None:
    """Remove what a process that died, or its machine, had not written to the end.

    JAX neither replaces such a file nor counts it rightly.
    """
    try:
        with filelock.FileLock(folder / ".lockfile", timeout=1):  # JAX's own
            for entry in folder.glob("*-cache"):
                stamp = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
                if not entry.stat().st_size or not stamp.is_file() or not stamp.stat().st_size:
                    entry.unlink()
                    stamp.unlink(missing_ok=True)
    except filelock.Timeout:  # in use: another process has just looked
        return
