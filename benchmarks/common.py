"""Helpers of the benchmarks: random images, a compiled loop, timing and formatting."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normbench.config import Config

CLASSES = 10
ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""


def random_split(count: int, seed: int = 0) -> Any:
    """Return random images, uint8 (``count``, 32, 32, 3), and labels, int32."""
    import numpy as np

    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return SimpleNamespace(images=images, labels=rng.integers(0, CLASSES, count, np.int32))


def import_path(*folders: Path) -> str:
    """Return a PYTHONPATH with this checkout, further folders and the present PYTHONPATH."""
    paths = [ROOT, *folders, os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(str(path) for path in paths if path)


def compiled_loop(config: Config, data: Any, **changes: Any) -> Any:
    """Start a config's backend and return a compiled training loop on its network, as in a run.

    Args:
        config: Its network, norm, batch, precision and backend are used.
        data: Object with the splits ``train``, ``validation`` and ``test``.
        changes: Fields of ``LoopSettings`` that override the defaults here.

    Raises:
        UserError: The network cannot be built.
    """
    from normbench.engine import backend

    backend.start(config.backend, config.precision)  # before anything imports Keras

    import numpy as np

    from normbench.engine.augment import Images
    from normbench.engine.loop import LoopSettings
    from normbench.engine.optimizer import SGD
    from normbench.network import build_model

    settings = {
        "batch": config.batch,
        "eval_batch": config.eval_batch,
        "seed": 0,
        "smoothing": 0.0,
        "optimizer": SGD(momentum=0.9, nesterov=True, weight_decay=5e-4, agc=0.0),
        "images": Images(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32), 4, True),
        "scaled_loss": False,
    }
    make: Any = backend.loop_class(config.backend)
    model = build_model(config, (32, 32, 3), CLASSES)
    loop = make(model, data, LoopSettings(**settings | changes))
    loop.compile()
    return loop


def seconds_a_step(loop: Any, count: int) -> float:
    """Train the first ``count`` steps of an epoch; return the mean seconds per step."""
    import numpy as np

    loop.begin_epoch(0)
    start = time.perf_counter()
    # A rate of 0 leaves the weights unchanged, so none drifts to values that are slower to compute.
    loop.train(0, np.zeros(count, np.float32))
    return (time.perf_counter() - start) / count


def by_turns(
    loop: Any, peer: Any, count: int, rounds: int
) -> tuple[list[float], list[float], list[float]]:
    """Measure two loops alternately, ``count`` steps at a time.

    Returns:
        For each round, the loop's seconds per step, the peer's seconds per step just afterwards,
        and the ratio of the loop's to the mean of the peer's before and after it.
    """
    loops, peers, ratios = [], [], []
    before = seconds_a_step(peer, count)
    for _ in range(rounds):
        loops.append(seconds_a_step(loop, count))
        after = seconds_a_step(peer, count)
        ratios.append(2 * loops[-1] / (before + after))
        peers.append(after)
        before = after
    return loops, peers, ratios


def shown(values: Iterable[float], digits: int = 2) -> str:
    """Format the median of values and their range, as ``2.0 (1.5–2.5)``."""
    sorted_values = sorted(values)
    middle, low, high = (
        f"{value:,.{digits}f}"
        for value in (statistics.median(sorted_values), sorted_values[0], sorted_values[-1])
    )
    return f"{middle} ({low}–{high})"


def machine() -> str:
    """Return the processor's name and the number of cores this process may use."""
    from normbench.engine import threads
    from normbench.machine import processor

    return f"{processor()}, {threads.cores()} cores"
