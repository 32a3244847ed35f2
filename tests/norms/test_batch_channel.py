"""Batch-Channel Normalization against a float64 formula and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from normbench.norms import BatchChannelNormalization, BatchNormalization, GroupNormalization
from tests.marks import slow_except_on_jax

EPSILON = 1e-3


def group_reference(x: np.ndarray, groups: int) -> np.ndarray:
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean = parts.mean((1, 3), keepdims=True)
    variance = parts.var((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape)


def reference(
    x: np.ndarray, weights: dict[str, np.ndarray], groups: int, statistics: Any = None
) -> np.ndarray:
    """The layer in float64, with mini-batch statistics unless others are given."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = statistics or (x.mean(axes), x.var(axes))
    z = weights["gamma"] * (x - mean) / np.sqrt(variance + EPSILON) + weights["beta"]
    size = x.shape[-1] // groups
    scale, shift = (np.repeat(weights[f"group_{k}"], size) for k in ("gamma", "beta"))
    return scale * group_reference(z, groups) + shift


def make(shape: tuple[int, ...], groups: int, **options: Any) -> Any:
    layer = BatchChannelNormalization(groups, momentum=0.8, epsilon=EPSILON, **options)
    layer.build(shape)
    random = np.random.default_rng(0)
    for weight in layer.weights:
        weight.assign(random.uniform(0.5, 2, weight.shape).astype("f4"))
    return layer


def values_of(layer: Any) -> dict[str, np.ndarray]:
    return {weight.name: np.asarray(weight, "f8") for weight in layer.weights}


def gradients(layer: Any, x: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Gradients of the weighted sum of training outputs w.r.t. x and the trainable weights."""
    variables = layer.trainable_variables
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = ops.sum(layer(inputs, training=True) * weights)
        results = tape.gradient(loss, [inputs, *(v.value for v in variables)])
    else:
        import jax

        fixed = [v.value for v in layer.non_trainable_variables]

        def loss_of(x: Any, values: Any) -> Any:
            return ops.sum(layer.stateless_call(values, fixed, x, training=True)[0] * weights)

        at_x, at_values = jax.jit(jax.grad(loss_of, (0, 1)))(x, [v.value for v in variables])
        results = [at_x, *at_values]
    return [np.asarray(gradient, "f8") for gradient in results]


def updated_averages(values: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The moving averages of the micro-batch version after a step."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = values["moving_mean"], values["moving_variance"]
    return 0.8 * mean + 0.2 * x.mean(axes), 0.8 * variance + 0.2 * ((x - mean) ** 2).mean(axes)


@pytest.mark.parametrize("micro_batch", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    slow_except_on_jax([((2, 3, 4, 6), 3)], [((2, 3, 4, 6), 3), ((1, 5, 3, 4), 2), ((3, 8), 4)]),
)
def test_outputs_and_gradients_in_training(
    shape: tuple[int, ...], groups: int, micro_batch: bool
) -> None:
    layer = make(shape, groups, micro_batch=micro_batch)
    random = np.random.default_rng(1)
    x, weights = (random.normal(1, 2, shape).astype("f4") for _ in range(2))
    values = values_of(layer)
    statistics = updated_averages(values, x.astype("f8")) if micro_batch else None

    def loss_of(x: np.ndarray, *trained: np.ndarray) -> float:
        parameters = dict(zip(names, trained, strict=True))
        return float((reference(x, parameters, groups, statistics) * weights).sum())

    names = [weight.name for weight in layer.trainable_variables]
    points = [x.astype("f8"), *(values[name] for name in names)]
    for position, gradient in enumerate(gradients(layer, x, weights)):
        numeric = np.zeros_like(points[position])
        for index in np.ndindex(numeric.shape):
            ends = []
            for sign in (1, -1):
                near = [point.copy() for point in points]
                near[position][index] += sign * 1e-5
                ends.append(loss_of(*near))
            numeric[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, numeric, atol=1e-4 * np.abs(numeric).max() + 1e-6)
    for weight in layer.non_trainable_variables:  # gradients() updates them on TensorFlow
        weight.assign(values[weight.name].astype("f4"))
    outputs = np.asarray(layer(x, training=True))
    expected = reference(x.astype("f8"), values, groups, statistics)
    np.testing.assert_allclose(outputs, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("micro_batch", [False, True])
def test_moving_averages_after_three_steps(micro_batch: bool) -> None:
    layer = make((2, 3, 5, 4), 2, micro_batch=micro_batch, unbiased=True)
    values = values_of(layer)
    random = np.random.default_rng(2)
    for _ in range(3):
        x = random.normal(3, 2, (2, 3, 5, 4)).astype("f4")
        layer(x, training=True)
        wide = x.astype("f8")
        if micro_batch:
            values["moving_mean"], values["moving_variance"] = updated_averages(values, wide)
        else:
            variance = wide.var((0, 1, 2)) * 30 / 29
            values["moving_mean"] = 0.8 * values["moving_mean"] + 0.2 * wide.mean((0, 1, 2))
            values["moving_variance"] = 0.8 * values["moving_variance"] + 0.2 * variance
    for name, value in values_of(layer).items():
        np.testing.assert_allclose(value, values[name], rtol=1e-5)
    expected = reference(wide, values, 2, (values["moving_mean"], values["moving_variance"]))
    np.testing.assert_allclose(np.asarray(layer(x)), expected, atol=1e-4)
    for name, value in values_of(layer).items():  # inference does not change the state
        np.testing.assert_allclose(value, values[name], rtol=1e-5)


def test_equals_batch_then_group_normalization() -> None:
    x = np.random.default_rng(3).normal(2, 3, (4, 3, 3, 8)).astype("f4")
    actual = BatchChannelNormalization(4)(x, training=True)
    expected = GroupNormalization(4)(BatchNormalization()(x, training=True))
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("micro_batch", [False, True])
@pytest.mark.parametrize(
    "policy", slow_except_on_jax(["mixed_bfloat16"], ["mixed_bfloat16", "mixed_float16"])
)
def test_half_precision_is_computed_in_float32(policy: str, micro_batch: bool) -> None:
    x = np.random.default_rng(4).normal(1, 2, (2, 4, 3, 8))
    layer = BatchChannelNormalization(2, micro_batch=micro_batch, dtype=policy)
    exact = BatchChannelNormalization(2, micro_batch=micro_batch)
    inputs = ops.cast(ops.cast(x, layer.compute_dtype), "float32")
    outputs = layer(inputs, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    expected = ops.cast(exact(inputs, training=True), layer.compute_dtype)
    np.testing.assert_array_equal(
        np.asarray(ops.cast(outputs, "float32")), np.asarray(ops.cast(expected, "float32"))
    )
    assert {weight.dtype for weight in layer.weights} == {"float32"}


@pytest.mark.parametrize("micro_batch", [False, True])
def test_constant_inputs_give_no_nan(micro_batch: bool) -> None:
    layer = make((2, 3, 3, 4), 2, micro_batch=micro_batch)
    x = np.full((2, 3, 3, 4), 7, "f4")
    assert all(np.isfinite(gradient).all() for gradient in gradients(layer, x, np.ones_like(x)))
    assert np.isfinite(np.asarray(layer(x, training=True))).all()


def test_saves_and_loads(tmp_path: Path) -> None:
    layer = make((None, 3, 4, 6), 3, micro_batch=True, scale=False)
    model = keras.Sequential([keras.Input((3, 4, 6)), layer])
    x = np.random.default_rng(5).normal(size=(2, 3, 4, 6)).astype("f4")
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))
    assert loaded.layers[0].get_config() == layer.get_config()


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups=3 does not divide the 8 channels"):
        BatchChannelNormalization(3).build((None, 4, 4, 8))
    with pytest.raises(ValueError, match="groups must be a whole number of at least 1, got 0"):
        BatchChannelNormalization(0)
