"""Small runs to probe, on the backend of this process (KERAS_BACKEND)."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from normbench.config import compose
from normbench.engine import backend
from normbench.engine.augment import Images
from normbench.engine.loop import LoopSettings
from normbench.engine.optimizer import SGD
from normbench.engine.reuse import WarmState
from tests.engine.tinyloop import random_split


@pytest.fixture
def tiny(tmp_path):
    def make(*overrides: str, store: str = "runs"):
        return compose(
            [
                "dataset=digits",
                "dataset.train_size=160",
                "dataset.validation=100",
                "arch=mlp_sigmoid",
                "arch.units=7",
                "norm=bn",
                "batch=16",
                "epochs=2",
                f"backend={keras.backend.backend()}",
                f"store={tmp_path / store}",
                *overrides,
            ]
        )

    return make


@pytest.fixture(scope="module")
def warm() -> WarmState:
    """The compiled loop of the module's previous run, shared by all runs of one network.

    Reuse changes no bit of the results, as tests/engine/test_reuse.py shows.
    """
    return WarmState()


@pytest.fixture
def loop_on():
    """Make a loop of a model on random images, and return it with their data set."""

    def make(model: keras.Model, *, count: int = 48, batch: int = 16, **changes):
        split = random_split(5, count, model.input_shape[1:], int(model.output_shape[-1]))
        channels = model.input_shape[-1]
        dataset = SimpleNamespace(train=split, validation=split, test=split)
        options = {
            "batch": batch,
            "eval_batch": 20,
            "seed": 0,
            "smoothing": 0.0,
            "optimizer": SGD(momentum=0.0, nesterov=False, weight_decay=0.0, agc=0.0),
            "images": Images(
                np.full(channels, 0.5, np.float32), np.full(channels, 0.25, np.float32), 0, False
            ),
            "scaled_loss": False,
            **changes,
        }
        loop_class = backend.loop_class(keras.backend.backend())
        loop = loop_class(model, dataset, LoopSettings(**options))
        loop.begin_epoch(0)
        return loop, dataset

    return make
