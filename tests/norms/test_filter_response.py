"""Filter Response Normalization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.norms import FilterResponseNormalization


def normalized(x, gamma, beta, epsilon):
    spatial = tuple(range(1, x.ndim - 1))
    square = (x**2).mean(axis=spatial, keepdims=True) if spatial else x**2
    return x / np.sqrt(square + epsilon) * gamma + beta


def maximum(y, tau):
    """The larger one by real part, for complex steps."""
    return np.where(np.real(y) > np.real(tau), y, tau)


def test_with_its_threshold(case, check):
    def reference(x, gamma, beta, tau):
        return maximum(normalized(x, gamma, beta, 1e-5), tau)

    check(FilterResponseNormalization(epsilon=1e-5, dtype=case.dtype), reference, case)


def test_with_a_learned_epsilon(case, check):
    def reference(x, gamma, beta, extra_epsilon):
        sign = np.sign(np.real(extra_epsilon))
        return normalized(x, gamma, beta, 1e-5 + sign * extra_epsilon)

    layer = FilterResponseNormalization(
        epsilon=1e-5, tlu=False, learned_epsilon=True, dtype=case.dtype
    )
    check(layer, reference, case)


def test_initial_weights(run_layer):
    layer = FilterResponseNormalization(learned_epsilon=True)
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4)).astype(np.float32)
    outputs = run_layer(layer, x).outputs
    np.testing.assert_array_equal(layer.tau, np.zeros(4))
    np.testing.assert_allclose(layer.extra_epsilon, np.full(4, 1e-4))
    expected = np.maximum(normalized(x.astype("f8"), 1.0, 0.0, 1e-6 + 1e-4), 0)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_threshold_below_zero_lets_negative_values_through(run_layer):
    layer = FilterResponseNormalization()
    layer.build((None, None, None, 4))
    layer.tau.assign([-0.5, 0.0, 0.5, -9.0])
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 4)).astype(np.float32)
    least = run_layer(layer, x).outputs.min((0, 1, 2))
    np.testing.assert_allclose(least[:3], [-0.5, 0.0, 0.5])
    assert least[3] < -1


SHARED = FilterResponseNormalization(epsilon=0.0, tlu=False)
"""One layer for all Hypothesis examples, so that JAX compiles it once."""


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), powers=st.lists(st.integers(-20, 20), min_size=4, max_size=4))
def test_scale_of_each_channel_is_canceled(seed, powers, run_layer):
    x = np.random.default_rng(seed).standard_normal((2, 5, 3, 4)).astype(np.float32)
    scale = np.float32(2.0) ** np.array(powers, np.float32)
    np.testing.assert_allclose(
        run_layer(SHARED, x * scale).outputs, run_layer(SHARED, x).outputs, atol=1e-6
    )


@pytest.mark.parametrize("tlu", [True, False])
def test_weights_depend_on_the_options(tlu):
    layer = FilterResponseNormalization(tlu=tlu, center=False)
    layer.build((None, 4, 4, 2))
    names = {v.name for v in layer.weights}
    assert names == ({"gamma", "tau"} if tlu else {"gamma"})
