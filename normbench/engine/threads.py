"""TensorFlow's threads on a CPU, divided among the shards of a batch.

An operation of a small network takes a fraction of a millisecond. If it were divided among all
cores, each would wait for the others about as long as it computes. Instead the batch is divided
into shards, which go through the network in parallel, with a few threads each
(:mod:`normbench.engine.shards`).
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import cache

log = logging.getLogger("normbench")

MAX_SHARDS = 4
"""Maximum number of shards: more would leave few images per shard at small batch sizes."""


def available() -> int:
    """Return the number of threads to compute with: ``TF_NUM_INTRAOP_THREADS``, else the cores."""
    limit = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if limit.isdigit() and int(limit):
        return int(limit)
    return cores()


def core_ids() -> list[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(core_ids())


def shards(threads: int) -> int:
    """Return the number of shards of a batch, which depends only on the number of threads.

    The number of shards affects a run's rounding, so it must not depend on anything else.
    """
    return max(count for count in range(1, MAX_SHARDS + 1) if threads % count == 0)


def tensorflow_shards() -> int:
    """Return the number of shards of a batch on this machine; 1 on a GPU."""
    import tensorflow as tf

    return 1 if tf.config.list_physical_devices("GPU") else shards(available())


def divide(shards: int) -> None:
    """Make TensorFlow give each shard its own threads.

    This has no effect if TensorFlow is already in use; :func:`are_divided` checks that.
    """
    import tensorflow as tf

    if shards == 1:
        return
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(available() // shards)
        tf.config.threading.set_inter_op_parallelism_threads(shards)


def are_divided(shards: int) -> bool:
    """Return whether TensorFlow gives each shard its own threads."""
    if shards == 1:
        return True
    import tensorflow as tf

    setting = tf.config.threading
    return (available() // shards, shards) == (
        setting.get_intra_op_parallelism_threads(),
        setting.get_inter_op_parallelism_threads(),
    )


@cache
def warn() -> None:
    """Log, once, that the threads could not be divided."""
    log.warning(
        "TensorFlow was in use before normbench, so its threads cannot be divided: runs here are "
        "slower than in a separate process, and round differently"
    )
