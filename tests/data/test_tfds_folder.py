"""Prepared tfds folders: choice of the version, and detection of damage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from normbench.data import tfds_folder

COUNTS = {"train": 5, "test": 2}


def prepared(root: Path, name: str = "mnist", version: str = "3.0.1") -> Path:
    """Write a folder with the file sizes that tfds would write: 5 training and 2 test images."""
    folder = root / name / version
    folder.mkdir(parents=True)
    splits = []
    for split, lengths in (("train", [3, 2]), ("test", [2])):
        for index, count in enumerate(lengths):
            shard = f"{name}-{split}.tfrecord-{index:05d}-of-{len(lengths):05d}"
            (folder / shard).write_bytes(bytes(count * (100 + 16)))
        size = str(100 * sum(lengths))
        splits.append({"name": split, "shardLengths": list(map(str, lengths)), "numBytes": size})
    info = {"name": name, "fileFormat": "tfrecord", "splits": splits}
    (folder / tfds_folder.INFO).write_text(json.dumps(info))
    return folder


def test_data_folder_is_the_default_of_tfds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_folder.root() == tmp_path / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "other"))
    assert tfds_folder.root() == tmp_path / "other"
    assert tfds_folder.root("~/mine") == tmp_path / "mine"


def test_exact_version_is_preferred_to_the_newest_of_its_major_version(tmp_path: Path) -> None:
    assert tfds_folder.find("mnist", "3.0.1", tmp_path) is None
    (tmp_path / "mnist" / "3.0.9").mkdir(parents=True)  # incomplete: no dataset_info.json
    for version in ("1.0.0", "3.0.0", "3.0.10", "3.0.2", "4.0.0"):
        prepared(tmp_path, version=version)
    assert tfds_folder.find("mnist", "3.0.1", tmp_path) == tmp_path / "mnist" / "3.0.10"
    exact = prepared(tmp_path, version="3.0.1")
    assert tfds_folder.find("mnist", "3.0.1", tmp_path) == exact
    assert tfds_folder.find("mnist", "2.0.0", tmp_path) is None


def test_complete_folder_has_no_damage(tmp_path: Path) -> None:
    assert tfds_folder.damage(prepared(tmp_path), COUNTS) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "mnist-train.tfrecord-00001-of-00002").unlink(), "00001-of-00002 is missi"),
        (lambda f: os.truncate(f / "mnist-test.tfrecord-00000-of-00001", 9), "9 bytes, not 232"),
        (lambda f: (f / "dataset_info.json").write_text("{"), "not JSON"),
        (lambda f: (f / "dataset_info.json").write_text("[]"), "expected a JSON object"),
        (lambda f: (f / "dataset_info.json").unlink(), "cannot be read"),
        (
            lambda f: (f / "dataset_info.json").write_text('{"name": "x", "splits": []}'),
            "no split 'train'",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = prepared(tmp_path)
    spoil(folder)
    damage = tfds_folder.damage(folder, COUNTS)
    assert damage is not None
    assert message in damage


def test_wrong_image_counts_are_named(tmp_path: Path) -> None:
    message = tfds_folder.damage(prepared(tmp_path), {"train": 6, "test": 2})
    assert message is not None
    assert "has 5 images in 'train', not 6" in message


def test_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    first = tfds_folder.fingerprint(folder)
    assert tfds_folder.fingerprint(folder) == first == json.loads(json.dumps(first))
    shard = folder / "mnist-test.tfrecord-00000-of-00001"
    times = shard.stat()
    shard.write_bytes(b"x" * times.st_size)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same modification time
    assert tfds_folder.fingerprint(folder) != first
    # Renaming the folder, as at the end of preparing, changes no file in it.
    second = tfds_folder.fingerprint(folder)
    assert tfds_folder.fingerprint(folder.rename(tmp_path / "moved")) == second
