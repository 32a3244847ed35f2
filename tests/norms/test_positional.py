"""Positional Normalization."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.norms import PositionalNormalization


def reference(x, gamma, beta, epsilon=1e-5):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def test_outputs_and_gradients(case, check):
    check(PositionalNormalization(epsilon=1e-5, dtype=case.dtype), reference, case)


def test_matches_keras_layer_normalization(run_layer, randomize):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    runs = []
    for layer in (PositionalNormalization(1e-3), keras.layers.LayerNormalization(epsilon=1e-3)):
        layer.build(x.shape)
        runs.append(run_layer(randomize(layer), x, x[::-1]))
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=2e-6)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=5e-6)
    np.testing.assert_allclose(runs[0].d_weights["gamma"], runs[1].d_weights["gamma"], atol=2e-5)


def test_matches_pytorch_layer_norm(run_layer):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    expected = torch.nn.LayerNorm(8)(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(
        run_layer(PositionalNormalization(1e-5), x).outputs, expected, atol=2e-6
    )


SHARED = PositionalNormalization(epsilon=0.0)
"""One layer for all Hypothesis examples, so that JAX compiles it once."""


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scale_and_shift_at_each_position_are_canceled(seed, run_layer):
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, 5, 3, 8)).astype(np.float32)
    scale = random.uniform(0.5, 2, (2, 5, 3, 1)).astype(np.float32)
    shift = random.standard_normal((2, 5, 3, 1)).astype(np.float32)
    moved = run_layer(SHARED, x * scale + shift).outputs
    np.testing.assert_allclose(moved, run_layer(SHARED, x).outputs, atol=2e-5)
