"""Files of the MNIST family: all supported forms and possible defects."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.data import checksums, idx
from normbench.errors import UserError

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


def refusal(tiny: Any, path: Path) -> str:
    """Read a folder that must be refused, and return the one line that says why."""
    with pytest.raises(UserError) as caught:
        tiny.source.read(path, print)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reads_as_written(tiny: Any, path: Path) -> bool:
    """Return whether reading a folder gives the images and labels that were written."""
    train, test = tiny.source.read(path, print)
    return all(
        np.array_equal(read[key], expected[key])
        for read, expected in ((train, tiny.train), (test, tiny.test))
        for key in ("image", "label")
    )


def test_official_files_are_read(tiny_mnist: Any, tmp_path: Path) -> None:
    assert reads_as_written(tiny_mnist, tiny_mnist.write(tmp_path / "files"))


def test_unpacked_files_are_read(tiny_mnist: Any, tmp_path: Path) -> None:
    for name, data in tiny_mnist.files.items():
        (tmp_path / name.removesuffix(".gz")).write_bytes(gzip.decompress(data))
    assert reads_as_written(tiny_mnist, tmp_path)


def test_recompressed_files_are_read_whatever_their_header(tiny_mnist: Any, tmp_path: Path) -> None:
    for level, (name, data) in enumerate(tiny_mnist.files.items()):
        with (
            (tmp_path / name).open("wb") as file,
            gzip.GzipFile("another name", "wb", level, file, mtime=5 + level) as packed,
        ):
            packed.write(gzip.decompress(data))
        assert (tmp_path / name).read_bytes() != data
    assert reads_as_written(tiny_mnist, tmp_path)


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "raw"])
def test_known_subfolders_are_found(tiny_mnist: Any, tmp_path: Path, folder: str) -> None:
    tiny_mnist.write(tmp_path / folder)
    assert reads_as_written(tiny_mnist, tmp_path)


def test_path_of_one_file_finds_all_files(tiny_mnist: Any, tmp_path: Path) -> None:
    assert reads_as_written(tiny_mnist, tiny_mnist.write(tmp_path) / f"{TEST_LABELS}.gz")


def test_dotted_names_are_found(tiny_mnist: Any, tmp_path: Path) -> None:
    for name, data in tiny_mnist.files.items():
        (tmp_path / name.removesuffix(".gz").replace("-idx", ".idx")).write_bytes(
            gzip.decompress(data)
        )
    assert reads_as_written(tiny_mnist, tmp_path)


def test_truncated_packed_file_is_named_with_its_sizes(tiny_mnist: Any, tmp_path: Path) -> None:
    name = f"{TRAIN_IMAGES}.gz"
    data = tiny_mnist.files[name]
    tiny_mnist.write(tmp_path, **{name: data[: len(data) // 2]})
    message = refusal(tiny_mnist, tmp_path)
    assert f"{tmp_path / name} is truncated at {len(data) // 2} of {len(data)} bytes" in message


def test_truncated_raw_file_is_named_with_its_sizes(tiny_mnist: Any, tmp_path: Path) -> None:
    raw = gzip.decompress(tiny_mnist.files[f"{TRAIN_IMAGES}.gz"])
    tiny_mnist.write(tmp_path, **{f"{TRAIN_IMAGES}.gz": None, TRAIN_IMAGES: raw[:-100]})
    message = refusal(tiny_mnist, tmp_path)
    assert f"{TRAIN_IMAGES} is truncated at {len(raw) - 100} of {len(raw)} bytes" in message


@pytest.mark.parametrize("packed", [True, False])
def test_changed_pixel_is_detected(tiny_mnist: Any, tmp_path: Path, packed: bool) -> None:
    raw = bytearray(gzip.decompress(tiny_mnist.files[f"{TRAIN_IMAGES}.gz"]))
    raw[5000] ^= 1
    new = (
        {f"{TRAIN_IMAGES}.gz": gzip.compress(bytes(raw))}
        if packed
        else {f"{TRAIN_IMAGES}.gz": None, TRAIN_IMAGES: bytes(raw)}
    )
    tiny_mnist.write(tmp_path, **new)
    message = refusal(tiny_mnist, tmp_path)
    assert "is corrupted, or not MNIST: its content has sha256" in message
    assert hashlib.sha256(raw).hexdigest()[:16] in message


def test_damaged_gzip_stream_is_named(tiny_mnist: Any, tmp_path: Path) -> None:
    name = f"{TRAIN_IMAGES}.gz"
    data = bytearray(tiny_mnist.files[name])
    data[-6] ^= 0xFF  # a byte of the CRC
    tiny_mnist.write(tmp_path, **{name: bytes(data)})
    message = refusal(tiny_mnist, tmp_path)
    assert re.search(rf"{name} is corrupted: .*incorrect data check", message)


def test_bytes_after_the_gzip_stream_are_refused(tiny_mnist: Any, tmp_path: Path) -> None:
    name = f"{TRAIN_LABELS}.gz"
    tiny_mnist.write(tmp_path, **{name: tiny_mnist.files[name] + b"more"})
    assert "has 4 foreign bytes after its gzip stream" in refusal(tiny_mnist, tmp_path)


def test_surplus_bytes_are_refused(tiny_mnist: Any, tmp_path: Path) -> None:
    raw = gzip.decompress(tiny_mnist.files[f"{TRAIN_LABELS}.gz"])
    tiny_mnist.write(tmp_path, **{f"{TRAIN_LABELS}.gz": gzip.compress(raw + b"abc")})
    assert "has 3 bytes too many" in refusal(tiny_mnist, tmp_path)


def test_wrong_dimensions_are_named(
    tiny_mnist: Any, tmp_path: Path, idx_file: Callable[[np.ndarray], bytes]
) -> None:
    tiny_mnist.write(tmp_path, **{f"{TRAIN_LABELS}.gz": idx_file(np.zeros(25))})
    message = refusal(tiny_mnist, tmp_path)
    assert f"holds 25 values, MNIST's {TRAIN_LABELS} has 24" in message


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"", b"\0\0\x08"])
def test_file_that_is_not_an_idx_file_is_named(
    tiny_mnist: Any, tmp_path: Path, content: bytes
) -> None:
    tiny_mnist.write(tmp_path, **{f"{TRAIN_IMAGES}.gz": content})
    assert f"{TRAIN_IMAGES}.gz is not an idx file of unsigned bytes" in refusal(
        tiny_mnist, tmp_path
    )


def test_fashion_mnist_is_not_taken_for_mnist(
    tiny_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tiny_mnist.source.files[TRAIN_IMAGES]
    monkeypatch.setitem(
        checksums.IDX_SETS, "fashion_mnist", ("Fashion-MNIST", {TRAIN_IMAGES: known})
    )
    other = checksums.IdxFile("0" * 64, known.shape, known.packed, known.packed_sha256)
    monkeypatch.setattr(
        type(tiny_mnist.source), "files", tiny_mnist.source.files | {TRAIN_IMAGES: other}
    )
    message = refusal(tiny_mnist, tiny_mnist.write(tmp_path))
    assert f"is a file of Fashion-MNIST ({TRAIN_IMAGES}), not of MNIST" in message
    assert f"normbench data import fashion_mnist --from {tmp_path}" in message


def test_swapped_files_are_detected(
    tiny_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checksums.IDX_SETS, "mnist", ("MNIST", tiny_mnist.source.files))
    tiny_mnist.write(tmp_path, **{f"{TRAIN_LABELS}.gz": tiny_mnist.files[f"{TEST_LABELS}.gz"]})
    assert f"holds MNIST's {TEST_LABELS}, not {TRAIN_LABELS}" in refusal(tiny_mnist, tmp_path)


def test_missing_file_is_named(tiny_mnist: Any, tmp_path: Path) -> None:
    tiny_mnist.write(tmp_path, **{f"{TEST_LABELS}.gz": None})
    assert f"lacks {TEST_LABELS} (with or without .gz)" in refusal(tiny_mnist, tmp_path)


def test_folder_without_mnist_files_is_refused_with_its_content(
    tiny_mnist: Any, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    message = refusal(tiny_mnist, tmp_path)
    assert "does not contain MNIST: expected train-images-idx3-ubyte" in message
    assert message.endswith("found notes.txt")
    assert "there is no file or folder" in refusal(tiny_mnist, tmp_path / "nowhere")


def test_endless_gzip_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_MOST", 1000)
    with pytest.raises(UserError, match="unpacks to more than 1000 bytes"):
        idx.unpack(gzip.compress(bytes(100_000)), Path("bomb.gz"))


def test_decode_refuses_types_other_than_bytes(idx_file: Callable[[np.ndarray], bytes]) -> None:
    data = idx_file(np.arange(6).reshape(2, 3))
    assert idx.decode(data).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="not an idx file"):
        idx.decode(b"\0\0\x0d" + data[3:])
