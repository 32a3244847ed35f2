"""Reading images chunk by chunk is bit-identical to keeping them all on the device."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from normbench.data.streaming import ImageView
from normbench.engine.augment import Images
from normbench.engine.loop_stream import ImageStream, read_ahead
from tests.engine.tinyloop import TINY, loop_of, random_split

AUGMENTED = Images(
    np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32), 1, True, cutout=2, erasing=0.5
)
STEP = 16 * 8 * 8 * 3  # bytes of the images of a step
#: Five steps of 16 images, and 10 images left over.
OPTIONS: dict[str, Any] = {"count": 90, "images": AUGMENTED, "momentum": 0.9}
CASES = {
    # Chunks of one step and of two: the last of three begins with a step of the second.
    "recomputed statistics": ([*TINY, "norm=precise_bn"], {}, (1, 2 * STEP + 5)),
    "micro-batches": ([*TINY, "norm=bn"], {"micro_batches": 2}, (3 * STEP,)),
}


def train_epochs(loop: Any, *calls: int, epochs: int = 2) -> list[np.ndarray]:
    """Train epochs, with the given numbers of steps per call, and return all results."""
    numbers = []
    for epoch in range(epochs):
        loop.begin_epoch(epoch)
        first = 0
        for count in calls:
            steps = loop.train(first, np.full(count, 2.0**-6, np.float32))
            numbers += [steps.loss, steps.correct, steps.grad_norm] if len(calls) == 1 else []
            first += count
        loop.recompute()
        numbers += [np.array(loop.evaluate(split)) for split in ("validation", "test")]
    return [*numbers, *loop.state().values()]


def assert_equal(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "normbench-read-ahead"]


@pytest.mark.parametrize("case", CASES)
def test_streamed_loop_is_bit_identical_to_a_resident_one(case: str) -> None:
    overrides, changes, sizes = CASES[case]
    resident, _ = loop_of(*overrides, **OPTIONS, **changes)
    initial = resident.state()
    wanted = train_epochs(resident, 5)
    in_pieces = train_from(resident, initial, 1, 3, 1)
    for chunk_bytes in sizes:
        streamed, _ = loop_of(*overrides, **OPTIONS, **changes, chunk_bytes=chunk_bytes)
        streamed.trace()
        streamed.compile()
        assert_equal(train_from(streamed, initial, 5), wanted)
        assert_equal(train_from(streamed, initial, 1, 3, 1), in_pieces)
        # Resume in the middle of an epoch, like a killed run.
        load(streamed, initial)
        streamed.begin_epoch(1)
        streamed.train(0, np.full(3, 0.1, np.float32))
        middle = streamed.state()
        whole = streamed.train(3, np.full(2, 0.1, np.float32)).loss, *streamed.state().values()
        streamed.begin_epoch(1)
        streamed.load(middle)
        again = streamed.train(3, np.full(2, 0.1, np.float32)).loss, *streamed.state().values()
        assert_equal(list(again), list(whole))
        streamed.close()
        assert not reader_threads()


def load(loop: Any, state: dict[str, np.ndarray]) -> None:
    loop.load(dict(zip(loop.state(), state.values(), strict=True)))  # automatic names differ


def train_from(loop: Any, state: dict[str, np.ndarray], *calls: int) -> list[np.ndarray]:
    load(loop, state)
    return train_epochs(loop, *calls)


# --- the stream itself ----------------------------------------------------------------------------


def stream_of(chunk_bytes: int, images: Any = None) -> tuple[ImageStream, Any]:
    split = random_split(1, 90, (8, 8, 3), 4)
    if images is not None:
        split = SimpleNamespace(images=images, labels=split.labels)
    data = SimpleNamespace(train=split, validation=split, test=split)
    stream = ImageStream(data, 16, 16, chunk_bytes, np.asarray)
    order = np.random.default_rng(0).permutation(90).astype(np.int32)
    stream.begin_epoch(order, (np.arange(90, dtype=np.uint32),) * 2)
    return stream, (split, order)


@pytest.mark.parametrize("first", [0, 1, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_each_chunk_holds_the_images_labels_and_words_of_its_steps(first: int, steps: int) -> None:
    stream, (split, order) = stream_of(steps * STEP)
    rates = np.arange(first, 5, dtype=np.float32)
    seen = []
    for chunk, start, chunk_rates in stream.training(first, rates):
        assert len(chunk.images) == len(chunk.labels) == stream.images == 16 * min(steps, 5)
        for index, rate in enumerate(chunk_rates):
            section = slice(16 * (start + index), 16 * (start + index + 1))
            step = int(rate)
            seen.append(step)
            chosen = order[16 * step : 16 * (step + 1)]
            np.testing.assert_array_equal(chunk.images[section], split.images[chosen])
            np.testing.assert_array_equal(chunk.labels[section], split.labels[chosen])
            for word in chunk.words:
                np.testing.assert_array_equal(word[section], np.arange(16 * step, 16 * (step + 1)))
    assert seen == list(range(first, 5))


def test_read_error_stops_the_training() -> None:
    class Broken(ImageView):
        def __getitem__(self, chosen: Any) -> np.ndarray:
            if len(reads) == 2:
                raise OSError("the disk is gone")
            reads.append(chosen)
            return super().__getitem__(chosen)

    reads: list[Any] = []
    pixels = random_split(1, 90, (8, 8, 3), 4).images
    stream, _ = stream_of(1, Broken(pixels, np.arange(90)))
    taken = stream.training(0, np.zeros(5, np.float32))
    assert [next(taken)[0].first for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(taken)
    assert not reader_threads()


def test_exactly_one_item_is_read_ahead() -> None:
    items: list[int] = []
    other = threading.Event()

    def make(index: int) -> int:
        items.append(index)
        if index == 1:
            other.set()
        return index * index

    ahead = read_ahead(make, range(4))
    assert next(ahead) == 0
    assert other.wait(10)
    time.sleep(0.02)
    assert items == [0, 1]
    assert list(ahead) == [1, 4, 9]
    assert list(read_ahead(make, [])) == []
    assert not reader_threads()


def test_closing_waits_for_the_reader_thread() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def make(index: int) -> int:
        if index == 1:
            begun.set()
            goes_on.wait(10)
        return index

    ahead = read_ahead(make, range(3))
    next(ahead)
    assert begun.wait(10)
    threading.Timer(0.05, goes_on.set).start()
    ahead.close()
    assert not reader_threads()
