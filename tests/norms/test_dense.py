"""Fully connected layers with a weight parametrization equal 1×1 convolutions of 1×1 images."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from normbench import norms
from normbench.config import compose, group_options
from normbench.initializers import seeded
from normbench.norms import ParametrizedConv2D, ParametrizedDense
from normbench.norms.norm import Norm, make_norm
from tests.marks import slow_except_on_jax

WEIGHTS = [name for name in group_options()["norm/weight"] if name != "none"]
QUICK = ("sn", "ws")
"""Parametrizations tested on JAX, which compiles each one, by default; the first has a state."""


def pair(weight: str) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """A fully connected layer and a convolution with the same weights, built for 6 inputs."""
    norm = make_norm(compose(["norm=none", f"norm/weight={weight}"]).norm)
    layers = []
    for layer, shape in (
        (norm.dense(5, place="head", name="a"), (None, 6)),
        (norm.conv(5, 1, place="head", name="b"), (None, 1, 1, 6)),
    ):
        with seeded(3):
            layer.build(shape)
        layers.append(layer)
    return layers[0], layers[1]


def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


@pytest.mark.parametrize("weight", slow_except_on_jax(QUICK, WEIGHTS))
@pytest.mark.parametrize("training", slow_except_on_jax([True], [False, True]))
def test_equals_a_1x1_convolution(weight, training):
    dense, conv = pair(weight)
    assert isinstance(dense, ParametrizedDense)
    assert isinstance(conv, ParametrizedConv2D)
    assert dense.use_bias
    ours = dense(inputs(), training=training)
    theirs = conv(inputs()[:, None, None], training=training)
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs)[:, 0, 0], rtol=1e-5, atol=1e-6
    )
    assert [v.shape for v in dense.variables][1:] == [v.shape for v in conv.variables][1:]


def test_weight_standardization_standardizes_each_units_weights():
    layer = ParametrizedDense(5, norms.WeightStandardization(epsilon=0.0))
    layer.build((None, 6))
    kernel = ops.convert_to_numpy(layer.parametrization(layer.kernel))
    np.testing.assert_allclose(kernel.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.std(0), 1, rtol=1e-5)


@pytest.mark.parametrize("weight", slow_except_on_jax(QUICK, WEIGHTS))
def test_saves_and_loads(weight, tmp_path: Path):
    norm = make_norm(compose(["norm=none", f"norm/weight={weight}"]).norm)
    images = keras.Input((6,))
    model = keras.Model(images, norm.dense(5, place="head", name="a")(images))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model(inputs())), ops.convert_to_numpy(loaded(inputs()))
    )


def test_half_precision_keeps_the_kernel_in_float32():
    layer = ParametrizedDense(5, norms.WeightStandardization(), dtype="mixed_bfloat16")
    outputs = layer(ops.convert_to_tensor(inputs()))
    assert layer.kernel.dtype == "float32"
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"


def test_bias_is_added_only_without_normalization():
    norm = Norm(norms.BatchNormalization, places={"head": None})
    assert type(norm.dense(4, place="mid", name="a")) is keras.layers.Dense
    assert not norm.dense(4, place="mid", name="b").use_bias
    assert norm.dense(4, place="head", name="c").use_bias
    assert norm.dense(4, place=None, name="d").use_bias
    assert not norm.dense(4, place=None, name="e", use_bias=False).use_bias


def test_filters_of_one_weight_are_refused():
    layer = ParametrizedDense(5, norms.WeightStandardization())
    with pytest.raises(ValueError, match="filters of one weight each"):
        layer.build((None, 1))
