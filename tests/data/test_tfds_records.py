"""Prepared folders read without tensorflow-datasets; test_import.py reads a genuine one."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normbench.data import tfds_process, tfds_records
from normbench.errors import NormbenchError, UserError

SHAPE = (4, 4, 1)


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def example(image: bytes, label: int, **more: bytes) -> bytes:
    entries = {"image": field(1, field(1, image)), "label": field(3, field(1, varint(label)))}
    entries |= {name: field(1, field(1, value)) for name, value in more.items()}
    pairs = (field(1, name.encode()) + field(2, value) for name, value in entries.items())
    return field(1, b"".join(field(1, pair) for pair in pairs))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def tfrecord(records: list[bytes]) -> bytes:
    file = b""
    for record in records:
        length = len(record).to_bytes(8, "little")
        file += length + checksum(length) + record + checksum(record)
    return file


def write(folder: Path, shards: list[list[bytes]], split: str = "train", **info: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, records in enumerate(shards):
        name = f"tiny-{split}.tfrecord-{index:05d}-of-{len(shards):05d}"
        (folder / name).write_bytes(tfrecord(records))
    lengths = [str(len(records)) for records in shards]
    content = {"name": "tiny", "splits": [{"name": split, "shardLengths": lengths}], **info}
    (folder / "dataset_info.json").write_text(json.dumps(content))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)


def test_crc32c_matches_published_values() -> None:
    texts = [b"123456789", b"", b"a", bytes(32)]
    expected = [0xE3069283, 0, 0xC1D04330, 0x8A9136AA]  # RFC 3720, B.4
    assert tfds_records._crc32c(texts).tolist() == expected
    assert [crc32c(text) for text in texts] == expected


def test_examples_are_read_in_file_order(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_records, "_CHECKED", 2)
    records = [example(png(image), 200 + n) for n, image in enumerate(images)]
    write(tmp_path, [records[:3], records[3:]])
    read = tfds_records.read(tmp_path, SHAPE, ["train"])
    assert list(read) == ["train_images", "train_labels"]
    np.testing.assert_array_equal(read["train_images"], images[..., None])
    assert read["train_images"].dtype == np.uint8
    assert read["train_labels"].tolist() == [200, 201, 202, 203, 204]
    assert read["train_labels"].dtype == np.int32


def test_examples_with_ids_are_sorted_by_id(tmp_path: Path, images: np.ndarray) -> None:
    ids = [b"train_3", b"train_0", b"train_4", b"train_1", b"train_2"]
    records = [example(png(image), n, id=ids[n]) for n, image in enumerate(images)]
    write(tmp_path, [records])
    read = tfds_records.read(tmp_path, SHAPE, ["train"])
    assert read["train_labels"].tolist() == [1, 3, 4, 0, 2]
    np.testing.assert_array_equal(read["train_images"][..., 0], images[[1, 3, 4, 0, 2]])


@pytest.mark.parametrize("position", ["length", "label", "end"])
def test_damage_is_named(tmp_path: Path, images: np.ndarray, position: str) -> None:
    record = example(png(images[0]), 7)
    write(tmp_path, [[record, record]])
    file = tmp_path / "tiny-train.tfrecord-00000-of-00001"
    data = bytearray(file.read_bytes())
    if position == "end":
        del data[-1]
    else:
        data[8 if position == "length" else data.index(b"\x07", 12)] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        NormbenchError, match=r"00000-of-00001 cannot be read without .*damaged"
    ) as e:
        tfds_records.read(tmp_path, SHAPE, ["train"])
    assert ("it is truncated" if position == "end" else "a checksum does not match") in str(e.value)


def test_records_other_than_png_images_with_labels_are_refused(
    tmp_path: Path, images: np.ndarray
) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(images[0]).save(jpeg, "JPEG")
    for record in (
        example(jpeg.getvalue(), 1),
        example(png(images[0][:3]), 1),
        example(png(np.stack([images[0]] * 3, -1)), 1),
        field(1, field(1, field(1, b"image") + field(2, field(1, field(1, png(images[0])))))),
        b"\x0a\xff",
    ):
        write(tmp_path, [[record]])
        with pytest.raises(NormbenchError, match="something other than PNG images with labels"):
            tfds_records.read(tmp_path, SHAPE, ["train"])
    write(tmp_path, [[record]], fileFormat="array_record")
    with pytest.raises(NormbenchError, match="array_record, which only tensorflow-datasets reads"):
        tfds_records.read(tmp_path, SHAPE, ["train"])


def test_copied_folder_is_read_without_tensorflow_datasets(
    tiny_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_process, "is_installed", lambda: False)
    folder = tmp_path / "data" / "mnist" / "3.0.1"
    splits = []
    for split, examples in (("train", tiny_mnist.train), ("test", tiny_mnist.test)):
        pairs = zip(examples["image"][..., 0], examples["label"], strict=True)
        records = [example(png(image), int(label)) for image, label in pairs]
        write(folder, [records], split, name="mnist")
        info = json.loads((folder / "dataset_info.json").read_text())
        splits += info["splits"]
        name = f"{split}.tfrecord-00000-of-00001"
        (folder / f"tiny-{name}").rename(folder / f"mnist-{name}")
    (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": splits}))
    arrays = tiny_mnist.source.arrays(tmp_path / "data")
    np.testing.assert_array_equal(arrays.train_images, tiny_mnist.train["image"])
    np.testing.assert_array_equal(arrays.test_labels, tiny_mnist.test["label"])
    # The cache is not used without the folder.
    shutil.move(folder / name.replace("test", "mnist-test"), tmp_path)
    with pytest.raises(NormbenchError, match="is missing"):
        tiny_mnist.source.arrays(tmp_path / "data")


def test_preparing_and_importing_need_tensorflow_datasets(
    tiny_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_process, "is_installed", lambda: False)
    notes: list[str] = []
    with pytest.raises(UserError, match="to prepare a data set, but is not installed: pip"):
        tiny_mnist.source.prepare(tmp_path / "data", notes.append)
    files = tiny_mnist.write(tmp_path / "files")
    with pytest.raises(UserError, match=r"to write a data set, .* TFDS_DATA_DIR"):
        tiny_mnist.source.import_from(files, tmp_path / "data", notes.append)
    assert notes == []
    assert not (tmp_path / "data").exists()
