"""Measured effects of two wrong ways to standardize weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from normbench import norms
from normbench.norms.weights import ParametrizedConv2D, ParametrizedDepthwiseConv2D
from tests.marks import slow_except_on_jax

SHAPES = [((3, 3, 2, 4), False), ((3, 3, 4, 2), True)]


def layer_of(parametrization: Any, shape: tuple[int, ...], depthwise: bool, **options: Any) -> Any:
    if depthwise:
        options["depth_multiplier"] = shape[-1]
        layer = ParametrizedDepthwiseConv2D(shape[:2], parametrization, use_bias=False, **options)
    else:
        layer = ParametrizedConv2D(shape[-1], shape[:2], parametrization, use_bias=False, **options)
    layer.build((None, 6, 6, shape[2]))
    return layer


def kernel_gradient(layer: Any, loss_of_kernel: Any) -> np.ndarray:
    """The gradient of a function of the stored kernel, as float64."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        kernel = tf.constant(np.asarray(layer.kernel))
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = loss_of_kernel(kernel)
        return np.asarray(tape.gradient(loss, kernel, unconnected_gradients="zero"), "f8")
    import jax

    return np.asarray(jax.grad(loss_of_kernel)(layer.kernel.value), "f8")


def standardized(kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    """Standardize each filter by the answer's formula, in float64."""
    axes = (0, 1) if depthwise else (0, 1, 2)
    fan_in = np.prod([kernel.shape[axis] for axis in axes])
    scale = 1 / np.sqrt(np.maximum(kernel.var(axes) * fan_in, 1e-4))
    return kernel * scale - kernel.mean(axes) * scale


@pytest.mark.parametrize("returns", slow_except_on_jax(["sum"], ["sum", "nothing"]))
@pytest.mark.parametrize(("shape", "depthwise"), SHAPES)
def test_regularizer_does_not_standardize_weights(
    shape: tuple[int, ...], depthwise: bool, returns: str
) -> None:
    layer = layer_of(norms.WSAsRegularizer(returns=returns), shape, depthwise)
    kernel = np.random.default_rng(0).normal(0.5, 2, shape).astype("f4")
    layer.kernel.assign(kernel)
    (penalty,) = layer.losses
    assert abs(float(penalty)) < 1e-4  # the sum of any standardized kernel
    gradient = kernel_gradient(layer, layer.kernel.regularizer)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(kernel)))
    np.testing.assert_array_equal(mapped, kernel)


def test_regularizer_of_a_constant_filter_is_finite() -> None:
    layer = layer_of(norms.WSAsRegularizer(), (1, 1, 1, 4), False)
    assert np.isfinite(kernel_gradient(layer, layer.kernel.regularizer)).all()


def test_regularizer_works_on_a_plain_convolution(tmp_path: Path) -> None:
    layer = keras.layers.Conv2D(4, 3, kernel_regularizer=norms.WSRegularizer(epsilon=1e-4))
    model = keras.Sequential([keras.Input((6, 6, 2)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kernel_regularizer.get_config()["epsilon"] == 1e-4
    assert abs(float(loaded.losses[0])) < 1e-4


@pytest.mark.parametrize(("shape", "depthwise"), SHAPES)
def test_assigned_standardization_is_not_part_of_the_gradient(
    shape: tuple[int, ...], depthwise: bool
) -> None:
    layer = layer_of(norms.WSAssign(), shape, depthwise)
    kernel = np.random.default_rng(1).normal(0.5, 2, shape).astype("f4")
    weights = np.random.default_rng(2).normal(size=shape).astype("f4")
    layer.kernel.assign(kernel)
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(mapped, standardized(kernel.astype("f8"), depthwise), atol=1e-6)
    gradient = kernel_gradient(layer, lambda k: ops.sum(layer.parametrization(k) * weights))
    np.testing.assert_allclose(gradient, weights, atol=1e-6)
    # Standardizing in the forward pass leaves no gradient along a filter's shift or scale.
    right = layer_of(norms.WeightStandardization(), shape, depthwise)
    right.kernel.assign(kernel)
    gradient = kernel_gradient(right, lambda k: ops.sum(right.parametrization(k) * weights))
    axes = (0, 1) if depthwise else (0, 1, 2)
    np.testing.assert_allclose(gradient.sum(axes), 0, atol=1e-5)
    np.testing.assert_allclose((gradient * kernel).sum(axes), 0, atol=1e-4)
    assert np.abs(weights.sum(axes)).min() > 0.1


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize(("shape", "depthwise"), SHAPES)
def test_training_follows_the_answer_step_by_step(
    shape: tuple[int, ...], depthwise: bool, size: float
) -> None:
    # At size 1e-6 epsilon matters, and so does how often a kernel is standardized.
    first = (np.random.default_rng(3).normal(0.1, 1, shape) * size).astype("f4")
    options = {
        "depthwise_initializer" if depthwise else "kernel_initializer": constant_initializer(first)
    }
    layer = layer_of(norms.WSAssign(), shape, depthwise, **options)
    optimizer = keras.optimizers.SGD(0.1 * size)
    stored = first.astype("f8")
    for step in range(3):
        weights = np.random.default_rng(step).normal(size=shape)
        stored = standardized(stored, depthwise)  # the call assigns,
        stored = stored - 0.1 * size * weights  # and the step moves what it assigned
        gradient = kernel_gradient(
            layer, lambda k, w=weights: ops.sum(layer.parametrization(k) * w)
        )
        optimizer.apply([ops.convert_to_tensor(gradient.astype("f4"))], [layer.kernel])
    expected = standardized(stored, depthwise)
    np.testing.assert_allclose(
        np.asarray(layer.kernel), expected, atol=2e-5 * np.abs(expected).max()
    )


def constant_initializer(values: np.ndarray) -> Any:
    return lambda shape, dtype=None: ops.convert_to_tensor(values, dtype=dtype)


def test_arguments_that_would_be_replaced_are_refused() -> None:
    with pytest.raises(ValueError, match="has a kernel regularizer"):
        layer_of(norms.WSAsRegularizer(), (3, 3, 2, 4), False, kernel_regularizer="l2")
    with pytest.raises(ValueError, match="has a kernel constraint"):
        layer_of(norms.WSAssign(), (3, 3, 2, 4), False, kernel_constraint="non_neg")
    with pytest.raises(ValueError, match=r"unknown returns 'summ': did you mean 'sum'\?"):
        norms.WSAsRegularizer(returns="summ")
