"""Switchable Normalization."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.norms import (
    BatchNormalization,
    InstanceNormalization,
    LayerNormalization,
    SwitchableNormalization,
)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def moments(x, axes):
    mean = x.mean(axes, keepdims=True)
    return mean, ((x - mean) ** 2).mean(axes, keepdims=True)


def reference(x, gamma, beta, mean_logits, variance_logits, moving=None, epsilon=1e-5):
    spatial = tuple(range(1, x.ndim - 1))
    instance = moments(x, spatial) if spatial else (x, 0 * x)
    layer = moments(x, (*spatial, x.ndim - 1))
    batch = moving or moments(x, (0, *spatial))
    w, v = softmax(mean_logits), softmax(variance_logits)
    mean = w[0] * instance[0] + w[1] * layer[0] + w[2] * batch[0]
    variance = v[0] * instance[1] + v[1] * layer[1] + v[2] * batch[1]
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def test_training(case, check):
    # The mixed mean of images at 1000 is rounded to 6e-5.
    check(SwitchableNormalization(dtype=case.dtype), reference, case, terms=8)


def test_inference(case, check):
    layer = SwitchableNormalization(dtype=case.dtype)
    layer.build(case.shape)
    random = np.random.default_rng(3)
    mean = random.standard_normal(case.channels).astype(np.float32)
    variance = random.uniform(0.5, 2, case.channels).astype(np.float32)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    moving = mean.astype("f8"), variance.astype("f8")

    def formula(x, gamma, beta, mean_logits, variance_logits):
        return reference(x, gamma, beta, mean_logits, variance_logits, moving)

    check(layer, formula, case, training=False, terms=8)


def test_moving_statistics_after_several_steps(run_layer):
    layer = SwitchableNormalization(momentum=0.8)
    random = np.random.default_rng(0)
    mean, variance = np.zeros(4), np.ones(4)
    for _ in range(3):
        x = (5 + random.standard_normal((3, 5, 7, 4)) * np.arange(1, 5)).astype(np.float32)
        got = run_layer(layer, x, training=True)
        mean = 0.8 * mean + 0.2 * x.mean((0, 1, 2), dtype="f8")
        variance = 0.8 * variance + 0.2 * x.var((0, 1, 2), dtype="f8")
    np.testing.assert_allclose(got.state["moving_mean"], mean, rtol=2e-6)
    np.testing.assert_allclose(got.state["moving_variance"], variance, rtol=2e-6)


@pytest.mark.parametrize(
    ("place", "kind"),
    [(0, InstanceNormalization), (1, LayerNormalization), (2, BatchNormalization)],
)
def test_all_weight_on_one_normalization_equals_it(place, kind, run_layer):
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 4)).astype(np.float32)
    layer = SwitchableNormalization()
    layer.build(x.shape)
    logits = np.where(np.arange(3) == place, 100, 0)
    layer.mean_logits.assign(logits)
    layer.variance_logits.assign(logits)
    expected = run_layer(kind(epsilon=1e-5), x, x[::-1], training=True)
    got = run_layer(layer, x, x[::-1], training=True)
    np.testing.assert_allclose(got.outputs, expected.outputs, atol=1e-5)
    np.testing.assert_allclose(got.d_inputs, expected.d_inputs, atol=1e-5)
