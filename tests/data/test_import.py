"""Import of a small CIFAR-10 with the real tensorflow-datasets, read by plain `tfds.load`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.data import tfds_process


def test_imported_folder_can_be_read_by_tfds(
    tiny_cifar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_cifar("python")
    root = tmp_path / "tfds"
    notes: list[str] = []
    folder = tiny.source.import_from(tiny.write(tmp_path / "files"), root, notes.append)
    assert folder == root / "cifar10" / "3.0.2"
    assert notes[0].startswith("CIFAR-10: all files are the published python version")
    assert notes[-1] == f"CIFAR-10 is ready: {folder}"

    arrays = tiny.source.arrays(root)
    np.testing.assert_array_equal(arrays.train_images, tiny.train["image"])
    np.testing.assert_array_equal(arrays.train_labels, tiny.train["label"])
    np.testing.assert_array_equal(arrays.test_images, tiny.test["image"])

    # Without tensorflow-datasets, a copy of the folder gives the same images.
    shutil.copytree(folder, tmp_path / "copy" / "cifar10" / "3.0.2")
    monkeypatch.setattr(tfds_process, "is_installed", lambda: False)
    copied = tiny.source.arrays(tmp_path / "copy")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(copied, name), getattr(arrays, name))
        assert getattr(copied, name).dtype == getattr(arrays, name).dtype

    import tensorflow_datasets as tfds

    data: Any
    data, info = tfds.load("cifar10", data_dir=str(root), download=False, with_info=True)
    assert info.features["label"].names == list(tiny.source.class_names)
    assert info.splits["train"].num_examples == 60
    for split, expected in (("train", tiny.train), ("test", tiny.test)):
        examples = sorted(data[split].as_numpy_iterator(), key=lambda e: e["id"])
        assert [e["id"].decode() for e in examples] == [
            f"{split}_{i:05d}" for i in range(len(expected["label"]))
        ]
        np.testing.assert_array_equal([e["image"] for e in examples], expected["image"])
        np.testing.assert_array_equal([e["label"] for e in examples], expected["label"])
    pairs: Any = tfds.load(
        "cifar10", data_dir=str(root), download=False, split="test", as_supervised=True
    )
    image, label = next(iter(pairs))
    assert image.shape == (32, 32, 3)
    assert label.shape == ()
    module = json.loads((folder / "dataset_info.json").read_text())["moduleName"]
    assert module == "tensorflow_datasets.image_classification.cifar"
