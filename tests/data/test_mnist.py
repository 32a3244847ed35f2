"""Binary MNIST: MNIST's images with two levels."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.data.mnist import MNIST, BinaryMNIST, binary


def test_pixels_from_the_threshold_up_are_ink():
    got = binary(np.array([[0, 127, 128, 255]], np.uint8))
    assert got.dtype == np.uint8
    assert got.tolist() == [[0, 0, 255, 255]]


def test_binary_mnist_uses_the_files_of_mnist(tmp_path):
    assert BinaryMNIST().location(tmp_path) == MNIST().location(tmp_path) is None
    assert BinaryMNIST().state(tmp_path) == "missing"


def test_binary_mnist_is_mnist_in_black_and_white(imported, monkeypatch):
    tiny, root = imported
    source = BinaryMNIST()
    monkeypatch.setattr(source, "_gray", tiny.source)
    check_levels(source.arrays(root), tiny.source.arrays(root))


@pytest.mark.data
@pytest.mark.slow
def test_genuine_binary_mnist_is_mnist_in_black_and_white(real_data, tmp_path):
    source = BinaryMNIST()
    source.import_from(real_data / "mnist", tmp_path)
    check_levels(source.arrays(tmp_path), MNIST().arrays(tmp_path))


def check_levels(two_levels, gray):
    assert set(np.unique(two_levels.train_images)) == {0, 255}
    np.testing.assert_array_equal(two_levels.test_images > 0, gray.test_images >= 128)
    np.testing.assert_array_equal(two_levels.train_labels, gray.train_labels)
