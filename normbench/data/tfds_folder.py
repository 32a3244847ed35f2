"""The folder of a data set prepared by tensorflow-datasets: finding, checking, fingerprinting.

``<data folder>/<name>/<version>/`` contains ``dataset_info.json``, ``features.json`` and one
TFRecord file per shard. Nothing here imports tensorflow-datasets or TensorFlow.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from normbench.errors import NormbenchError, UserError
from normbench.store import schema
from normbench.store.files import expand_user

INFO = "dataset_info.json"
HIDDEN = ".normbench"
"""normbench's own folder in a data folder: array caches, locks, data sets being imported."""


def _digits(value: Any, position: str) -> None:
    """Allow a count as protobuf writes it: a number or a string of digits."""
    if not re.fullmatch(r"\d{1,18}", str(value)):
        raise schema.Mismatch(f"{position} is {value!r}, not a count")


_INFO = schema.record(
    {
        "name": schema.text(),
        "splits": schema.sequence(
            schema.record(
                {"name": schema.text()},
                {
                    "shardLengths": schema.sequence(_digits),
                    "filepathTemplate": schema.text(),
                    "numBytes": _digits,
                },
            )
        ),
    },
    {"fileFormat": schema.text()},
)

_RECORD_OVERHEAD = 16  # TFRecord: length (8), its CRC (4), the data's CRC (4)


def root(data_dir: str | Path | None = None) -> Path:
    """Return the data folder: ``data_dir``, else ``TFDS_DATA_DIR``, else tfds's own default."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~") / "tensorflow_datasets"
    return expand_user(folder).absolute()


def _version(name: str) -> tuple[int, ...] | None:
    """Parse a version folder's name."""
    return tuple(map(int, name.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", name) else None


def find(name: str, version: str, data_dir: str | Path | None = None) -> Path | None:
    """Return the folder of a prepared data set, or None.

    It is that of ``version`` if it exists, else the newest of the same major version (tfds does not
    change the examples within a major version).
    """
    base = root(data_dir) / name
    folder = base / version
    if (folder / INFO).is_file():
        return folder
    numbers = _version(version)
    if numbers is None or not base.is_dir():
        return None
    candidates = [
        (other_numbers, path)
        for path in base.iterdir()
        if (other_numbers := _version(path.name))
        and other_numbers[0] == numbers[0]
        and (path / INFO).is_file()
    ]
    return max(candidates)[1] if candidates else None


def newest(
    name: str, config: str | None, version: str | None, data_dir: str | Path | None = None
) -> Path | None:
    """Return the folder of a prepared data set of any version, or None.

    Args:
        name: The data set's name in tensorflow-datasets.
        config: Its config; None for a data set without configs, or for the only prepared one.
        version: Such as ``1.0.0``; None for the newest.
        data_dir: The data folder; by default that of tensorflow-datasets.

    Raises:
        UserError: Several configs are prepared, and ``config`` is None.
    """
    base = root(data_dir) / name
    if config is None and not _versions(base):
        configs = sorted(path.parents[1].name for path in base.glob(f"*/*/{INFO}"))
        if len(set(configs)) > 1:
            texts = ", ".join(f"{name}/{config}" for config in dict.fromkeys(configs))
            raise UserError(f"{name} is prepared with several configs, choose one: {texts}")
        config = configs[0] if configs else None
    versions = _versions(base / config if config else base)
    if version is not None:
        return versions.get(_version(version) or ())
    return versions[max(versions)] if versions else None


def _versions(folder: Path) -> dict[tuple[int, ...], Path]:
    """Return the prepared versions in the folder of a data set or of its config."""
    return {
        numbers: path.parent
        for path in folder.glob(f"*/{INFO}")
        if (numbers := _version(path.parent.name))
    }


def prepared(base: Path) -> list[str]:
    """Return the names of the prepared data sets in a data folder."""
    paths = [*base.glob(f"*/*/{INFO}"), *base.glob(f"*/*/*/{INFO}")]
    return sorted({path.relative_to(base).parts[0] for path in paths})


def _info(folder: Path) -> dict[str, Any]:
    """Return the content of ``dataset_info.json``.

    Raises:
        ValueError: It cannot be read; the message names it.
    """
    try:
        return schema.parse_record((folder / INFO).read_bytes(), _INFO)
    except OSError as error:
        raise ValueError(f"{folder / INFO} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{folder / INFO} cannot be read: {error}") from error


def _shards(folder: Path, name: str, split: dict[str, Any], file_format: str) -> list[Path]:
    """Return the files of a split.

    Raises:
        KeyError: The template of their names has a field that tensorflow-datasets does not define.
    """
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    count = len(split["shardLengths"])
    paths = []
    for index in range(count):
        fields = {
            "DATASET": name, "SPLIT": split["name"], "FILEFORMAT": file_format,
            "SHARD_INDEX": f"{index:05d}", "NUM_SHARDS": f"{count:05d}",
            "SHARD_X_OF_Y": f"{index:05d}-of-{count:05d}",
        }  # fmt: skip
        paths.append(folder / re.sub(r"\{(.*?)\}", lambda field: fields[field[1]], template))  # noqa: B023
    return paths


def damage(folder: Path, counts: dict[str, int]) -> str | None:
    """Describe damage to a prepared folder, judging by file sizes; return None if there is none.

    Args:
        folder: The folder of one version.
        counts: The number of images that each split must have.
    """
    try:
        info = _info(folder)
    except ValueError as error:
        return str(error)
    file_format = info.get("fileFormat", "tfrecord")
    splits = {split.get("name"): split for split in info["splits"]}
    for name, expected in counts.items():
        split = splits.get(name)
        if split is None:
            return f"{folder / INFO} has no split {name!r}"
        images = sum(map(int, split.get("shardLengths", ())))
        if images != expected:
            return f"{folder / INFO} has {images} images in {name!r}, not {expected}"
        try:
            shards = _shards(folder, info["name"], split, file_format)
        except KeyError as error:
            return f"{folder / INFO} names files of {name!r} by the unknown field {error}"
        sizes = 0
        for shard in shards:
            if not shard.is_file():
                return f"{shard} is missing"
            sizes += shard.stat().st_size
        size = int(split.get("numBytes", 0)) + _RECORD_OVERHEAD * images
        if file_format == "tfrecord" and "numBytes" in split and sizes != size:
            return f"the files of {name!r} in {folder} have {sizes} bytes, not {size}"
    return None


def shards(folder: Path, split: str) -> list[Path]:
    """Return the TFRecord files of a split of a folder that :func:`damage` has checked.

    Raises:
        NormbenchError: The files have another format.
    """
    info = _info(folder)
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "tfrecord":
        raise NormbenchError(
            f"{folder} has files of the format {file_format}, which only tensorflow-datasets reads"
        )
    [entry] = (entry for entry in info["splits"] if entry["name"] == split)
    return _shards(folder, info["name"], entry, file_format)


def fingerprint(folder: Path) -> list[list[Any]]:
    """Return names, sizes and times of a folder's files, which change when a file is written."""
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        status = entry.stat()
        files.append([entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return files
