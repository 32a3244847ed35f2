"""The array file: complete or absent, memory-mapped, read-only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normbench.data import cache
from normbench.store.files import StoreError


def test_arrays_are_read_as_written(tmp_path: Path) -> None:
    arrays = {
        "images": np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8),
        "labels": np.arange(7, dtype=np.int32),
        "scalars": np.array(2.5),
        "none": np.empty((0, 4), np.float32),
        "transposed": np.arange(12).reshape(3, 4).T,
    }
    cache.write(tmp_path / "a", arrays, {"of": ["x", 1]})
    cached = cache.read(tmp_path / "a")
    assert cached is not None
    about, read = cached
    assert about == {"of": ["x", 1]}
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_arrays_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    cache.write(tmp_path / "a", {"x": np.zeros(3)}, {})
    cached = cache.read(tmp_path / "a")
    assert cached is not None
    array = cached[1]["x"]
    assert type(array) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_reader_keeps_its_file_when_the_file_is_replaced(tmp_path: Path) -> None:
    cache.write(tmp_path / "a", {"x": np.full(5000, 1)}, {})
    old = cache.read(tmp_path / "a")
    cache.write(tmp_path / "a", {"x": np.full(9000, 2)}, {})
    new = cache.read(tmp_path / "a")
    assert old is not None
    assert new is not None
    assert old[1]["x"].tolist() == [1] * 5000
    assert new[1]["x"].tolist() == [2] * 9000


@pytest.mark.parametrize("change", ["cut", "grown", "other", "empty", "absent", "folder"])
def test_incomplete_file_is_not_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    cache.write(path, {"x": np.arange(5000)}, {})
    data = path.read_bytes()
    if change in ("absent", "folder"):
        path.unlink()
    if change == "folder":
        path.mkdir()
    changed = {"cut": data[:-1], "grown": data + b"x", "other": b"else" * 99, "empty": b""}
    if change in changed:
        path.write_bytes(changed[change])
    assert cache.read(path) is None


def test_failed_write_leaves_only_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    cache.write(path, {"x": np.arange(3)}, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("normbench.store.files.os.fsync", full)
    with pytest.raises(StoreError, match="No space"):
        cache.write(path, {"x": np.arange(9)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    cached = cache.read(path)
    assert cached is not None
    assert cached[1]["x"].tolist() == [0, 1, 2]
