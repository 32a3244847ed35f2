"""The files in conf/dataset/ fit the sources that they name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from normbench.data import Source
from normbench.data.split import split_indices

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "dataset").glob("*.yaml"))


def test_those_that_the_readme_promises_are_there() -> None:
    assert {file.stem for file in FILES} >= {
        "cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "mnist_binary",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_names_a_source_and_sizes_that_it_can_give(file: Path) -> None:
    group: dict[str, Any] = yaml.safe_load(file.read_text())
    module, _, name = group["_target_"].rpartition(".")
    source = getattr(import_module(module), name)()
    assert isinstance(source, Source)
    assert source.name == group["name"] == file.stem
    assert len(source.class_names) == len(set(source.class_names)) == source.classes
    assert set(group) == {
        "name", "_target_", "validation", "split_seed", "train_size", "crop_padding", "flip",
    }  # fmt: skip
    import numpy as np

    labels = np.arange(source.train_count) % source.classes
    train, held_out = split_indices(labels, group["validation"], group["split_seed"])
    assert len(train) + len(held_out) == source.train_count
    assert group["crop_padding"] == (4 if "cifar" in file.stem else 0)
    assert group["flip"] is ("cifar" in file.stem)
