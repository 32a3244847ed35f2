"""Batch Renormalization."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.norms import BatchNormalization, BatchRenormalization
from tests.marks import slow_except_on_jax

OPEN = {"r_steps": (0, 0), "d_steps": (0, 0)}
"""Bounds that are relaxed from the start."""


def start(layer, shape, mean, deviation, steps):
    layer.build(shape)
    layer.moving_mean.assign(np.full(shape[-1], mean, np.float32))
    layer.moving_deviation.assign(np.full(shape[-1], deviation, np.float32))
    layer.steps.assign(float(steps))
    return layer


def reference(x, gamma, beta, mean, deviation, r_max, d_max, epsilon=1e-5):
    axes = tuple(range(x.ndim - 1))
    batch_mean = x.mean(axes)
    batch_deviation = np.sqrt(((x - batch_mean) ** 2).mean(axes) + epsilon)
    # No gradient flows through r and d: they are computed from the real part alone.
    r = np.clip(batch_deviation.real / deviation, 1 / r_max, r_max)
    d = np.clip((batch_mean.real - mean) / deviation, -d_max, d_max)
    return ((x - batch_mean) / batch_deviation * r + d) * gamma + beta


@pytest.mark.parametrize(
    ("r_max", "d_max", "mean", "deviation"),
    slow_except_on_jax(
        [(1.5, 0.2, 0.3, 0.4)],
        [(1.5, 0.2, 0.3, 0.4), (100.0, 100.0, 0.1, 0.9), (1.0, 0.0, 5.0, 3.0)],
    ),
    ids=["clipped", "free", "closed"],
)
def test_training(r_max, d_max, mean, deviation, case, check):
    layer = BatchRenormalization(epsilon=1e-5, r_max=r_max, d_max=d_max, dtype=case.dtype, **OPEN)
    start(layer, case.shape, mean, deviation, 10)

    def formula(x, gamma, beta):
        return reference(x, gamma, beta, mean, deviation, r_max, d_max)

    check(layer, formula, case)


def test_unclipped_training_equals_inference(run_layer):
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    layer = start(BatchRenormalization(r_max=1e6, d_max=1e6, **OPEN), x.shape, 0.2, 1.3, 10)
    expected = (x - 0.2) / 1.3
    np.testing.assert_allclose(run_layer(layer, x).outputs, expected, atol=1e-6)
    np.testing.assert_allclose(run_layer(layer, x, training=True).outputs, expected, atol=1e-5)


def test_equals_batch_normalization_until_bounds_are_relaxed(run_layer, randomize):
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    runs = []
    for layer in (BatchRenormalization(), BatchNormalization()):
        layer.build(x.shape)
        runs.append(run_layer(randomize(layer), x, x, training=True))
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=1e-6)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "r_max", "d_max"),
    slow_except_on_jax(
        [(10, 1, 0), (15, 2, 2.5)], [(5, 1, 0), (10, 1, 0), (15, 2, 2.5), (20, 3, 5), (99, 3, 5)]
    ),
)
def test_bounds_are_relaxed_linearly(steps, r_max, d_max, run_layer):
    x = 1e4 * np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32) + 1e6
    layer = BatchRenormalization(epsilon=0, r_steps=(10, 20), d_steps=(10, 20))
    start(layer, x.shape, 0, 1, steps)
    outputs = run_layer(layer, x, training=True).outputs
    np.testing.assert_allclose(outputs.std((0, 1, 2)), r_max, rtol=1e-4)
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), d_max, atol=1e-3)


def test_moving_statistics_start_as_plain_averages(run_layer):
    layer = BatchRenormalization(momentum=0.75, epsilon=1e-3)
    random = np.random.default_rng(0)
    means, deviations = [], []
    for _ in range(6):
        x = random.standard_normal((4, 5, 6, 2)).astype(np.float32) * [1, 3] + [0, 5]
        got = run_layer(layer, x.astype(np.float32), training=True)
        means.append(x.mean((0, 1, 2)))
        deviations.append(np.sqrt(x.var((0, 1, 2)) + 1e-3))
    for name, seen in (("moving_mean", means), ("moving_deviation", deviations)):
        expected = np.mean(seen[:4], axis=0)  # weights 1, 1/2, 1/3, 1/4, then 1/4 always
        for value in seen[4:]:
            expected = 0.75 * expected + 0.25 * value
        np.testing.assert_allclose(got.state[name], expected, rtol=1e-5)
    assert got.state["steps"] == 6


def test_matches_keras_renorm(run_layer):
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    theirs = keras.layers.BatchNormalization(
        renorm=True, renorm_clipping={"rmax": 1.5, "rmin": 1 / 1.5, "dmax": 0.1}
    )
    theirs.build(x.shape)
    theirs.renorm_mean.assign([0.2] * 3)
    theirs.renorm_stddev.assign([0.5] * 3)
    ours = start(BatchRenormalization(r_max=1.5, d_max=0.1, **OPEN), x.shape, 0.2, 0.5, 10)
    runs = [run_layer(layer, x, x, training=True) for layer in (ours, theirs)]
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=1e-5)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max must be at least 1, got 0.5"),
        ({"d_max": -1}, "d_max must be at least 0"),
        ({"r_steps": (5, 3)}, r"r_steps must be two ascending numbers of steps, got \[5, 3\]"),
        ({"d_steps": (5,)}, "d_steps must be two ascending"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchRenormalization(**options)
