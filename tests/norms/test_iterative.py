"""Iterative Normalization."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.norms import BatchNormalization, IterativeNormalization
from tests.marks import slow_except_on_jax


def groups_for(channels: int) -> int:
    return max(1, channels // 8)


def inverse_root(vectors, iterations, epsilon):
    """The covariance's inverse root for centered vectors (M, D), by algorithm 1 as printed."""
    size = vectors.shape[1]
    covariance = vectors.T @ vectors / len(vectors) + epsilon * np.eye(size)
    scaled = covariance / np.trace(covariance)
    power = np.eye(size)
    for _ in range(iterations):
        power = (3 * power - np.linalg.matrix_power(power, 3) @ scaled) / 2
    return power / np.sqrt(np.trace(covariance))


def reference(x, gamma, beta, groups, iterations=5, epsilon=1e-5):
    vectors = x.reshape(-1, x.shape[-1])
    centered = vectors - vectors.mean(0)
    whitened = [
        part @ inverse_root(part, iterations, epsilon)
        for part in np.split(centered, groups, axis=1)
    ]
    return np.concatenate(whitened, axis=1).reshape(x.shape) * gamma + beta


@pytest.mark.parametrize("iterations", slow_except_on_jax([5], [1, 5]))
def test_training(iterations, case, check):
    groups = groups_for(case.channels)
    layer = IterativeNormalization(groups, iterations=iterations, dtype=case.dtype)

    def formula(x, gamma, beta):
        return reference(x, gamma, beta, groups, iterations)

    check(layer, formula, case)


def test_inference(case, check):
    groups = groups_for(case.channels)
    layer = IterativeNormalization(groups, dtype=case.dtype)
    layer.build(case.shape)
    random = np.random.default_rng(3)
    mean = random.standard_normal(case.channels).astype(np.float32)
    whitening = random.standard_normal(layer.moving_whitening.shape).astype(np.float32)
    layer.moving_mean.assign(mean)
    layer.moving_whitening.assign(whitening)

    def formula(x, gamma, beta):
        vectors = (x - mean.astype("f8")).reshape(-1, groups, case.channels // groups)
        rotated = np.einsum("mgi,gij->mgj", vectors, whitening.astype("f8"))
        return rotated.reshape(x.shape) * gamma + beta

    # Each output is a sum of C/G terms, each as large as x.
    check(layer, formula, case, training=False, terms=8)


def test_many_iterations_whiten(run_layer):
    random = np.random.default_rng(0)
    mixing = random.standard_normal((6, 6)) / 4 + np.eye(6)
    x = (random.standard_normal((8, 5, 4, 6)) @ mixing + 3).astype(np.float32)
    outputs = run_layer(
        IterativeNormalization(1, epsilon=0.0, iterations=9), x, training=True
    ).outputs
    vectors = outputs.reshape(-1, 6)
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(vectors.T @ vectors / len(vectors), np.eye(6), atol=1e-3)


def test_groups_of_one_channel_equal_batch_normalization(run_layer):
    x = np.random.default_rng(0).standard_normal((4, 5, 3, 6)).astype(np.float32)
    runs = [
        run_layer(layer, x, x[::-1], training=True)
        for layer in (IterativeNormalization(6), BatchNormalization(epsilon=1e-5))
    ]
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=1e-5)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=1e-5)


def test_moving_statistics_after_several_steps(run_layer):
    layer = IterativeNormalization(2, momentum=0.8)
    random = np.random.default_rng(0)
    mean, whitening = np.zeros(6), np.stack([np.eye(3)] * 2)
    for _ in range(3):
        x = (2 + random.standard_normal((3, 5, 7, 6)) * np.arange(1, 7)).astype(np.float32)
        got = run_layer(layer, x, training=True)
        vectors = x.reshape(-1, 6).astype("f8")
        mean = 0.8 * mean + 0.2 * vectors.mean(0)
        parts = np.split(vectors - vectors.mean(0), 2, axis=1)
        whitening = 0.8 * whitening + 0.2 * np.stack([inverse_root(p, 5, 1e-5) for p in parts])
    np.testing.assert_allclose(got.state["moving_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(got.state["moving_whitening"], whitening, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 4}, "groups=4 does not divide the 6 channels"),
        ({}, "channels_per_group=64 does not divide the 6 channels"),
        ({"groups": 2, "channels_per_group": 3}, "exactly one of"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IterativeNormalization(**options).build((None, 4, 4, 6))
