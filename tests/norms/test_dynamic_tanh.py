"""Dynamic Tanh."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.norms import DynamicTanh


def test_against_the_formula(case, check):
    def reference(x, alpha, gamma, beta):
        return gamma * np.tanh(alpha * x) + beta

    check(DynamicTanh(dtype=case.dtype), reference, case)


@pytest.mark.parametrize(("center", "scale"), [(False, True), (True, False), (False, False)])
def test_without_scale_or_shift(center, scale, run_layer):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    layer = DynamicTanh(alpha=2.0, center=center, scale=scale)
    got = run_layer(layer, x)
    np.testing.assert_allclose(got.outputs, np.tanh(2.0 * x.astype("f8")), atol=1e-6)
    assert set(got.d_weights) == {"alpha"} | ({"gamma"} if scale else set()) | (
        {"beta"} if center else set()
    )


def test_matches_pytorch(run_layer, randomize):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x, upstream = (random.standard_normal((3, 4, 5, 6)).astype(np.float32) for _ in range(2))
    layer = DynamicTanh()
    layer.build(x.shape)
    randomize(layer)
    theirs = {
        v.name: torch.tensor(keras.ops.convert_to_numpy(v.value), requires_grad=True)
        for v in layer.trainable_variables
    }
    inputs = torch.tensor(x, requires_grad=True)
    outputs = theirs["gamma"] * torch.tanh(theirs["alpha"] * inputs) + theirs["beta"]
    outputs.backward(torch.tensor(upstream))
    got = run_layer(layer, x, upstream)
    np.testing.assert_allclose(got.outputs, outputs.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(got.d_inputs, inputs.grad.numpy(), atol=1e-6)
    for name, gradient in got.d_weights.items():
        np.testing.assert_allclose(gradient, theirs[name].grad.numpy(), rtol=1e-5, atol=1e-5)


def test_alpha_is_a_scalar_that_starts_at_one_half(run_layer):
    layer = DynamicTanh()
    layer.build((None, 4, 4, 8))
    assert layer.alpha.shape == ()
    assert float(layer.alpha.value) == 0.5
    assert layer.count_params() == 1 + 8 + 8


def test_images_are_independent(run_layer):
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32)
    layer = DynamicTanh()
    np.testing.assert_array_equal(run_layer(layer, x).outputs[:2], run_layer(layer, x[:2]).outputs)
    np.testing.assert_array_equal(
        run_layer(layer, x, training=True).outputs, run_layer(layer, x).outputs
    )


def test_saves_and_loads(tmp_path, randomize):
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, DynamicTanh(alpha=0.8, name="dyt")(inputs))
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("dyt").get_config() == model.get_layer("dyt").get_config()
    assert "epsilon" not in loaded.get_layer("dyt").get_config()
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_nonfinite_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        DynamicTanh(alpha=alpha)
