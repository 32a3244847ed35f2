"""Local Response Normalization."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from normbench.norms import LocalResponseNormalization


def reference(x, k=2.0, alpha=1e-4, beta=0.75, n=5):
    channels = x.shape[-1]
    y = np.empty_like(x)
    for i in range(channels):
        near = x[..., max(0, i - n // 2) : min(channels - 1, i + n // 2) + 1]
        y[..., i] = x[..., i] / (k + alpha * (near**2).sum(axis=-1)) ** beta
    return y


def images(seed: int = 0, shape: tuple[int, ...] = (2, 4, 3, 8)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


OPTIONS = {"k": 0.5, "alpha": 0.05, "beta": 1.3, "n": 3}
"""Not the defaults, with which the sum of squares is a small correction."""


def test_against_the_formula(case, check):
    if case.dtype == "float16":  # below 6e-5 its rounding is not relative
        case = replace(case, distributions=("ordinary", "far", "constant"))
    layer = LocalResponseNormalization(dtype=case.dtype, **OPTIONS)
    check(layer, lambda x: reference(x, **OPTIONS), case)


@pytest.mark.parametrize(
    "options", [{}, {"n": 1}, {"n": 7}, {"n": 99}, {"alpha": 0.0}, {"beta": 0.0}]
)
def test_options_against_the_formula(options, run_layer):
    x = 30 * images()
    expected = reference(x.astype("f8"), **options)
    np.testing.assert_allclose(
        run_layer(LocalResponseNormalization(**options), x).outputs, expected, rtol=3e-6
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow takes long to import"
)
def test_matches_tensorflow(run_layer):
    import tensorflow as tf

    x, upstream = images(), images(1)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        theirs = tf.nn.local_response_normalization(inputs, 1, 0.5, 0.05, 1.3)
    got = run_layer(LocalResponseNormalization(**OPTIONS), x, upstream)
    np.testing.assert_allclose(got.outputs, theirs.numpy(), atol=2e-6)
    gradient = tape.gradient(theirs, inputs, tf.constant(upstream))
    np.testing.assert_allclose(got.d_inputs, gradient.numpy(), atol=5e-6)


def test_matches_pytorch_with_n_times_alpha(run_layer):
    torch = pytest.importorskip("torch")
    x, upstream = images(), images(1)
    theirs = torch.nn.LocalResponseNorm(3, alpha=3 * 0.05, beta=1.3, k=0.5)
    inputs = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    outputs = theirs(inputs)
    outputs.backward(torch.tensor(upstream.transpose(0, 3, 1, 2).copy()))
    got = run_layer(LocalResponseNormalization(**OPTIONS), x, upstream)
    expected = outputs.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got.outputs, expected, atol=2e-6)
    np.testing.assert_allclose(got.d_inputs, inputs.grad.numpy().transpose(0, 2, 3, 1), atol=5e-6)


def test_channels_farther_than_half_the_window_have_no_effect(run_layer):
    layer = LocalResponseNormalization(n=3)
    x = images()
    changed = x.copy()
    changed[..., 3] += 10
    moved = (run_layer(layer, x).outputs != run_layer(layer, changed).outputs).any(axis=(0, 1, 2))
    np.testing.assert_array_equal(np.flatnonzero(moved), [2, 3, 4])


def test_images_are_independent(run_layer):
    x = images(shape=(4, 3, 3, 6))
    layer = LocalResponseNormalization(**OPTIONS)
    np.testing.assert_array_equal(run_layer(layer, x).outputs[:2], run_layer(layer, x[:2]).outputs)


def test_saves_and_loads(tmp_path):
    inputs = keras.Input((None, None, 8))
    model = keras.Model(inputs, LocalResponseNormalization(**OPTIONS)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(images())), np.asarray(model(images())))
    assert not model.weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4}, "n must be an odd whole number of at least 1, got 4"),
        ({"n": 0}, "n must be an odd whole number"),
        ({"n": 3.0}, "n must be an odd whole number"),
        ({"k": 0.0}, "k must be above 0, got 0.0"),
        ({"alpha": -1e-4}, "alpha must be 0 or more"),
        ({"beta": float("nan")}, "beta must be 0 or more"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalResponseNormalization(**options)
