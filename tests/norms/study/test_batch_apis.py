"""TensorFlow's own Batch Normalizations match ours as far as their precision allows."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.norms import BatchNormalization, KerasBatchNormalization, MomentsBatchNormalization

KINDS = [KerasBatchNormalization, MomentsBatchNormalization]


def images(offset: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((8, 5, 7, 6)) * np.arange(1, 7)
    return (values + offset).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_match_ours(kind, run_layer):
    x = images()
    upstream = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    ours = BatchNormalization(momentum=0.9, epsilon=1e-3)
    theirs = kind(momentum=0.9, epsilon=1e-3)
    for _ in range(3):
        expected = run_layer(ours, x, upstream, training=True)
        got = run_layer(theirs, x, upstream, training=True)
    np.testing.assert_allclose(got.outputs, expected.outputs, atol=1e-5)
    np.testing.assert_allclose(got.d_inputs, expected.d_inputs, atol=1e-5)
    for name, gradient in expected.d_weights.items():
        np.testing.assert_allclose(got.d_weights[name], gradient, rtol=1e-4, atol=1e-4)
    for name, value in expected.state.items():
        np.testing.assert_allclose(got.state[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_layer(theirs, x).outputs, run_layer(ours, x).outputs, atol=1e-5)


def test_tf_nn_loses_precision_at_large_means_and_ours_does_not(run_layer):
    x = images(offset=1e4)
    exact = x.astype("f8")
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-3)

    def error(kind):
        outputs = run_layer(kind(epsilon=1e-3), x, training=True).outputs
        return np.abs(outputs - expected).max()

    assert error(BatchNormalization) < 1e-4
    assert error(MomentsBatchNormalization) > 1e-3
