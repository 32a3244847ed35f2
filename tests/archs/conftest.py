"""Fixtures for tests of networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from normbench import initializers


@pytest.fixture
def zero_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialize all weights with 0: fast for large networks of which only shapes matter."""

    def zeros(self: object, shape: tuple[int, ...], dtype: str | None = None) -> object:
        return keras.ops.zeros(shape, dtype or "float32")

    monkeypatch.setattr(initializers.Normal, "__call__", zeros)


@pytest.fixture
def reloaded(tmp_path: Path) -> Callable[[keras.Model], keras.Model]:
    """Save and load a network, check that its outputs stay the same, and return it."""

    def save_and_load(model: keras.Model) -> keras.Model:
        path = tmp_path / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path, compile=False)
        images = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:]))
        ours, theirs = (
            keras.tree.flatten(network(images.astype(np.float32), training=False))
            for network in (model, loaded)
        )
        for some, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(some), keras.ops.convert_to_numpy(other)
            )
        return loaded

    return save_and_load
