"""Fixtures for tests of networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from normbench import initializers


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """All initial weights 0: quick where a network is large and only its shapes matter."""

    def zeros(self: object, shape: tuple[int, ...], dtype: str | None = None) -> object:
        return keras.ops.zeros(shape, dtype or "float32")

    monkeypatch.setattr(initializers.Normal, "__call__", zeros)


@pytest.fixture
def reloaded(tmp_path: Path) -> Callable[[keras.Model], keras.Model]:
    """Saves a network and loads it again, after its output was found to be the same."""

    def save_and_load(model: keras.Model) -> keras.Model:
        path = tmp_path / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path, compile=False)
        images = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:]))
        ours, theirs = (
            keras.tree.flatten(each(images.astype(np.float32), training=False))
            for each in (model, loaded)
        )
        for some, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(some), keras.ops.convert_to_numpy(other)
            )
        return loaded

    return save_and_load
