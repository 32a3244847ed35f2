"""The probe of smoothness, against softmax regression in NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.errors import UserError
from normbench.probes.smoothness import Smoothness

STEPS = (0.1, 0.4, 3.0)


def regression(x, labels, weights):
    """Loss and gradient of softmax regression; float64."""
    kernel = weights[: 18 * 4].reshape(18, 4)
    scores = x @ kernel + weights[18 * 4 :]
    scores = scores - scores.max(1, keepdims=True)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    loss = -np.mean(np.log(p[np.arange(len(labels)), labels]))
    p[np.arange(len(labels)), labels] -= 1
    return loss, np.concatenate([(x.T @ p).ravel(), p.sum(0)]) / len(labels)


@pytest.fixture
def regression_loop(loop_on):
    inputs = keras.Input((3, 3, 2))
    logits = keras.layers.Dense(4, name="logits")(keras.layers.Flatten()(inputs))
    return loop_on(keras.Model(inputs, logits, name="regression"))


def test_values_match_the_formulas(regression_loop):
    loop, dataset = regression_loop
    state = loop.state()
    values = Smoothness(steps=STEPS, batches=2, every=1).measure(loop, dataset)
    weights = loop.weights().astype("f8")
    expected = []
    for rows in (slice(0, 16), slice(16, 32)):
        x = ((dataset.train.images[rows] / 255 - 0.5) / 0.25).reshape(16, -1)
        labels = dataset.train.labels[rows]
        loss, g = regression(x, labels, weights)
        reached = [regression(x, labels, weights - step * g) for step in STEPS]
        changes = [np.linalg.norm(g - other[1]) for other in reached]
        size = np.linalg.norm(g)
        expected.append(
            {
                "loss": loss,
                "gradient_norm": size,
                "loss_low": min(other[0] for other in reached),
                "loss_high": max(other[0] for other in reached),
                "change_low": min(changes),
                "change_high": max(changes),
                "beta": max(c / (s * size) for c, s in zip(changes, STEPS, strict=True)),
            }
        )
    assert set(values) == set(expected[0])
    for key, value in values.items():
        assert value == pytest.approx(np.mean([batch[key] for batch in expected]), rel=2e-4), key
    assert values["loss_low"] < values["loss"]
    for name, value in loop.state().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_step_beyond_float32_gives_infinity(regression_loop):
    loop, dataset = regression_loop
    values = Smoothness(steps=[0.1, 3e38], batches=1, every=1).measure(loop, dataset)
    assert np.isfinite(values["loss_low"])
    assert values["loss_high"] == values["change_high"] == values["beta"] == np.inf


def test_options_out_of_range_are_refused():
    for steps in ([], [0.0], [0.1, -1.0]):
        with pytest.raises(UserError, match="steps must be above 0"):
            Smoothness(steps=steps, batches=1, every=1)
    with pytest.raises(UserError, match="batches must be at least 1"):
        Smoothness(steps=[1.0], batches=0, every=1)
