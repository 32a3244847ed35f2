"""Binary MNIST: MNIST's images with two levels."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.data.mnist import MNIST, BinaryMNIST, binary


def test_a_pixel_is_ink_from_the_threshold_on():
    got = binary(np.array([[0, 127, 128, 255]], np.uint8))
    assert got.dtype == np.uint8
    assert got.tolist() == [[0, 0, 255, 255]]


def test_it_has_no_files_of_its_own(tmp_path):
    assert BinaryMNIST().location(tmp_path) == MNIST().location(tmp_path) is None
    assert BinaryMNIST().state(tmp_path) == "missing"


@pytest.mark.data
def test_it_is_mnist_in_black_and_white(real_data, tmp_path):
    source = BinaryMNIST()
    source.import_from(real_data / "mnist", tmp_path)
    got, grey = source.arrays(tmp_path), MNIST().arrays(tmp_path)
    assert set(np.unique(got.train_images)) == {0, 255}
    np.testing.assert_array_equal(got.test_images > 0, grey.test_images >= 128)
    np.testing.assert_array_equal(got.train_labels, grey.train_labels)
