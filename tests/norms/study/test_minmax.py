"""Min-max normalization, right and wrong."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.norms import (
    ChannelMinMaxNormalization,
    FlatteningMinMaxNormalization,
    ImageMinMaxNormalization,
    MaxFirstMinMaxNormalization,
    MinMaxNormalization,
)
from tests.marks import slow_except_on_jax

EPSILON = 1e-3


def images(seed: int = 0, shape: tuple[int, ...] = (3, 4, 5, 4)) -> np.ndarray:
    """Random images without repeated values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def extreme(x, axes, largest):
    """The minimum or maximum of a real or complex array, as the mean of all tied values."""
    pick = np.max if largest else np.min
    is_it = x.real == pick(x.real, axis=axes, keepdims=True)
    return (x * is_it).sum(axis=axes, keepdims=True) / is_it.sum(axis=axes, keepdims=True)


def at_least(divisor, epsilon=EPSILON):
    floor = np.where(divisor.real < 0, -epsilon, epsilon)
    return np.where(np.abs(divisor.real) > epsilon, divisor, floor)


def reference(x, axes, gamma=1.0, beta=0.0):
    least = extreme(x, axes, False)
    return (x - least) / at_least(extreme(x, axes, True) - least) * gamma + beta


def axes_of(over, rank):
    axes = {"batch": (0,), "space": tuple(range(1, rank - 1)), "channels": (rank - 1,)}
    return sum((axes[name] for name in over), ())


# --- against the formula ----------------------------------------------------------------------


def test_whole_tensor(case, check):
    layer = MinMaxNormalization(center=True, scale=True, dtype=case.dtype)
    check(layer, lambda x, gamma, beta: reference(x, None, gamma, beta), case)


def test_channel(case, check):
    axes = axes_of(["batch", "space"], len(case.shape))
    check(ChannelMinMaxNormalization(dtype=case.dtype), lambda x: reference(x, axes), case)


def test_image(case, check):
    axes = axes_of(["space", "channels"], len(case.shape))
    check(ImageMinMaxNormalization(dtype=case.dtype), lambda x: reference(x, axes), case)


def test_max_first(case, check):
    axes = axes_of(["batch", "space"], len(case.shape))

    def wrong(x):
        return (x - extreme(x, axes, False)) / at_least(extreme(x, axes, True))

    # ∂y/∂M is y/M: where M is near 0, far larger than dy over the deviation.
    check(MaxFirstMinMaxNormalization(dtype=case.dtype), wrong, case)


@pytest.mark.parametrize("over", [["space"], ["channels"], ["batch"], ["channels", "batch"]])
def test_any_axes(over, run_layer):
    x, upstream = images(), images(1)
    got = run_layer(MinMaxNormalization(over=over), x, upstream)
    np.testing.assert_allclose(got.outputs, reference(x.astype("f8"), axes_of(over, 4)), atol=1e-6)
    assert MinMaxNormalization(over=over).over == tuple(
        name for name in ("batch", "space", "channels") if name in over
    )


LAYERS = {
    "whole": (MinMaxNormalization(), (0, 1, 2, 3)),
    "channel": (ChannelMinMaxNormalization(), (0, 1, 2)),
    "image": (ImageMinMaxNormalization(), (1, 2, 3)),
}
"""Layers with their axes, shared by several tests so that JAX compiles each once."""

WRONG = MaxFirstMinMaxNormalization()


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_match_finite_differences(name, run_layer):
    """Without ties min and max are differentiable, and no convention is needed."""
    layer, axes = LAYERS[name]
    x, upstream = images(), images(1)

    def value(x):
        shifted = x - x.min(axis=axes, keepdims=True)
        return np.sum(shifted / shifted.max(axis=axes, keepdims=True) * upstream)

    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-6
        gradient[index] = (value(x + step) - value(x - step)) / 2e-6
    np.testing.assert_allclose(run_layer(layer, x, upstream).d_inputs, gradient, atol=1e-5)


def test_ties_share_the_gradient_like_reduce_min_and_reduce_max(run_layer):
    x = np.array([0, 0, 1, 2, 4, 4, 4, 3], np.float32).reshape(1, 2, 2, 2)
    upstream = images(0, x.shape)

    class Plain(keras.layers.Layer):
        def call(self, inputs):
            shifted = inputs - keras.ops.min(inputs)
            return shifted / keras.ops.max(shifted)

    plain = run_layer(Plain(), x, upstream)
    got = run_layer(MinMaxNormalization(), x, upstream)
    np.testing.assert_allclose(got.outputs, plain.outputs, atol=1e-7)
    np.testing.assert_allclose(got.d_inputs, plain.d_inputs, atol=1e-6)


# --- defining properties ----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_reaches_exactly_0_and_1(name, offset, run_layer):
    layer, axes = LAYERS[name]
    outputs = run_layer(layer, images() + np.float32(offset)).outputs
    np.testing.assert_array_equal(outputs.min(axis=axes), 0)
    np.testing.assert_allclose(outputs.max(axis=axes), 1, rtol=2e-7)
    again = run_layer(layer, 0.5 * images() + np.float32(offset)).outputs
    np.testing.assert_allclose(again, outputs, atol=5e-4 if offset else 1e-6)


def test_taking_the_maximum_first_does_not_reach_1(run_layer):
    x = images() + 1000
    low, high = x.min(axis=(0, 1, 2)), x.max(axis=(0, 1, 2))
    got = run_layer(WRONG, x).outputs.max(axis=(0, 1, 2))
    np.testing.assert_allclose(got, 1 - low / high, rtol=1e-5)
    assert got.max() < 0.01
    x[0, 0, 0] = -2
    x[0, 0, 1] = 1
    x[0, 1:], x[0, 0, 2:], x[1:] = 0, 0, 0
    np.testing.assert_allclose(run_layer(WRONG, x).outputs.max(), 3)
    np.testing.assert_allclose(run_layer(WRONG, x - 3).outputs.min(), -1.5)


@pytest.mark.parametrize("layer", [*(layer for layer, _ in LAYERS.values()), WRONG])
@pytest.mark.parametrize("value", [0.0, 7.0, -1e30])
def test_constant_input_gives_0_and_finite_gradients(layer, value, run_layer):
    got = run_layer(layer, np.full_like(images(), value), images(1))
    np.testing.assert_array_equal(got.outputs, 0)
    assert np.isfinite(got.d_inputs).all()


@pytest.mark.parametrize("training", [True, False])
def test_images_affect_each_other_in_inference_if_over_the_batch(training, run_layer):
    x = images()
    changed = x.copy()
    changed[1:] *= 3

    def change(layer):
        outputs = [run_layer(layer, batch, training=training).outputs[0] for batch in (x, changed)]
        return np.abs(outputs[0] - outputs[1]).max()

    assert change(LAYERS["whole"][0]) > 0.05
    assert change(LAYERS["channel"][0]) > 0.05
    assert change(WRONG) > 0.05
    assert change(LAYERS["image"][0]) == 0


# --- the reshape that loses the batch axis ----------------------------------------------------


@pytest.mark.parametrize("shape", [(None, 4, 5, 8), (None, None, None, 8), (None, 1, 2, 8)])
def test_reshape_that_loses_the_batch_axis_is_refused(shape):
    with pytest.raises(
        ValueError, match="folds the positions of an image into the batch axis"
    ) as e:
        FlatteningMinMaxNormalization()(keras.Input(shape[1:]))
    assert "use norm=minmax" in str(e.value)
    assert "\n" not in str(e.value)


def test_reshape_is_harmless_for_images_of_one_position():
    x = images(shape=(5, 1, 1, 4))
    inputs = keras.Input((1, 1, 4))
    model = keras.Model(inputs, FlatteningMinMaxNormalization()(inputs))
    assert model.output_shape == (None, 4)
    outputs = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(outputs, reference(x.astype("f8"), None)[:, 0, 0], atol=1e-6)


# --- options, files ---------------------------------------------------------------------------


SAVED = [
    MinMaxNormalization(over=["space"], scale=True),
    ChannelMinMaxNormalization(epsilon=1e-2),
    ImageMinMaxNormalization(center=True, scale=True),
    MaxFirstMinMaxNormalization(over=["batch"]),
]


@pytest.mark.parametrize(
    "layer",
    slow_except_on_jax([SAVED[0]], SAVED),
    ids=lambda layer: type(layer).__name__,
)
def test_saves_and_loads(layer, tmp_path, randomize):
    inputs = keras.Input((None, 5, 4))
    model = randomize(keras.Model(inputs, layer(inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].get_config() == layer.get_config()
    outputs = [keras.ops.convert_to_numpy(m(images())) for m in (loaded, model)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": ["chanels"]}, "unknown axis 'chanels' in over: did you mean 'channels'"),
        ({"over": []}, "over must hold some of batch, space, channels, each once"),
        ({"over": ["batch", "batch"]}, "each once"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": -1.0}, "epsilon must be 0 or more"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MinMaxNormalization(**options)
