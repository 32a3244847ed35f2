"""The layers of tensorflow-addons."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest

from normbench.errors import NormbenchError
from normbench.norms import (
    MissingAddons,
    TfaFilterResponseNormalization,
    TfaGroupNormalization,
    TfaInstanceNormalization,
)

SHAPE = (3, 4, 5, 8)
LAYERS = [TfaGroupNormalization, TfaInstanceNormalization, TfaFilterResponseNormalization]


@pytest.fixture
def addons() -> None:
    """Skip where tensorflow-addons cannot be used."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tensorflow-addons needs the TensorFlow backend")
    if find_spec("tensorflow_addons") is None:
        pytest.skip("needs the extra tfa")


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def small(layer) -> keras.layers.Layer:
    return layer(groups=4) if layer is TfaGroupNormalization else layer()


# --- what they compute ------------------------------------------------------------------------


@pytest.mark.usefixtures("addons")
@pytest.mark.parametrize(("groups", "epsilon"), [(4, 1e-3), (4, 1e-5), (1, 1e-3), (8, 1e-3)])
def test_group_matches_keras_to_the_last_bit(groups, epsilon, run_layer, randomize):
    x, upstream = 3 * images() + 1, images(1)
    runs = []
    for make in (TfaGroupNormalization, keras.layers.GroupNormalization):
        layer = make(groups=groups, epsilon=epsilon)
        layer.build(SHAPE)
        randomize(layer)
        runs.append(run_layer(layer, x, upstream))
    np.testing.assert_array_equal(runs[0].outputs, runs[1].outputs)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=2e-6)
    assert set(runs[0].d_weights) == {"gamma", "beta"}
    for name, gradient in runs[0].d_weights.items():
        np.testing.assert_allclose(gradient, runs[1].d_weights[name], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("addons")
def test_instance_matches_keras_to_the_last_bit(run_layer, randomize):
    runs = []
    for layer in (TfaInstanceNormalization(), keras.layers.GroupNormalization(groups=-1)):
        layer.build(SHAPE)
        randomize(layer)
        runs.append(run_layer(layer, images(), images(1)))
    np.testing.assert_array_equal(runs[0].outputs, runs[1].outputs)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=2e-6)


def frn(x, gamma, beta, learned_epsilon=0.0):
    square = (x**2).mean(axis=(1, 2), keepdims=True)
    return gamma * x / np.sqrt(square + 1e-6 + learned_epsilon) + beta


@pytest.mark.usefixtures("addons")
@pytest.mark.parametrize("learned", [True, False])
def test_filter_response(learned, case, check):
    if len(case.shape) != 4:
        pytest.skip("takes images only")
    layer = TfaFilterResponseNormalization(learned_epsilon=learned, dtype=case.dtype)
    layer.build(case.shape)
    weights = {"gamma", "beta"} | ({"learned_epsilon"} if learned else set())
    assert {v.name for v in layer.trainable_variables} == weights

    def reference(x, gamma, beta, learned_epsilon=0.0):
        magnitude = learned_epsilon * np.sign(np.real(learned_epsilon))
        return frn(x, gamma, beta, magnitude)

    check(layer, reference, case)


@pytest.mark.usefixtures("addons")
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_half_precision_is_computed_in_float32(layer, dtype, run_layer):
    options = {"groups": 4} if layer is TfaGroupNormalization else {}
    half = layer(dtype=dtype, **options)
    x = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(images() + 100, half.compute_dtype)))
    got = run_layer(half, x)
    assert got.dtype == half.compute_dtype
    assert {v.dtype for v in half.trainable_variables} == {"float32"}
    expected = run_layer(layer(**options), x.astype("f4")).outputs
    np.testing.assert_allclose(got.outputs, expected, rtol=1e-2, atol=1e-2)


# --- as layers of Keras 3 ---------------------------------------------------------------------


@pytest.mark.usefixtures("addons")
@pytest.mark.parametrize("layer", LAYERS)
def test_trains_saves_and_loads_in_a_keras_3_model(layer, tmp_path):
    inputs = keras.Input(SHAPE[1:])
    x = small(layer)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalMaxPooling2D()(x)))
    names = [v.name for v in model.trainable_variables]
    assert names == ["gamma", "beta", "kernel", "bias"]
    before = [keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables]
    model.compile("sgd", "mse")
    model.fit(images(), np.arange(3.0), batch_size=2, epochs=2, shuffle=False, verbose=0)
    for name, old, new in zip(names, before, model.trainable_variables, strict=True):
        assert (keras.ops.convert_to_numpy(new.value) != old).any(), name

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    outputs = [keras.ops.convert_to_numpy(m(images())) for m in (loaded, model)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.usefixtures("addons")
def test_keras_3_is_left_intact():
    import tensorflow as tf

    small(TfaGroupNormalization).build(SHAPE)
    assert "tensorflow_addons" not in sys.modules
    assert "keras.src.engine" not in sys.modules
    assert tf.keras.__version__ == keras.__version__
    assert issubclass(tf.keras.layers.Dense, keras.layers.Layer)


# --- where they cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_missing_addons_are_reported_in_one_line(layer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    unbuilt = small(layer)  # needs no addons until it is built
    with pytest.raises(MissingAddons, match=r"tensorflow-addons, which is not installed") as error:
        unbuilt.build(SHAPE)
    assert "pip install 'normbench[tfa]'" in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, NormbenchError)
    assert isinstance(error.value, ImportError)


def test_unsupported_python_version_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    with pytest.raises(MissingAddons, match=r"no release for Python 3\.13; use Python 3\.11"):
        small(TfaGroupNormalization).build(SHAPE)


@pytest.mark.usefixtures("addons")
def test_missing_keras_2_is_named(monkeypatch):
    from normbench.norms.study import tfa

    tfa._executed.cache_clear()
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(MissingAddons, match="tf_keras"):
        small(TfaGroupNormalization).build(SHAPE)


@pytest.mark.parametrize("layer", LAYERS)
def test_other_backends_are_refused(layer, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(MissingAddons, match="needs the TensorFlow backend, not 'jax'"):
        small(layer).build(SHAPE)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (TfaGroupNormalization(3), SHAPE, r"groups=3 does not divide the 8 channels"),
        (TfaInstanceNormalization(), (None, 4, 4, None), "known channels"),
        (TfaFilterResponseNormalization(), (None, None, 4, 8), "known H, W and C"),
        (TfaFilterResponseNormalization(), (None, 8), "known H, W and C"),
    ],
)
def test_invalid_shapes_are_refused(layer, shape, message, request):
    if "groups" in message:
        request.getfixturevalue("addons")
    with pytest.raises(ValueError, match=message):
        layer.build(shape)


@pytest.mark.parametrize("groups", [0, -1, 2.0])
def test_invalid_groups_are_refused(groups):
    with pytest.raises(ValueError, match="groups must be a whole number of at least 1"):
        TfaGroupNormalization(groups)
