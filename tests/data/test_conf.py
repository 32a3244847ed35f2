"""The files in conf/dataset/ fit the sources that they name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from normbench.components import DATASET_KEYS, NEWER_DATASET_KEYS, parameters_of
from normbench.data import Source
from normbench.data.split import split_indices

ALL = sorted((Path(__file__).resolve().parents[2] / "conf" / "dataset").glob("*.yaml"))
# Files with the key `content` are for users' data: any data set in one format.
FILES = [file for file in ALL if "content" not in yaml.safe_load(file.read_text())]
KEYS = {*DATASET_KEYS, *NEWER_DATASET_KEYS}


def test_data_sets_named_in_the_readme_exist() -> None:
    assert {file.stem for file in FILES} >= {
        "cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "mnist_binary",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_names_a_source_and_possible_sizes(file: Path) -> None:
    group: dict[str, Any] = yaml.safe_load(file.read_text())
    module, _, name = group["_target_"].rpartition(".")
    source = getattr(import_module(module), name)()
    assert isinstance(source, Source)
    assert source.name == group["name"] == file.stem
    assert len(source.class_names) == len(set(source.class_names)) == source.classes
    assert set(group) == {"name", "_target_", *KEYS}
    import numpy as np

    labels = np.arange(source.train_count) % source.classes
    train, held_out = split_indices(labels, group["validation"], group["split_seed"])
    assert len(train) + len(held_out) == source.train_count
    assert group["crop_padding"] == (4 if "cifar" in file.stem else 0)
    assert group["flip"] is ("cifar" in file.stem)


@pytest.mark.parametrize("file", [file for file in ALL if file not in FILES], ids=lambda f: f.stem)
def test_files_for_user_data_have_the_options_of_their_class(file: Path) -> None:
    group: dict[str, Any] = yaml.safe_load(file.read_text())
    module, _, name = group["_target_"].rpartition(".")
    source = getattr(import_module(module), name)
    options = {key: value for key, value in group.items() if key not in KEYS | {"name", "_target_"}}
    defaults = {
        key: parameter.default
        for key, parameter in parameters_of(source).items()
        if parameter.default != parameter.empty
    }
    first, *others = options.items()
    assert first[1] == ""  # the path or name of the images, which the user must give
    assert dict(others) == defaults
    assert source.name == group["name"] == file.stem
    assert group["validation"] is None
