"""Loops of the current backend over a few random images."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np

from normbench.config import compose
from normbench.engine import backend
from normbench.engine.augment import Images
from normbench.engine.loop import LoopSettings
from normbench.engine.optimizer import SGD
from normbench.network import build_model

#: Four normalized convolutions: quick to trace, which takes most of a test's time.
SMALL = ("arch=conv_encoder", "arch.widths=[8]", "arch.halvings=1", "arch.embedding=8")

#: Two normalized convolutions and an embedding, for whole runs.
TINY = ("arch=conv_encoder", "arch.widths=[4]", "arch.halvings=0", "arch.embedding=4")

#: What a run measures with a clock.
TIMES = {"time", "images_per_s", "train_seconds", "eval_seconds", "wall_seconds"}


def without_times(rows):
    """Return rows of metrics, or summaries, without what differs between equal runs."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


class SharedLoops:
    """Loops by their options, so that tests with equal options compile once.

    Each module has its own (fixture `shared_loop`), because runs of other modules may call
    `keras.backend.clear_session()`, which makes loops unusable.
    """

    def __init__(self):
        self._loops = {}

    def __call__(self, *overrides, **changes):
        """Return what `loop_of()` returns, with the loop in its initial state."""
        key = repr((overrides, sorted(changes.items())))
        if key not in self._loops:
            loop, split = loop_of(*overrides, **changes)
            self._loops[key] = loop, split, loop.state()
        loop, split, initial_state = self._loops[key]
        loop.load(initial_state)
        return loop, split


def random_split(seed, count, shape, classes):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, count).astype(np.int32)
    return SimpleNamespace(images=images, labels=labels)


def loop_of(*overrides, count=32, batch=16, classes=4, momentum=0.0, size=8, **changes):
    """Return a loop and its only split; keyword arguments change the loop's settings."""
    has_arch = any(override.startswith("arch=") for override in overrides)
    config = compose([*([] if has_arch else SMALL), f"batch={batch}", *overrides])
    backend.start(keras.backend.backend(), config.precision)
    split = random_split(1, count, (size, size, 3), classes)
    data = SimpleNamespace(train=split, validation=split, test=split)
    options = {
        "batch": batch,
        "eval_batch": 16,
        "seed": 3,
        "smoothing": 0.1,
        "optimizer": SGD(momentum=momentum, nesterov=False, weight_decay=0.0, agc=0.0),
        "images": Images(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32), 0, False),
        "scaled_loss": config.precision == "mixed_float16",
        "auxiliary_weight": config.arch.get("auxiliary_weight", 0.0),
        **changes,
    }
    model = build_model(config, (size, size, 3), classes)
    loop = backend.loop_class(keras.backend.backend())(model, data, LoopSettings(**options))
    return loop, split


def first_batch(split, batch=16):
    from normbench.engine.random import epoch_order

    order = keras.ops.convert_to_numpy(epoch_order(np.uint32(3), np.int32(0), len(split.labels)))
    return split.images[order[:batch]], split.labels[order[:batch]]


def gradient_and_step(loop, split):
    """The loss and gradient of the first mini-batch, the step taken on it, and its update."""
    loop.begin_epoch(0)
    pixels, labels = first_batch(split)
    before = loop.weights()
    loss, gradient = loop.gradients(pixels, labels)
    steps = loop.train(0, np.array([2.0**-6], np.float32))
    return loss, gradient, steps, (before - loop.weights()) * 2.0**6
