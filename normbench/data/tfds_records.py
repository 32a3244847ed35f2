"""Read a folder of tensorflow-datasets without that package or TensorFlow: :func:`read`.

A shard is a TFRecord file: for each example its length, a checksum of the length, the example and
a checksum of the example. An example is a protobuf message ``tf.train.Example``, which maps names
to lists of bytes, floats or integers; an image is a PNG file. No other formats are supported,
because the folders of CIFAR and the MNIST family use only these.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from normbench.data import tfds_folder
from normbench.errors import NormbenchError

_CHECKED = 1024
"""Number of records whose checksums are computed together."""

_MASK = 0xA282EAD8
"""TFRecord's constant for masking checksums, because data may itself contain checksums."""


def read(
    folder: Path, shape: tuple[int, int, int], splits: Sequence[str] = ("train", "test")
) -> dict[str, np.ndarray]:
    """Read images and labels: ``<split>_images`` uint8 [N, H, W, C], ``<split>_labels`` int32 [N].

    The order is that of the files, shard after shard; if the examples have an ``id`` (CIFAR), it is
    the order of the ids.

    Args:
        folder: The folder of one version.
        shape: Height, width and channels of the images.
        splits: The splits to read.

    Raises:
        NormbenchError: A file is damaged, or contains something other than PNG images with labels.
    """
    arrays = {}
    for split in splits:
        images, labels, ids = [], [], []
        for path in tfds_folder.shards(folder, split):
            try:
                for record in _records(path.read_bytes()):
                    texts, integers = _example(record)
                    [image], [label] = texts["image"], integers["label"]
                    images.append(_pixels(image, shape))
                    labels.append(label)
                    ids += texts.get("id", [])
            except (KeyError, ValueError, IndexError, OSError) as error:
                raise NormbenchError(
                    f"{path} cannot be read without tensorflow-datasets ({error}): it is damaged, "
                    "or contains something other than PNG images with labels"
                ) from error
        order = np.argsort(np.array(ids), kind="stable") if ids else slice(None)
        arrays[f"{split}_images"] = np.stack(images)[order]
        arrays[f"{split}_labels"] = np.array(labels, np.int32)[order]
    return arrays


# --- TFRecord -------------------------------------------------------------------------------------


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    Raises:
        ValueError: The file is truncated, or a checksum does not match.
    """
    start = 0
    strings: list[bytes] = []
    checksums: list[int] = []
    while start < len(data):
        header = data[start : start + 8]
        length = int.from_bytes(header, "little")
        body, end = start + 12, start + 12 + length
        if end + 4 > len(data):
            raise ValueError("it is truncated")
        strings += [header, data[body:end]]
        checksums += [
            int.from_bytes(data[start + 8 : body], "little"),
            int.from_bytes(data[end : end + 4], "little"),
        ]
        start = end + 4
        if len(strings) >= 2 * _CHECKED or start == len(data):
            if not np.array_equal(_masked(_crc32c(strings)), np.array(checksums, np.uint32)):
                raise ValueError("a checksum does not match")
            yield from strings[1::2]
            strings, checksums = [], []


def _table() -> np.ndarray:
    """Return the CRC-32C of each byte."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(0x82F63B78), crc >> 1)
    return crc


def _crc32c(strings: Sequence[bytes]) -> np.ndarray:
    """Return the CRC-32C of each byte string, uint32, processing all strings byte by byte."""
    lengths = np.array([len(string) for string in strings])
    order = np.argsort(-lengths, kind="stable")
    columns = np.zeros((lengths.max(), len(strings)), np.uint8)
    for column, index in enumerate(order):
        columns[: lengths[index], column] = np.frombuffer(strings[index], np.uint8)
    # The longest strings come first, so those that still have a byte at a position are a prefix.
    counts = np.searchsorted(-lengths[order], -np.arange(1, lengths.max() + 1), side="right")
    table = _table()
    crc = np.full(len(strings), 0xFFFFFFFF, np.uint32)
    for row, count in zip(columns, counts, strict=True):
        prefix = crc[:count]
        crc[:count] = table[(prefix ^ row[:count]) & 0xFF] ^ (prefix >> 8)
    result = np.empty_like(crc)
    result[order] = ~crc
    return result


def _masked(crc: np.ndarray) -> np.ndarray:
    return ((crc >> 15) | (crc << 17)) + np.uint32(_MASK)


# --- protobuf -------------------------------------------------------------------------------------


def _example(message: bytes) -> tuple[dict[str, list[bytes]], dict[str, list[int]]]:
    """Return an example's byte-string features and its integer features, by name."""
    texts: dict[str, list[bytes]] = {}
    integers: dict[str, list[int]] = {}
    for features in _all(message, 1):
        for entry in _all(features, 1):
            [name], [feature] = _all(entry, 1), _all(entry, 2)
            for values in _all(feature, 1):
                texts[name.decode()] = _all(values, 1)
            for values in _all(feature, 3):
                integers[name.decode()] = _integers(values)
    return texts, integers


def _all(message: bytes, field: int) -> list[bytes]:
    """Return the values of a field that are byte strings or messages."""
    return [value for number, value in _fields(message) if number == field and value is not None]


def _integers(message: bytes) -> list[int]:
    """Return the values of a packed ``Int64List``."""
    values = []
    for data in _all(message, 1):
        position = 0
        while position < len(data):
            value, position = _varint(data, position)
            values.append(value - (1 << 64) if value >> 63 else value)
    return values


def _fields(message: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number of each field with its value; None for numeric fields."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 2:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("a field is truncated")
            yield key >> 3, message[position : position + length]
            position += length
            continue
        if kind == 0:
            _, position = _varint(message, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the unknown type {kind}")
        yield key >> 3, None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return an integer encoded with seven bits per byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _pixels(image: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode a PNG file with a given height, width and channels.

    Raises:
        ValueError: It is not an image, or has another shape.
    """
    from PIL import Image

    height, width, channels = shape
    with Image.open(io.BytesIO(image), formats=["PNG"]) as picture:
        if picture.size != (width, height) or picture.mode != {1: "L", 3: "RGB"}[channels]:
            raise ValueError(f"an image is {picture.mode} of {picture.size}, not {shape}")
        return np.asarray(picture).reshape(shape)
