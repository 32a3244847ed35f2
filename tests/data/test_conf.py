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
# A file with a content stands for any data set of a form.
FILES = [file for file in ALL if "content" not in yaml.safe_load(file.read_text())]
KEYS = {*DATASET_KEYS, *NEWER_DATASET_KEYS}


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
    assert set(group) == {"name", "_target_", *KEYS}
    import numpy as np

    labels = np.arange(source.train_count) % source.classes
    train, held_out = split_indices(labels, group["validation"], group["split_seed"])
    assert len(train) + len(held_out) == source.train_count
    assert group["crop_padding"] == (4 if "cifar" in file.stem else 0)
    assert group["flip"] is ("cifar" in file.stem)


@pytest.mark.parametrize("file", [each for each in ALL if each not in FILES], ids=lambda f: f.stem)
def test_each_form_has_the_options_of_its_class(file: Path) -> None:
    group: dict[str, Any] = yaml.safe_load(file.read_text())
    module, _, name = group["_target_"].rpartition(".")
    source = getattr(import_module(module), name)
    options = {key: value for key, value in group.items() if key not in KEYS | {"name", "_target_"}}
    defaults = {
        key: each.default
        for key, each in parameters_of(source).items()
        if each.default != each.empty
    }
    first, *others = options.items()
    assert first[1] == ""  # the path or name, without which there are no images
    assert dict(others) == defaults
    assert source.name == group["name"] == file.stem
    assert group["validation"] is None
