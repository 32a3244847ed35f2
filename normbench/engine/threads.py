"""The threads TensorFlow computes with on a CPU, and the parts of a batch that they share out.

An operation of a small network takes a fraction of a millisecond: shared out between cores, each
waits for the other about as long as it computes. So a batch goes through the network in shards,
side by side, with a few threads each, and what needs all its images gets them together.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import cache

log = logging.getLogger("normbench")

MOST_SHARDS = 4
"""More would leave few images a shard at the batch sizes that matter most."""


def available() -> int:
    """The threads this process may compute with: ``TF_NUM_INTRAOP_THREADS``, else its cores."""
    limit = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if limit.isdigit() and int(limit):
        return int(limit)
    return cores()


def core_ids() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may run on."""
    return len(core_ids())


def shards(threads: int) -> int:
    """Into how many shards a batch is divided: of the threads alone, as are a run's roundings."""
    return max(count for count in range(1, MOST_SHARDS + 1) if threads % count == 0)


def tensorflow_shards() -> int:
    """Into how many shards TensorFlow takes a batch here: one on a GPU, which is not divided."""
    import tensorflow as tf

    return 1 if tf.config.list_physical_devices("GPU") else shards(available())


def divide(shards: int) -> None:
    """Have TensorFlow give each shard its own threads, which it does unless it is in use already.

    See :func:`are_divided`.
    """
    import tensorflow as tf

    if shards == 1:
        return
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(available() // shards)
        tf.config.threading.set_inter_op_parallelism_threads(shards)


def are_divided(shards: int) -> bool:
    """Whether TensorFlow gives each shard its own threads."""
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
    """Say, once, that the threads could not be divided."""
    log.warning(
        "TensorFlow was in use before normbench: its threads cannot be divided any more, so that "
        "runs here are slower, and rounded otherwise, than in a process of their own"
    )
