"""scikit-learn's digits: the data set built into normbench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import normbench
from normbench.data import load
from normbench.data.digits import Digits, held_out
from normbench.errors import UserError


def test_every_image_is_in_one_split_and_scaled_to_bytes() -> None:
    arrays = Digits().arrays()
    assert arrays.train_images.shape == (1437, 8, 8, 1)
    assert arrays.test_images.shape == (360, 8, 8, 1)
    assert arrays.train_images.dtype == np.uint8
    assert arrays.train_labels.dtype == np.int32
    bunch = load_digits()
    test = held_out(bunch["target"])
    train = np.setdiff1d(np.arange(1797), test)
    for indices, images, labels in (
        (train, arrays.train_images, arrays.train_labels),
        (test, arrays.test_images, arrays.test_labels),
    ):
        np.testing.assert_array_equal(labels, bunch["target"][indices])
        np.testing.assert_allclose(
            images[..., 0] / 255, bunch["images"][indices] / 16, atol=0.5 / 255
        )
    assert arrays.train_images.max() == 255


def test_test_images_are_balanced_and_spread_over_the_data_set() -> None:
    labels = load_digits()["target"]
    chosen = held_out(labels)
    assert set(np.bincount(labels[chosen])) == {36}
    assert (np.diff(chosen) > 0).all()
    assert np.histogram(chosen, bins=6, range=(0, 1797))[0].min() > 50


def test_digits_are_split_and_need_no_files() -> None:
    source = Digits()
    data = load(source, validation=200, split_seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (1237, 200, 360)
    assert set(np.bincount(data.validation.labels)) <= {19, 20, 21}
    assert source.state() == "built in"
    assert source.location() is None
    notes: list[str] = []
    source.prepare(say=notes.append)
    assert "nothing to prepare" in notes[0]
    with pytest.raises(UserError, match="nothing to import"):
        source.import_from("anywhere")


def test_importing_data_modules_imports_nothing_heavy() -> None:
    code = (
        "import sys, normbench.data, normbench.cli.data, normbench.data.digits, "
        "normbench.data.cifar, normbench.data.mnist\n"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'keras', 'sklearn', 'pandas', "
        "'scipy', 'requests') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(normbench.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_scikit_learn_loads_the_images_if_its_file_is_not_found(monkeypatch: Any) -> None:
    from_file = Digits().arrays()
    monkeypatch.setattr("normbench.data.digits.find_spec", lambda name: None)
    loaded = Digits().arrays()
    for name, values in vars(loaded).items():
        np.testing.assert_array_equal(values, getattr(from_file, name))
