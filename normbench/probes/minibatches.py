"""Images put together into mini-batches, and what a network says of them there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from normbench.engine.loop import Loop


def spread(count: int, wanted: int) -> np.ndarray:
    """Return ``wanted`` places of ``count``, evenly spread; all of them where there are fewer."""
    wanted = min(wanted, count)
    return np.arange(wanted) * count // wanted


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return the places below ``count`` in an order that ``seed`` decides, on every platform."""
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(keys, kind="stable")


def equal_parts(count: int, most: int, multiple: int = 1) -> tuple[int, int]:
    """Part ``count`` images into mini-batches of one size, of at most ``most`` images.

    Args:
        count: Images.
        most: Of a mini-batch.
        multiple: What the size must be a multiple of.

    Returns:
        How many mini-batches, and their size; images that are over are left out.
    """
    size = count // -(-count // most)
    size = max(size - size % multiple, multiple)
    return count // size, size


def filled(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Part ``count`` images into mini-batches that are all full.

    Yields:
        The places of a mini-batch's images, int64 (size,), and how many of them are new; the last
        one is filled up with the first images.
    """
    for start in range(0, count, size):
        places = np.arange(start, start + size)
        yield places % count, min(size, count - start)


def logits(loop: Loop, pixels: np.ndarray, size: int, *, batch_statistics: bool) -> np.ndarray:
    """Return what the classifier gives for images in mini-batches of ``size``, in their order.

    Args:
        loop: Whose model is asked.
        pixels: uint8 (N, H, W, C).
        size: Of a mini-batch; the last one is filled up with the first images.
        batch_statistics: As for :meth:`~normbench.engine.loop.Loop.inspect`.

    Returns:
        float32 (N, K).
    """
    given = [
        loop.inspect(loop.model, pixels[places], batch_statistics=batch_statistics)[0][:new]
        for places, new in filled(len(pixels), size)
    ]
    return np.concatenate(given).astype(np.float32)


def scores(given: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy (0..1) of logits (N, K), computed in float64."""
    values = given.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    right = values[np.arange(len(labels)), labels]
    losses = np.log(np.exp(values).sum(axis=1)) - right
    return float(losses.mean()), float((values.argmax(axis=1) == labels).mean())
