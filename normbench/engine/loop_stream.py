"""The images of a streamed data set, chunk by chunk, as a loop asks for them: :class:`ImageStream`.

A loop has all images of a resident data set on the device, and its compiled step gathers each batch
from them. Of a streamed one it has a chunk: the images of some consecutive steps, gathered on the
host in the order in which these steps take them. The same compiled step then gathers from the chunk
in ascending order. Order and augmentation are drawn as for resident images, so that a run has the
same bits either way.

Neither tf.data nor Grain is used: each would bring an order of its own, and tf.data would bring
TensorFlow to machines that train with JAX alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

CHUNK_BYTES = 1 << 26
"""Bytes of images in a chunk: many steps on small images, and no fewer than one on large ones. The
chunk in use and the next one are on the device, and for a moment one is in the machine's memory."""

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
        except BaseException as error:  # raised where the value is asked for
            self._error = error

    def result(self) -> Any:
        """Wait for the value and return it, or raise the error of the call."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._value


def read_ahead(make: Callable[[int], T], indices: Iterable[int]) -> Generator[T]:
    """Yield ``make(index)`` for each index; the next one is made in a thread meanwhile.

    When the generator ends or is closed, its thread has ended.
    """
    remaining = iter(indices)

    def begin() -> _Making | None:
        index = next(remaining, None)
        return None if index is None else _Making(make, index)

    pending = begin()
    try:
        while pending is not None:
            value = pending.result()
            # Not before: memory is to hold the value in use and the one after it, no third.
            pending = begin()
            yield value
            del value
    finally:
        if pending is not None:
            pending.join()


@dataclass(frozen=True)
class Chunk:
    """What some consecutive steps of an epoch are trained on, on the device.

    Attributes:
        first: The first of the steps in the epoch.
        images: uint8 (N, H, W, C) in the order in which the steps take them.
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
        batch: Images of a training step.
        eval_batch: Images of an evaluation step.
        chunk_bytes: Bytes of the images of a chunk; a chunk has one step at least.
        put: Brings an array to the device.

    Attributes:
        steps: Steps of a training chunk. All chunks have as many, so that one program fits all.
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
        """Images of a training chunk."""
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
        """Stop reading ahead, and let go of the chunk on the device."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._chunk = None

    def training(self, first: int, rates: np.ndarray) -> Iterator[tuple[Chunk, int, np.ndarray]]:
        """Divide steps of the epoch among its chunks.

        What follows is read ahead beyond the last of the steps: the next call asks for it.

        Args:
            first: The first step in the epoch.
            rates: Learning rate of each step.

        Yields:
            A chunk, the first step to take counted from the chunk's first, and the learning rates
            of the steps to take. Once at least, even if there are no steps.
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
        self._chunk = None  # memory is to hold no third one
        self._chunk = (index, next(self._ahead))
        return self._chunk[1]

    def _read_chunk(self, index: int) -> Chunk:
        # The last one begins earlier, and has some steps of the one before, to be as long as it.
        first = min(index * self.steps, self._steps_per_epoch - self.steps)
        chosen = slice(first * self._batch, (first + self.steps) * self._batch)
        positions = self._order[chosen]
        word0, word1 = (self._put(word[chosen]) for word in self._words)
        labels = self._put(self._dataset.train.labels[positions])
        images = self._put(_gathered(self._dataset.train.images, positions))
        return Chunk(first, images, labels, (word0, word1))

    def population(self, batch: int) -> Generator[Any]:
        """Yield the training images in the order of the epoch, in chunks of whole batches.

        Args:
            batch: Images of a batch. Those that do not fill a last one are left out.
        """
        self.close()  # memory is to hold two chunks
        size = max(1, self._most // batch) * batch
        stop = len(self._order) // batch * batch

        def read(start: int) -> Any:
            positions = self._order[start : min(start + size, stop)]
            return self._put(_gathered(self._dataset.train.images, positions))

        return read_ahead(read, range(0, stop, size))

    def evaluation(self, split: str) -> Generator[tuple[Any, Any]]:
        """Yield images and labels of a split, in chunks of whole batches but for the last batch."""
        self.close()  # memory is to hold two chunks
        part = getattr(self._dataset, split)
        size = max(1, self._most // self._eval_batch) * self._eval_batch

        def read(start: int) -> tuple[Any, Any]:
            chosen = slice(start, start + size)
            images = np.ascontiguousarray(part.images[chosen])
            return self._put(images), self._put(part.labels[chosen])

        return read_ahead(read, range(0, len(part.labels), size))


def _gathered(images: Any, positions: np.ndarray) -> np.ndarray:
    """Return the images at some positions, in their order."""
    # Read in the order of the file, which a disk has them in: the order of an epoch is random.
    ascending = np.argsort(positions)
    gathered = np.empty((len(positions), *images.shape[1:]), images.dtype)
    gathered[ascending] = images[positions[ascending]]
    return gathered
