"""Root Mean Square Normalization."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.norms import RMSNormalization


def test_over_the_image(case, check):
    def reference(x, gamma, beta):
        square = (x**2).mean(axis=tuple(range(1, x.ndim)), keepdims=True)
        return x / np.sqrt(square + 1e-5) * gamma + beta

    check(RMSNormalization(epsilon=1e-5, dtype=case.dtype), reference, case)


def test_at_each_position(case, check):
    def reference(x, gamma):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * gamma

    layer = RMSNormalization(epsilon=1e-5, center=False, per_position=True, dtype=case.dtype)
    check(layer, reference, case)


def test_large_inputs_match_smaller_batches(run_layer, randomize):
    rng = np.random.default_rng(0)
    x, upstream = (rng.standard_normal((16, 32, 32, 16)).astype(np.float32) for _ in range(2))
    layer = RMSNormalization(epsilon=1e-5)
    layer.build(x.shape)
    whole = run_layer(randomize(layer), x, upstream)
    parts = [run_layer(layer, x[i : i + 4], upstream[i : i + 4]) for i in range(0, 16, 4)]
    for field in ("outputs", "d_inputs"):
        expected = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_allclose(getattr(whole, field), expected, rtol=0, atol=2e-5)
    for name, gradient in whole.d_weights.items():
        expected = sum(part.d_weights[name] for part in parts)
        np.testing.assert_allclose(gradient, expected, atol=2e-3)


def test_matches_keras_layer_at_each_position(run_layer, randomize):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    runs = []
    for layer in (
        RMSNormalization(epsilon=1e-6, center=False, per_position=True),
        keras.layers.RMSNormalization(epsilon=1e-6),
    ):
        layer.build(x.shape)
        runs.append(run_layer(randomize(layer), x, x[::-1]))
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=2e-6)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=5e-6)


SHARED = [RMSNormalization(epsilon=0.0), RMSNormalization(epsilon=0.0, per_position=True)]
"""One layer each for all Hypothesis examples, so that JAX compiles it once."""


@pytest.mark.parametrize("layer", SHARED, ids=["image", "position"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-30, 30), sign=st.sampled_from([1, -1]))
def test_scale_is_canceled_but_shift_is_not(layer, seed, power, sign, run_layer):
    x = np.random.default_rng(seed).standard_normal((2, 5, 3, 8)).astype(np.float32)
    plain = run_layer(layer, x).outputs
    scaled = run_layer(layer, x * np.float32(sign * 2.0**power)).outputs
    np.testing.assert_allclose(scaled, sign * plain, atol=1e-6)
    assert np.abs(run_layer(layer, x + np.float32(1)).outputs - plain).max() > 0.1
