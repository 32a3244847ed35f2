"""Batch Normalization's two halves."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.norms import BatchCentering, BatchScaling


def variance_of(x):
    axes = tuple(range(x.ndim - 1))
    return ((x - x.mean(axes)) ** 2).mean(axes)


def test_centering(case, check):
    def reference(x, beta):
        return x - x.mean(tuple(range(x.ndim - 1))) + beta

    check(BatchCentering(dtype=case.dtype), reference, case)


def test_scaling(case, check):
    def reference(x, gamma, beta):
        return x / np.sqrt(variance_of(x) + 1e-5) * gamma + beta

    # ∂y/∂σ² has the term x/σ, which is 1000·dy/σ where the mean is 1000.
    check(BatchScaling(epsilon=1e-5, dtype=case.dtype), reference, case, terms=1000.0)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moving_statistics_after_several_steps(offset, run_layer):
    centering = BatchCentering(momentum=0.8)
    scaling = BatchScaling(momentum=0.8, unbiased=True)
    random = np.random.default_rng(0)
    mean, variance = np.zeros(6), np.ones(6)
    for _ in range(3):
        x = (offset + random.standard_normal((3, 5, 7, 6)) * np.arange(1, 7)).astype(np.float32)
        states = (
            run_layer(centering, x, training=True).state,
            run_layer(scaling, x, training=True).state,
        )
        mean = 0.8 * mean + 0.2 * x.mean((0, 1, 2), dtype="f8")
        variance = 0.8 * variance + 0.2 * x.var((0, 1, 2), dtype="f8", ddof=1)
    np.testing.assert_allclose(states[0]["moving_mean"], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(states[1]["moving_variance"], variance, rtol=2e-6)
    assert [set(state) for state in states] == [{"moving_mean"}, {"moving_variance"}]

    np.testing.assert_allclose(
        run_layer(centering, x).outputs, x - mean, atol=2e-3 if offset else 1e-5
    )
    expected = x / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(run_layer(scaling, x).outputs, expected, rtol=1e-5)


def test_centering_averages_over_batch_and_space(run_layer):
    """Not over the batch axis alone, as in a version in circulation."""
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    outputs = run_layer(BatchCentering(), x, training=True).outputs
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0, atol=1e-6)
    assert np.abs(outputs.mean(0)).max() > 0.1
    assert BatchCentering().momentum == 0.99


def test_one_value_per_channel(run_layer):
    x = np.full((1, 1, 1, 2), 7, np.float32)
    got = run_layer(BatchCentering(), x, training=True)
    np.testing.assert_allclose(got.outputs, 0, atol=1e-6)
    np.testing.assert_array_equal(got.d_inputs, 0)
    with pytest.raises(ValueError, match="one value per channel"):
        run_layer(BatchScaling(unbiased=True), x, training=True)
