"""Ghost Batch Normalization."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.norms import BatchNormalization, GhostBatchNormalization


def size_for(images: int) -> int:
    return next(size for size in (2, 3, 1) if images % size == 0)


def reference(x, gamma, beta, size, epsilon=1e-5):
    parts = x.reshape(x.shape[0] // size, size, -1, x.shape[-1])
    mean = parts.mean((1, 2), keepdims=True)
    variance = ((parts - mean) ** 2).mean((1, 2), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta


def test_training(case, check):
    size = size_for(case.shape[0])
    layer = GhostBatchNormalization(size, epsilon=1e-5, dtype=case.dtype)
    check(layer, lambda x, gamma, beta: reference(x, gamma, beta, size), case)


@pytest.mark.parametrize("unbiased", [False, True])
def test_moving_statistics_follow_each_virtual_batch(unbiased, run_layer):
    x = np.random.default_rng(0).standard_normal((6, 3, 5, 4)).astype(np.float32)
    ghost = GhostBatchNormalization(2, momentum=0.7, unbiased=unbiased)
    plain = BatchNormalization(momentum=0.7, unbiased=unbiased)
    for _ in range(2):
        got = run_layer(ghost, x, training=True)
        for part in np.split(x, 3):
            expected = run_layer(plain, part, training=True)
    for name, value in expected.state.items():
        np.testing.assert_allclose(got.state[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_layer(ghost, x).outputs, run_layer(plain, x).outputs, atol=1e-5)


def test_one_virtual_batch_equals_batch_normalization(run_layer):
    x = np.random.default_rng(0).standard_normal((6, 3, 5, 4)).astype(np.float32)
    runs = [
        run_layer(layer, x, x, training=True)
        for layer in (GhostBatchNormalization(6), BatchNormalization())
    ]
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=1e-5)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=1e-5)
    np.testing.assert_allclose(
        runs[0].state["moving_variance"], runs[1].state["moving_variance"], rtol=1e-6
    )


def test_indivisible_mini_batch_is_refused(run_layer):
    layer = GhostBatchNormalization(4, name="ghost")
    with pytest.raises(ValueError, match=r"virtual_batch=4 does not divide .* ghost, 6 images"):
        run_layer(layer, np.zeros((6, 2, 2, 3), np.float32), training=True)
    run_layer(layer, np.zeros((6, 2, 2, 3), np.float32))  # inference takes any number of images


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX knows every shape")
def test_indivisible_mini_batch_of_unknown_size_is_refused_when_run():
    import tensorflow as tf

    layer = GhostBatchNormalization(4, name="ghost")
    call = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, None, None, 3))]
    )
    assert call(tf.zeros((8, 2, 2, 3))).shape == (8, 2, 2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="virtual_batch=4 does not divide"):
        call(tf.zeros((6, 2, 2, 3)))


@pytest.mark.parametrize("size", [0, -2, 1.5])
def test_invalid_virtual_batch_is_refused(size):
    with pytest.raises(ValueError, match="virtual_batch must be a whole number of at least 1"):
        GhostBatchNormalization(size)
