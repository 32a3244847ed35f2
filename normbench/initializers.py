"""Initial weights drawn on the host, so that every backend starts from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np

_streams: ContextVar[tuple[int, list[int]] | None] = ContextVar("streams", default=None)
_room: ContextVar[list[float]] = ContextVar("room")


@contextmanager
def seeded(seed: int, most: float = math.inf) -> Iterator[None]:
    """Within the context, draw each layer's initial values from the next stream of ``seed``.

    Args:
        seed: Seed of the run.
        most: Limit on the total number of values; a layer that exceeds it raises a ValueError.
    """
    token, room = _streams.set((seed, [0])), _room.set([most])
    try:
        yield
    finally:
        _streams.reset(token)
        _room.reset(room)


def _take_room(shape: tuple[int, ...]) -> None:
    """Refuse to draw more values than memory can hold, before any memory is allocated."""
    room = _room.get([math.inf])
    room[0] -= math.prod(shape)
    if room[0] < 0:
        raise ValueError(
            f"a layer has weights of shape {'×'.join(map(str, shape))}, "
            "too large for this machine's memory"
        )


def _generator() -> np.random.Generator:
    current = _streams.get()
    if current is None:
        return np.random.default_rng()
    seed, count = current
    count[0] += 1
    return np.random.Generator(np.random.Philox(key=[seed, count[0]]))


def drawn_seed() -> int:
    """Draw a seed for a layer that is random during training, such as ``keras.layers.Dropout``."""
    return int(_generator().integers(2**31))


@keras.saving.register_keras_serializable("normbench")
class Normal(keras.initializers.Initializer):
    """Gaussian with mean 0 and a fixed deviation.

    Args:
        deviation: Standard deviation.
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = float(deviation)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        _take_room(tuple(shape))
        values = _generator().standard_normal(tuple(shape)) * self._scale(tuple(shape))
        return keras.ops.convert_to_tensor(values.astype(np.float32), dtype=dtype or "float32")

    def _scale(self, shape: tuple[int, ...]) -> float:
        return self.deviation

    def get_config(self) -> dict[str, Any]:
        return {"deviation": self.deviation}


@keras.saving.register_keras_serializable("normbench")
class HeNormal(Normal):
    """Gaussian with variance 2/fan-in (He et al. 2015, eq. 10), for weights before a ReLU.

    Not truncated, as in the paper; Keras's ``he_normal`` truncates it at two standard deviations.
    The fan-in is the product of all axes of a kernel (..., I, O) except the last; for a depthwise
    kernel (H, W, C, M) it is H·W.

    Args:
        depthwise: Whether the kernels are depthwise.
    """

    def __init__(self, depthwise: bool = False) -> None:
        super().__init__(1.0)
        self.depthwise = bool(depthwise)

    def _scale(self, shape: tuple[int, ...]) -> float:
        fan_in = math.prod(shape[:-2] if self.depthwise else shape[:-1])
        return math.sqrt(2.0 / fan_in)

    def get_config(self) -> dict[str, Any]:
        return {"depthwise": self.depthwise}


@keras.saving.register_keras_serializable("normbench")
class LecunNormal(Normal):
    """Gaussian with variance 1/fan-in (LeCun et al. 1998, eq. 16), for a linear output."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def _scale(self, shape: tuple[int, ...]) -> float:
        return math.sqrt(1.0 / math.prod(shape[:-1]))

    def get_config(self) -> dict[str, Any]:
        return {}
