"""Convolutions of 1×1 as matrix products, against float64 and Keras's own layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from normbench import norms
from normbench.norms._compiled import on_cpu
from normbench.norms._pointwise import Pointwise, PointwiseConv2D
from normbench.norms.norm import Norm
from tests.norms.conftest import EPSILON, FLOAT32_ROUNDINGS

SHAPES = [(4, 6, 6, 16), (1, 5, 3, 7), (2, 1, 1, 1), (3, 7, 4, 130)]


def made(kind: Any, shape: tuple[int, ...], filters: int = 5, **options: Any) -> Any:
    """A built layer; of equal arguments, equal weights."""
    layer = kind(filters, options.pop("kernel_size", 1), **options)
    layer.build(shape)
    random = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(random.normal(size=weight.shape))
    return layer


@pytest.mark.parametrize("distribution", ["ordinary", "far", "tiny"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_formula(
    go: Any, shape: tuple[int, ...], strides: int, dtype: str, distribution: str
) -> None:
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    layer = made(PointwiseConv2D, shape, strides=strides, dtype=policy)
    random = np.random.default_rng(0)
    x = random.normal(size=shape) * (1e-3 if distribution == "tiny" else 1)
    x = np.asarray(ops.convert_to_numpy(ops.cast(x + 100 * (distribution == "far"), dtype)), "f8")
    dy = random.normal(size=layer.compute_output_shape(shape))
    dy = np.asarray(ops.convert_to_numpy(ops.cast(dy, dtype)), "f8")
    kernel, bias = (
        np.asarray(ops.convert_to_numpy(ops.cast(each, dtype)), "f8") for each in layer.weights
    )
    found = go(layer, x, dy)
    d_kernel, d_bias = found.d_weights["kernel"], found.d_weights["bias"]
    taken = x[:, ::strides, ::strides]
    expected_dx = np.zeros_like(x)
    expected_dx[:, ::strides, ::strides] = np.einsum("nhwo,ijco->nhwc", dy, kernel)
    sums = "nhwc,nhwo->co"
    magnitudes = np.abs(taken), np.abs(dy), np.abs(kernel)
    for given, wanted, magnitude in (
        (
            found.outputs,
            np.einsum("nhwc,ijco->nhwo", taken, kernel) + bias,
            np.einsum("nhwc,ijco->nhwo", magnitudes[0], magnitudes[2]) + np.abs(bias),
        ),
        (found.d_inputs, expected_dx, np.einsum("nhwo,ijco->nhwc", *magnitudes[1:]).max()),
        (
            d_kernel[0, 0],
            np.einsum(sums, taken, dy),
            np.einsum(sums, *magnitudes[:2]),
        ),
        (d_bias, dy.sum((0, 1, 2)), magnitudes[1].sum((0, 1, 2))),
    ):
        # Sums are of float32 at least; what they give is rounded to the dtype, y once more.
        allowed = 2 * EPSILON[dtype] * np.abs(magnitude) + FLOAT32_ROUNDINGS * 2.0**-23 * magnitude
        assert given.shape == wanted.shape
        assert (np.abs(given - wanted) <= allowed).all()


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": False},
        {"activation": "relu"},
        {"padding": "valid", "strides": (2, 1)},
        {"groups": 2, "filters": 4},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (1, 3), "dilation_rate": (1, 2)},
        {"dilation_rate": 2},
    ],
    ids=str,
)
def test_is_keras_s_layer(options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 6)).astype(np.float32)
    own = made(PointwiseConv2D, x.shape, **options)
    theirs = made(keras.layers.Conv2D, x.shape, **options)
    assert [each.shape for each in own.weights] == [each.shape for each in theirs.weights]
    inputs = keras.Input((None, None, 6))
    assert own(inputs).shape == theirs(inputs).shape
    np.testing.assert_allclose(own(x), theirs(x), rtol=1e-5, atol=1e-5)
    config = theirs.get_config()
    assert PointwiseConv2D.from_config(own.get_config()).get_config() == own.get_config()
    assert own.get_config() == {**config, "name": own.name}


def test_is_a_product_where_tensorflow_computes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []

    def matmul(*tensors: Any) -> Any:
        products.append(tensors)
        return original(*tensors)

    original = ops.matmul
    monkeypatch.setattr(ops, "matmul", matmul)
    x = np.ones((1, 2, 2, 3), np.float32)
    for kind in (PointwiseConv2D, norms.WNConv2D):
        layer = made(kind, x.shape)
        products.clear()
        layer(x)
        assert bool(products) == on_cpu()
    products.clear()
    made(PointwiseConv2D, x.shape, kernel_size=2)(x)
    made(PointwiseConv2D, x.shape, strides=2)(x)
    made(keras.layers.Conv2D, x.shape)(x)
    assert not products


def test_networks_have_it() -> None:
    norm = Norm(None)
    assert type(norm.conv(4, 1, place="mid", name="a")) is PointwiseConv2D
    assert type(norm.conv(4, 3, place="mid", name="b")) is keras.layers.Conv2D
    assert issubclass(norms.WSConv2D, Pointwise)


def test_is_saved_with_a_network(tmp_path: Any) -> None:
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, PointwiseConv2D(2, 1, strides=2)(inputs))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
