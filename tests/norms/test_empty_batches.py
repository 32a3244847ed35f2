"""An empty mini-batch changes nothing: neither state nor, through its gradients, weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.marks import slow_except, slow_except_on_jax
from tests.norms.conftest import run_layer, state_of
from tests.norms.test_every_layer import BACKEND, NAMES, QUICK, make

SHAPE = (0, 3, 4, 16)


@pytest.mark.parametrize("name", slow_except_on_jax((*QUICK, "ghost_bn", "iternorm"), NAMES))
def test_empty_batch_changes_nothing(name):
    layer = make(name)
    layer.build((None, *SHAPE[1:]))
    before = state_of(layer)
    got = run_layer(layer, np.zeros(SHAPE, np.float32), training=True)
    assert got.outputs.shape == got.d_inputs.shape == SHAPE
    for weight, gradient in got.d_weights.items():
        np.testing.assert_array_equal(gradient, 0, err_msg=weight)
    for key, value in before.items():
        np.testing.assert_array_equal(got.state[key], value, err_msg=key)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX knows each shape")
@pytest.mark.parametrize(
    "name",
    slow_except((*QUICK, "ghost_bn"), [name for name in NAMES if not name.endswith("_tfa")]),
)
def test_empty_batch_of_unknown_size_changes_nothing(name):
    import tensorflow as tf

    layer = make(name)
    layer.build((None, *SHAPE[1:]))
    before = state_of(layer)
    options = {"training": True} if layer._call_has_training_arg else {}

    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE[1:]))], autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            outputs = layer(x, **options)
        weights = [v.value for v in layer.trainable_variables]
        return outputs, tape.gradient(outputs, weights, unconnected_gradients="zero")

    outputs, gradients = step(tf.zeros(SHAPE))
    assert outputs.shape == SHAPE
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        if name != "bn_keras":  # the gradient of Keras's γ is 0/0
            np.testing.assert_array_equal(gradient, 0, err_msg=variable.name)
    for key, value in before.items():
        np.testing.assert_array_equal(state_of(layer)[key], value, err_msg=key)


def test_population_statistics_ignore_empty_batches():
    layer = make("precise_bn")
    x = np.random.default_rng(0).standard_normal((8, *SHAPE[1:])).astype(np.float32)
    layer.build(x.shape)
    layer.begin()
    for batch in (x[:0], x, x[:0]):
        run_layer(layer, batch, training=True)
    layer.finish()
    np.testing.assert_allclose(layer.moving_mean, x.mean((0, 1, 2)), atol=1e-6)
    assert float(keras.ops.convert_to_numpy(layer.collected)) == -1
