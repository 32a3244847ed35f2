"""Running a network on shards of a batch equals running it on the full batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.config import compose, group_options
from normbench.engine.setup import initialize_from
from normbench.errors import NormbenchError
from normbench.network import build_model

if keras.backend.backend() != "tensorflow":
    pytest.skip("shards are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from normbench.engine.augment import Images
from normbench.engine.shards import Shards, forward
from normbench.norms.batch import BatchNormalization
from normbench.norms.group import GroupNormalization
from normbench.norms.weights import WSConv2D
from tests.engine.tinyloop import loop_of, random_split
from tests.marks import slow_except

SHAPE = (8, 8, 3)


@keras.saving.register_keras_serializable("normbench_tests")
class LessBatchMean(keras.layers.Layer):
    """A custom layer, unknown to the engine, that uses all images and adds a loss."""

    calls = 0

    def call(self, inputs):
        type(self).calls += 1
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs - keras.ops.mean(inputs, axis=0, keepdims=True)


@keras.saving.register_keras_serializable("normbench_tests")
class OfFewImages(BatchNormalization):
    """A subclass of a layer that supports shards, with its own call()."""

    def call(self, inputs, training=None):
        return super().call(inputs, training) / keras.ops.shape(inputs)[0]


def images_of(count, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=(count, *SHAPE)), tf.float32)


def outcome(model, images, count, training=True):
    """Outputs, gradients and state after a pass; the model's state is restored."""
    before = [v.numpy() for v in model.variables]
    with tf.GradientTape() as tape:
        outputs = forward(model, images, count, training=training)
        flat = keras.tree.flatten(outputs)
        loss = sum(tf.reduce_sum(tf.sin(tf.cast(y, tf.float32))) for y in flat)
        loss += sum(model.losses)
    trained = [v.value for v in model.trainable_variables]
    gradients = tape.gradient(loss, trained, unconnected_gradients="zero")
    after = [v.numpy() for v in model.non_trainable_variables]
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    return [y.numpy() for y in flat], [g.numpy() for g in gradients], after


def assert_close(outcome, expected, tolerance=2e-5):
    for values, expected_values in zip(outcome, expected, strict=True):
        for a, b in zip(values, expected_values, strict=True):
            absolute = tolerance * max(1, np.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=absolute)


def network():
    """Branches, a layer over the batch, dropout, state, two outputs and a regularizer."""
    inputs = keras.Input(SHAPE)
    x = WSConv2D(6, 3, padding="same", kernel_regularizer="l2")(inputs)
    x = BatchNormalization()(x)
    y = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    y = LessBatchMean()(y)
    x = keras.layers.Add()([x, y])
    x = keras.layers.Concatenate()([x, keras.layers.Dropout(0.5, seed=1)(y)])
    along_images = keras.layers.Concatenate(axis=0)([x, x])
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    mean = keras.layers.Dense(3, activation=lambda z: z / (1 + keras.ops.mean(keras.ops.abs(z))))
    return keras.Model(inputs, [mean(pooled), keras.layers.GlobalMaxPooling2D()(along_images)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("images", "count"), [(6, 2), (7, 3), (5, 4), (2, 4), (1, 2)])
def test_outputs_gradients_losses_and_state_match_the_full_batch(images, count, training):
    model, batch = network(), images_of(images)
    whole = outcome(model, batch, 1, training)
    LessBatchMean.calls = 0
    assert_close(outcome(model, batch, count, training), whole)
    assert LessBatchMean.calls == 1


def test_number_of_images_may_be_unknown_when_traced():
    model = network()
    traced = tf.function(
        lambda images: forward(model, images, 3, training=False),
        [tf.TensorSpec([None, *SHAPE])],
    )
    for count in (3, 8):
        batch = images_of(count)
        for a, b in zip(traced(batch), model(batch, training=False), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_subclass_with_its_own_call_gets_the_full_batch():
    inputs = keras.Input(SHAPE)
    model, batch = keras.Model(inputs, OfFewImages()(inputs)), images_of(4)
    assert_close(outcome(model, batch, 2), outcome(model, batch, 1))


def test_shards_are_of_similar_size_and_lose_nothing():
    batch = tf.range(11)
    shards = Shards.of(batch, 4)
    assert [len(part) for part in shards.parts] == [2, 3, 3, 3]
    assert shards.joined().numpy().tolist() == list(range(11))


def test_subclassed_model_gets_the_full_batch():
    class Custom(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs - keras.ops.mean(inputs, axis=0))

    model, batch = Custom(), tf.constant([[1.0, 2.0], [5.0, 7.0]])
    np.testing.assert_array_equal(forward(model, batch, 2, training=True), model(batch))


@pytest.mark.parametrize(
    "norm", slow_except(["bn", "gn_ws", "ghost_bn", "precise_bn"], group_options()["norm"])
)
def test_every_normalization_matches_the_full_batch(norm):
    config = compose(["arch=resnet8", "arch.width=8", f"norm={norm}", "batch=16"])
    try:
        model = build_model(config, SHAPE, 4)
    except NormbenchError as error:
        pytest.skip(str(error))
    scale = Images(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32), 0, False)
    split = random_split(1, 16, SHAPE, 4)
    initialize_from(model, split.images, scale)
    batch = scale.scale(tf.constant(split.images))
    # Rounding may carry a ReLU's input over 0, which adds or removes a gradient.
    assert_close(outcome(model, batch, 2), outcome(model, batch, 1), 1e-3)


def test_loop_in_shards_matches_steps_gradients_and_inspections():
    results = []
    for shards in (1, 2):
        loop, split = loop_of("norm=bn", count=32, batch=16)
        loop._shards = shards
        loop.begin_epoch(0)
        loss, gradient = loop.gradients(split.images[:16], split.labels[:16])
        inside = loop.inspect(loop.model, split.images[:5])[0]
        alone = loop.inspect(loop.model, split.images[:1])[0]
        steps = loop.train(0, np.full(2, 0.05, np.float32))
        results.append(
            (loss, gradient, inside, alone, steps.loss, loop.weights(), loop.evaluate("test"))
        )
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_model_with_masks_gets_the_full_batch():
    inputs = keras.Input((6, 8))
    x = BatchNormalization()(keras.layers.Masking(0.0)(inputs))
    model = keras.Model(inputs, GroupNormalization(groups=2)(x))
    values = np.random.default_rng(0).standard_normal((4, 6, 8)).astype("float32")
    values[1:, 3:] = 0
    values[2, 1:] = 0
    state = [np.array(v) for v in model.non_trainable_variables]
    results = []
    for call in (
        lambda: forward(model, values, 2, training=True),
        lambda: model(values, training=True),
    ):
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        outputs = np.array(call())
        results.append([outputs, *(np.array(v) for v in model.non_trainable_variables)])
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
