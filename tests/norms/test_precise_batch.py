"""Batch Normalization with recomputed population statistics."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.norms import BatchNormalization, PreciseBatchNormalization, recomputed_layers
from tests.marks import slow_except_on_jax


def make_batches(sizes: tuple[int, ...], offset: float = 0.0) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        (offset + i + (1 + i) * random.standard_normal((size, 3, 4, 2))).astype(np.float32)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("unbiased", slow_except_on_jax([True], [False, True]))
@pytest.mark.parametrize("offset", slow_except_on_jax([1000.0], [0.0, 1000.0]))
def test_recomputed_statistics_are_over_all_values(unbiased, offset, run_layer):
    layer = PreciseBatchNormalization(momentum=0.5, unbiased=unbiased)
    run_layer(layer, make_batches((4,))[0], training=True)  # moving averages, to be discarded
    layer.begin()
    batches = make_batches((4, 4, 2, 5), offset)
    for batch in batches:
        run_layer(layer, batch, training=True)
    layer.finish()
    everything = np.concatenate(batches).astype("f8")
    expected = everything.mean((0, 1, 2)), everything.var((0, 1, 2), ddof=int(unbiased))
    np.testing.assert_allclose(layer.moving_mean, expected[0], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, expected[1], rtol=1e-5)
    outputs = run_layer(layer, batches[0]).outputs
    np.testing.assert_allclose(
        outputs, (batches[0] - expected[0]) / np.sqrt(expected[1] + 1e-3), atol=2e-4
    )


def test_trains_like_batch_normalization_before_and_after(run_layer):
    precise, plain = (
        kind(momentum=0.8, unbiased=True)
        for kind in (PreciseBatchNormalization, BatchNormalization)
    )
    batches = make_batches((4, 4, 4))
    for batch in batches[:2]:
        runs = [run_layer(layer, batch, batch, training=True) for layer in (precise, plain)]
    np.testing.assert_array_equal(runs[0].outputs, runs[1].outputs)
    np.testing.assert_array_equal(runs[0].d_inputs, runs[1].d_inputs)
    for name, value in runs[1].state.items():
        np.testing.assert_allclose(runs[0].state[name], value, rtol=1e-6)

    precise.begin()
    run_layer(precise, batches[0], training=True)
    precise.finish()
    mean = keras.ops.convert_to_numpy(precise.moving_mean)
    got = run_layer(precise, batches[2], training=True)
    expected = 0.8 * mean + 0.2 * batches[2].mean((0, 1, 2))
    np.testing.assert_allclose(got.state["moving_mean"], expected, rtol=1e-5)


def test_finishing_without_a_mini_batch_is_refused(run_layer):
    layer = PreciseBatchNormalization(name="stem_norm")
    layer.build((None, 3, 4, 2))
    layer.begin()
    with pytest.raises(ValueError, match="stem_norm has seen no mini-batch"):
        layer.finish()


def model_of(kind: type) -> keras.Model:
    inner = keras.Sequential([keras.Input((3, 4, 4)), kind(name="inner")])
    return keras.Sequential(
        [keras.Input((3, 4, 2)), keras.layers.Conv2D(4, 1), kind(name="outer"), inner]
    )


def test_recomputed_layers_include_nested_ones():
    names = [layer.name for layer in recomputed_layers(model_of(PreciseBatchNormalization))]
    assert names == ["outer", "inner"]
    assert recomputed_layers(model_of(BatchNormalization)) == []


def test_protocol_in_a_compiled_loop():
    """As an engine does it: one compiled function over the mini-batches, with the state inside."""
    model = model_of(PreciseBatchNormalization)
    layers = recomputed_layers(model)
    batches = np.stack(make_batches((4, 4, 4)))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def recompute(batches):
            for layer in layers:
                layer.begin()
            tf.while_loop(
                lambda i: i < tf.shape(batches)[0],
                lambda i: (model(batches[i], training=True), i + 1)[1:],
                (tf.constant(0),),
            )
            for layer in layers:
                layer.finish()

        recompute(tf.constant(batches))
    else:
        import jax

        @jax.jit
        def recompute(trainable, other, batches):
            def body(i, other):
                return model.stateless_call(trainable, other, batches[i], training=True)[1]

            return jax.lax.fori_loop(0, len(batches), body, other)

        for layer in layers:
            layer.begin()
        other = recompute(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            batches,
        )
        for variable, value in zip(model.non_trainable_variables, other, strict=True):
            variable.assign(value)
        for layer in layers:
            layer.finish()
    outputs = keras.ops.convert_to_numpy(model.layers[0](np.concatenate(batches)))
    np.testing.assert_allclose(layers[0].moving_mean, outputs.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(layers[0].moving_variance, outputs.var((0, 1, 2)), rtol=1e-4)
    assert [float(layer.collected) for layer in layers] == [-1.0, -1.0]
