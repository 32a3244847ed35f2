"""Mini-batches of chosen images and a network's logits for them, shared by several probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from normbench.data.streaming import ImageView
    from normbench.engine.loop import Loop


def spread(count: int, wanted: int) -> np.ndarray:
    """Return ``wanted`` indices below ``count``, evenly spread; all if there are fewer."""
    wanted = min(wanted, count)
    return np.arange(wanted) * count // wanted


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return the indices below ``count`` in an order that depends only on ``seed``."""
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(keys, kind="stable")


def equal_parts(count: int, most: int, multiple: int = 1) -> tuple[int, int]:
    """Divide images into mini-batches of equal size.

    Args:
        count: Number of images.
        most: Largest size of a mini-batch.
        multiple: Number that the size must be a multiple of.

    Returns:
        Number of mini-batches, and their size; leftover images are left out.
    """
    size = count // -(-count // most)
    size = max(size - size % multiple, multiple)
    return count // size, size


def filled(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Divide ``count`` images into full mini-batches.

    Yields:
        Indices of a mini-batch's images, int64 (size,), and the number of new ones: the last
        mini-batch is filled up with the first images.
    """
    for start in range(0, count, size):
        indices = np.arange(start, start + size)
        yield indices % count, min(size, count - start)


def logits(
    loop: Loop, pixels: np.ndarray | ImageView, size: int, *, batch_statistics: bool
) -> np.ndarray:
    """Return the logits of images, computed in mini-batches of ``size``, in order.

    Args:
        loop: Loop with the model.
        pixels: Images, uint8 (N, H, W, C).
        size: Size of a mini-batch; the last one is filled up with the first images.
        batch_statistics: As for :meth:`~normbench.engine.loop.Loop.inspect`.

    Returns:
        float32 (N, K).
    """
    chunks = [
        loop.inspect(loop.model, pixels[indices], batch_statistics=batch_statistics)[0][:count]
        for indices, count in filled(len(pixels), size)
    ]
    return np.concatenate(chunks).astype(np.float32)


def scores(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy (0..1) of logits (N, K), computed in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    label_logits = values[np.arange(len(labels)), labels]
    losses = np.log(np.exp(values).sum(axis=1)) - label_logits
    return float(losses.mean()), float((values.argmax(axis=1) == labels).mean())
