"""Images of a streamed data set, delivered to a loop in chunks: :class:`ImageStream`.

With a resident data set, all images are on the device, and a loop's compiled step gathers each
batch from them. With a streamed data set, only a chunk is on the device: the images of some
consecutive steps, gathered on the host in the order of these steps. The same compiled step then
reads the chunk in ascending order. Order and augmentation are drawn as for resident images, so both
ways are bit-identical.

Neither tf.data nor Grain is used: each would impose its own order, and tf.data would require
TensorFlow on machines that train with JAX only.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

CHUNK_BYTES = 1 << 26
"""Bytes of images in a chunk: many steps for small images, at least one for large ones. The device
has the chunk in use and the next one; host memory has one while it is being copied."""

T = TypeVar("T")


class _Making(threading.Thread):
    """A thread that calls ``make(index)`` once."""

    def __init__(self, make: Callable[[int], Any], index: int) -> None:
        super().__init__(name="normbench-read-ahead", daemon=True)
        self._make, self._index = make, index
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._make(self._index)
        except BaseException as error:  # raised by result()
            self._error = error

    def result(self) -> Any:
        """Wait for the value and return it, or raise the error of the call."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._value


def read_ahead(make: Callable[[int], T], indices: Iterable[int]) -> Generator[T]:
    """Yield ``make(index)`` for each index, making the next value in a background thread.

    The thread has ended when the generator ends or is closed.
    """
    iterator = iter(indices)

    def begin() -> _Making | None:
        index = next(iterator, None)
        return None if index is None else _Making(make, index)

    pending = begin()
    try:
        while pending is not None:
            value = pending.result()
            # Not earlier: only the value in use and the next one may be in memory.
            pending = begin()
            yield value
            del value
    finally:
        if pending is not None:
            pending.join()


@dataclass(frozen=True)
class Chunk:
    """Data of some consecutive steps of an epoch, on the device.

    Attributes:
        first: Index in the epoch of the first step.
        images: uint8 (N, H, W, C), in the order of the steps.
        labels: int32 (N,).
        words: Two random words of each image, uint32 (N,).
    """

    first: int
    images: Any
    labels: Any
    words: tuple[Any, Any]


class ImageStream:
    """Reads images of a data set's splits into chunks on the device.

    Args:
        dataset: Has the splits train, validation and test.
        batch: Images per training step.
        eval_batch: Images per evaluation step.
        chunk_bytes: Bytes of images per chunk; a chunk has at least one step.
        put: Copies an array to the device.

    Attributes:
        steps: Steps per training chunk, the same for all chunks, so that one program fits all.
    """

    def __init__(
        self,
        dataset: Any,
        batch: int,
        eval_batch: int,
        chunk_bytes: int,
        put: Callable[[np.ndarray], Any],
    ) -> None:
        self._dataset = dataset
        self._batch, self._eval_batch = batch, eval_batch
        self._put = put
        self.shape = tuple(dataset.train.images.shape[1:])
        self._most = max(1, chunk_bytes // math.prod(self.shape))  # images
        self._steps_per_epoch = len(dataset.train.labels) // batch
        self.steps = max(1, min(self._most // batch, self._steps_per_epoch))
        self._order = np.zeros(0, np.int32)
        self._words: tuple[np.ndarray, ...] = ()
        self._ahead: Generator[Chunk] | None = None
        self._chunk: tuple[int, Chunk] | None = None

    @property
    def images(self) -> int:
        """Number of images in a training chunk."""
        return self.steps * self._batch

    def begin_epoch(self, order: np.ndarray, words: tuple[np.ndarray, ...]) -> None:
        """Begin an epoch.

        Args:
            order: Positions of the training images in the order of the epoch, int32 (count,).
            words: Two random words of each position of the epoch, uint32 (count,).
        """
        self.close()
        self._order, self._words = order, words

    def close(self) -> None:
        """Stop reading ahead, and release the chunk on the device."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._chunk = None

    def training(self, first: int, rates: np.ndarray) -> Iterator[tuple[Chunk, int, np.ndarray]]:
        """Divide steps of the epoch among its chunks.

        Reading ahead goes beyond the last of these steps, for the next call.

        Args:
            first: Index in the epoch of the first step.
            rates: Learning rate of each step.

        Yields:
            A chunk, the index in the chunk of the first step to take, and the learning rates of the
            steps to take. Yields at least once, even if there are no steps.
        """
        last = first + len(rates)
        step = first
        while True:
            index = step // self.steps
            chunk = self._chunk_at(index)
            stop = min(last, (index + 1) * self.steps)
            yield chunk, step - chunk.first, rates[step - first : stop - first]
            step = stop
            if step >= last:
                return

    def _chunk_at(self, index: int) -> Chunk:
        if self._chunk is not None and self._chunk[0] == index:
            return self._chunk[1]
        if self._ahead is None or self._chunk is None or self._chunk[0] + 1 != index:
            self.close()
            count = -(-self._steps_per_epoch // self.steps)
            self._ahead = read_ahead(self._read_chunk, range(index, count))
        self._chunk = None  # only two chunks may be in memory
        self._chunk = (index, next(self._ahead))
        return self._chunk[1]

    def _read_chunk(self, index: int) -> Chunk:
        # To have the full length, the last chunk begins earlier and overlaps with the one before.
        first = min(index * self.steps, self._steps_per_epoch - self.steps)
        window = slice(first * self._batch, (first + self.steps) * self._batch)
        positions = self._order[window]
        word0, word1 = (self._put(word[window]) for word in self._words)
        labels = self._put(self._dataset.train.labels[positions])
        images = self._put(_gathered(self._dataset.train.images, positions))
        return Chunk(first, images, labels, (word0, word1))

    def population(self, batch: int) -> Generator[Any]:
        """Yield the training images in the order of the epoch, in chunks of complete batches.

        Args:
            batch: Images per batch. An incomplete last batch is left out.
        """
        self.close()  # only two chunks may be in memory
        size = max(1, self._most // batch) * batch
        stop = len(self._order) // batch * batch

        def read(start: int) -> Any:
            positions = self._order[start : min(start + size, stop)]
            return self._put(_gathered(self._dataset.train.images, positions))

        return read_ahead(read, range(0, stop, size))

    def evaluation(self, split: str) -> Generator[tuple[Any, Any]]:
        """Yield images and labels of a split, in chunks of batches; the last may be incomplete."""
        self.close()  # only two chunks may be in memory
        part = getattr(self._dataset, split)
        size = max(1, self._most // self._eval_batch) * self._eval_batch

        def read(start: int) -> tuple[Any, Any]:
            window = slice(start, start + size)
            images = np.ascontiguousarray(part.images[window])
            return self._put(images), self._put(part.labels[window])

        return read_ahead(read, range(0, len(part.labels), size))


def _gathered(images: Any, positions: np.ndarray) -> np.ndarray:
    """Return the images at some positions, in their order."""
    # Read in file order, which is faster on a disk than the random order of the epoch.
    order = np.argsort(positions)
    result = np.empty((len(positions), *images.shape[1:]), images.dtype)
    result[order] = images[positions[order]]
    return result
