"""Files of CIFAR-10 and CIFAR-100: all supported forms and possible defects."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.data import checksums
from normbench.data.cifar import unpickle
from normbench.errors import UserError

Make = Callable[[str], Any]
KINDS = pytest.mark.parametrize("kind", ["python", "binary"])


def pack(path: Path, files: dict[str, bytes], folder: str, mode: str = "w:gz") -> Path:
    """Write an archive with the files in a folder, like the published archives."""
    with tarfile.open(path, mode) as archive:  # pyright: ignore
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def refusal(tiny: Any, path: Path) -> str:
    """Read files that must be refused, and return the one line that says why."""
    with pytest.raises(UserError) as caught:
        tiny.source.read(path, print)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reads_as_written(tiny: Any, path: Path) -> bool:
    """Return whether reading gives the images and labels in the order written."""
    train, test = tiny.source.read(path, print)
    assert set(train) == set(tiny.train)
    return all(
        np.array_equal(read[key], expected[key])
        for read, expected in ((train, tiny.train), (test, tiny.test))
        for key in expected
    )


@KINDS
@pytest.mark.parametrize("classes", [10, 100])
def test_folder_is_read(
    tiny_cifar: Make, tiny_cifar100: Make, tmp_path: Path, kind: str, classes: int
) -> None:
    tiny = (tiny_cifar if classes == 10 else tiny_cifar100)(kind)
    assert reads_as_written(tiny, tiny.write(tmp_path / "files"))


@KINDS
@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz"])
def test_archive_is_read_with_any_compression(
    tiny_cifar: Make, tmp_path: Path, kind: str, mode: str
) -> None:
    tiny = tiny_cifar(kind)
    assert reads_as_written(tiny, pack(tmp_path / "mine.tar", tiny.files, "any/folder", mode))


@KINDS
def test_published_folder_and_archive_are_found_by_name(
    tiny_cifar: Make, tmp_path: Path, kind: str
) -> None:
    tiny = tiny_cifar(kind)
    packing = tiny.source.packings[0]
    archive = pack(tmp_path / packing.archive, tiny.files, packing.folder)
    assert reads_as_written(tiny, tmp_path)
    archive.unlink()
    tiny.write(tmp_path / packing.folder)
    assert reads_as_written(tiny, tmp_path)
    assert reads_as_written(tiny, tmp_path / packing.folder / next(iter(tiny.files)))


def test_checksum_of_the_published_archive_covers_its_files(
    tiny_cifar: Make, tmp_path: Path
) -> None:
    tiny = tiny_cifar("binary")
    archive = pack(tmp_path / "a.tar.gz", tiny.files, "cifar-10-batches-bin")
    packing = tiny.source.packings[0]
    unknown = {name: checksums.Published("md5:unknown") for name in packing.train}
    type(tiny.source).packings = (replace(packing, train=unknown),)
    assert "corrupted, or not CIFAR-10" in refusal(tiny, archive)
    digest = checksums.Published("sha256:").of(archive.read_bytes())
    published = checksums.Published(digest, archive.stat().st_size)
    type(tiny.source).packings = (replace(packing, train=unknown, archive_published=published),)
    notes: list[str] = []
    tiny.source.read(archive, notes.append)
    assert "the archive is the published binary version" in notes[0]


@KINDS
def test_truncated_file_is_named_with_its_sizes(
    tiny_cifar: Make, tmp_path: Path, kind: str
) -> None:
    tiny = tiny_cifar(kind)
    name = list(tiny.files)[2]
    data = tiny.files[name]
    tiny.write(tmp_path / "files", **{name: data[:-1000]})
    message = refusal(tiny, tmp_path / "files")
    assert f"{name} is truncated at {len(data) - 1000} of {len(data)} bytes" in message


@KINDS
def test_changed_pixel_is_detected(tiny_cifar: Make, tmp_path: Path, kind: str) -> None:
    tiny = tiny_cifar(kind)
    name = list(tiny.files)[-1]
    data = bytearray(tiny.files[name])
    data[len(data) // 2] ^= 1
    tiny.write(tmp_path / "files", **{name: bytes(data)})
    message = refusal(tiny, tmp_path / "files")
    assert f"{tmp_path / 'files' / name} is corrupted, or not CIFAR-10: it has md5" in message


def test_changed_file_in_an_archive_is_named(tiny_cifar: Make, tmp_path: Path) -> None:
    tiny = tiny_cifar("binary")
    name = next(iter(tiny.files))
    changed = tiny.files | {name: bytes(len(tiny.files[name]))}
    archive = pack(tmp_path / "a.tar.gz", changed, "x")
    assert f"{archive}: {name} is corrupted, or not CIFAR-10" in refusal(tiny, archive)


def test_misnamed_file_is_detected(
    tiny_cifar: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_cifar("binary")
    monkeypatch.setitem(checksums.CIFAR_SETS, "cifar10", ("CIFAR-10", tiny.source.packings))
    tiny.write(tmp_path, **{"data_batch_2.bin": tiny.files["data_batch_3.bin"]})
    message = refusal(tiny, tmp_path)
    assert "data_batch_2.bin holds CIFAR-10's data_batch_3.bin, not" in message


@KINDS
def test_cifar100_is_not_taken_for_cifar10(
    tiny_cifar: Make, tiny_cifar100: Make, tmp_path: Path, kind: str
) -> None:
    other = tiny_cifar100(kind)
    folder = other.write(tmp_path / "files")
    archive = pack(tmp_path / "a.tar.gz", other.files, "x")
    for path in (folder, archive):
        message = refusal(tiny_cifar(kind), path)
        assert f"{path} holds CIFAR-100, not CIFAR-10" in message
        assert f"normbench data import cifar100 --from {path}" in message


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_truncated_archive_is_named(
    tiny_cifar: Make, tmp_path: Path, mode: str, part: float
) -> None:
    tiny = tiny_cifar("binary")
    archive = pack(tmp_path / "a.tar.gz", tiny.files, "x", mode)
    size = int(archive.stat().st_size * part)
    os.truncate(archive, size)
    assert f"{archive} is truncated at {size} bytes" in refusal(tiny, archive)


def test_truncated_official_archive_is_reported_with_its_full_size(
    tiny_cifar: Make, tmp_path: Path
) -> None:
    tiny = tiny_cifar("binary")
    archive = pack(tmp_path / "cifar-10-binary.tar.gz", tiny.files, "x")
    size = archive.stat().st_size // 2
    os.truncate(archive, size)
    assert f"is truncated at {size} of 170052171 bytes" in refusal(tiny, archive)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_damaged_archive_is_named(tiny_cifar: Make, tmp_path: Path, mode: str) -> None:
    tiny = tiny_cifar("binary")
    archive = pack(tmp_path / "a.tar.gz", tiny.files, "x", mode)
    data = bytearray(archive.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    archive.write_bytes(data)
    message = refusal(tiny, archive)
    assert str(archive) in message
    assert "corrupted" in message


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 99, b"\x1f\x8b\x08 no gzip at all"])
def test_file_that_is_not_an_archive_is_named(
    tiny_cifar: Make, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    assert f"{path} is " in refusal(tiny_cifar("python"), path)


def test_missing_files_are_named(tiny_cifar: Make, tmp_path: Path) -> None:
    tiny = tiny_cifar("python")
    folder = tiny.write(tmp_path / "files", data_batch_3=None, test_batch=None)
    message = refusal(tiny, folder)
    assert f"{folder} lacks data_batch_3, test_batch, which CIFAR-10 needs" in message
    archive = pack(tmp_path / "a.tar", {"data_batch_1": b"x"}, "x", "w")
    assert f"{archive} lacks data_batch_2" in refusal(tiny, archive)


def test_folder_without_cifar_files_is_refused_with_its_content(
    tiny_cifar: Make, tmp_path: Path
) -> None:
    (tmp_path / "cats.zip").touch()
    message = refusal(tiny_cifar("python"), tmp_path)
    assert "does not contain CIFAR-10: expected data_batch_1, " in message
    assert message.endswith("found cats.zip")
    assert "there is no file or folder" in refusal(tiny_cifar("python"), tmp_path / "nowhere")


class Trap:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_but_arrays_is_unpickled(protocol: int) -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no place in a CIFAR batch"):
        unpickle(pickle.dumps({b"data": Trap()}, protocol))
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(unpickle(pickle.dumps(array, 3)), array)


def test_file_is_not_unpickled_before_its_checksum_matches(
    tiny_cifar: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(data: bytes) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("normbench.data.cifar.unpickle", never)
    tiny = tiny_cifar("python")
    tiny.write(tmp_path, data_batch_1=pickle.dumps(Trap()))
    assert "data_batch_1 is truncated" in refusal(tiny, tmp_path)


def test_batch_with_another_layout_is_refused(tiny_cifar: Make, tmp_path: Path) -> None:
    """The checksum matches, as if such a file were published under the same name."""
    tiny = tiny_cifar("python")
    packing = tiny.source.packings[0]
    for batch in ({b"labels": [1]}, {b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)},
                  {b"labels": [1], b"data": np.zeros((1, 3071), np.uint8)}, [1, 2]):  # fmt: skip
        data = pickle.dumps(batch, protocol=3)
        published = {"data_batch_1": checksums.Published(checksums.Published("md5:").of(data))}
        type(tiny.source).packings = (replace(packing, train=packing.train | published),)
        tiny.write(tmp_path, data_batch_1=data)
        assert "data_batch_1 is not a file of CIFAR-10" in refusal(tiny, tmp_path)
