"""Streamed images: views of the images in a file, and when images are streamed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from normbench import machine
from normbench.data import streaming
from normbench.data.base import Source
from normbench.data.digits import Digits
from normbench.data.split import channel_statistics, load
from normbench.data.streaming import ImageView, empty, is_streamed
from normbench.errors import UserError
from normbench.store.provenance import data_hash

GIB = 1 << 30


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 4, 3, 2), np.uint8)


# --- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [3, -1, slice(None), slice(2, 5), slice(0, 0), np.array([4, 1, 1]), [0, 2], (slice(1, 3), 2),
     np.arange(7) % 2 == 0, (1,)],
    ids=str,
)  # fmt: skip
def test_view_is_indexed_like_an_array(images: np.ndarray, chosen: Any) -> None:
    positions = np.array([19, 0, 7, 7, 3, 12, 5])
    view, array = ImageView(images, positions), images[positions]
    np.testing.assert_array_equal(view[chosen], array[chosen])


def test_view_has_the_attributes_of_an_array(images: np.ndarray) -> None:
    positions = np.array([2, 4, 8])
    view, array = ImageView(images, positions), images[positions]
    for name in ("shape", "dtype", "ndim", "nbytes"):
        assert getattr(view, name) == getattr(array, name)
    assert len(view) == 3
    np.testing.assert_array_equal(np.asarray(view), array)
    assert np.asarray(view, np.float32).dtype == np.float32
    np.testing.assert_array_equal(ImageView(view, np.array([2, 0]))[:], array[[2, 0]])


def test_streamed_data_set_equals_the_resident_one() -> None:
    source: Source = Digits()
    resident, streamed = (
        load(source, 100, 1, 500, fingerprint=data_hash, stream=stream) for stream in (False, True)
    )
    assert (resident.streamed, streamed.streamed) == (False, True)
    assert resident.fingerprint == streamed.fingerprint
    np.testing.assert_array_equal(resident.mean, streamed.mean)
    np.testing.assert_array_equal(resident.std, streamed.std)
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(streamed, split), getattr(resident, split)
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.indices, theirs.indices)
    assert isinstance(streamed.train.images, ImageView)


def test_statistics_do_not_depend_on_the_chunk_size(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = channel_statistics(images)
    monkeypatch.setattr("normbench.data.split._CHUNK", 40)  # pixels: three images
    for same in (images, ImageView(images, np.arange(20))):
        np.testing.assert_array_equal(channel_statistics(same), expected)


# --- choice between streamed and resident images --------------------------------------------------


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the memory of machine and GPUs and returns the driver queries."""
    queries: list[int] = []

    def set_memory(machine_gib: float, *gpus: float) -> list[int]:
        def smi() -> list[dict[str, Any]]:
            queries.append(1)
            return [{"name": "A", "total": int(gib * GIB), "free": 0} for gib in gpus]

        total = SimpleNamespace(total=int(machine_gib * GIB))
        monkeypatch.setattr("psutil.virtual_memory", lambda: total)
        monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(total=GIB))
        monkeypatch.setattr(machine, "container_limit", lambda: None)
        monkeypatch.setattr(machine, "nvidia_smi", smi)
        return queries

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return set_memory


@pytest.mark.parametrize(
    ("gib", "sizes", "expected"),
    [
        (4, (8,), False),
        (4.1, (8,), True),
        (4, (64, 80, 8), False),
        (4.1, (64, 80, 8), True),
        (0.9, (64, 1), False),  # too small to query the driver
    ],
)
def test_images_larger_than_half_of_memory_are_streamed(
    memory: Any, gib: float, sizes: tuple[float, ...], expected: bool
) -> None:
    queries = memory(*sizes)
    assert is_streamed("auto", "mine", int(gib * GIB)) is expected
    assert is_streamed(True, "mine", 1)
    assert bool(queries) is (1 < gib <= sizes[0] / 2)


def test_hidden_gpus_are_ignored(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = memory(64, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not is_streamed("auto", "mine", 20 * GIB)
    assert not queries


def test_images_larger_than_memory_and_swap_are_refused_without_streaming(
    memory: Any,
) -> None:
    memory(4)
    assert not is_streamed(False, "mine", 5 * GIB)
    with pytest.raises(UserError) as caught:
        is_streamed(False, "mine", 6 * GIB)
    assert str(caught.value) == (
        "stream=false, but mine has images of 6.0 GiB: this machine has 5.0 GiB of memory; "
        "stream=auto reads them from the disk as they are needed"
    )


# --- large arrays on disk -------------------------------------------------------------------------


def test_large_array_is_in_an_unnamed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert empty((3, 4), np.uint8, tmp_path, "mine").base is None
    monkeypatch.setattr(streaming, "physical_memory", lambda: 23)
    array = empty((3, 4), np.uint8, tmp_path, "mine")
    assert isinstance(array.base, np.memmap)
    array[:] = 7
    np.testing.assert_array_equal(array, np.full((3, 4), 7))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda path: SimpleNamespace(free=11))
    with pytest.raises(UserError) as caught:
        empty((3, 4), np.uint8, tmp_path, "mine")
    assert str(caught.value) == (
        f"mine needs 12 B for its images in {tmp_path}, whose disk has 11 B free: set "
        "XDG_CACHE_HOME to a folder that can hold them"
    )
