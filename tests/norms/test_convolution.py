"""Our convolution layers, against float64 formulas and Keras's layers."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from normbench import norms
from normbench.kernels.compile import on_cpu
from normbench.norms.convolution import Conv2D, DepthwiseConv2D
from normbench.norms.norm import Norm
from tests.marks import slow_except_on_jax
from tests.norms.conftest import EPSILON, FLOAT32_ROUNDINGS

SHAPES = [(4, 6, 6, 16), (1, 5, 3, 7), (2, 1, 1, 1), (3, 7, 4, 130)]
DISTRIBUTIONS = ["ordinary", "far", "tiny"]
DTYPES = ["float32", "bfloat16", "float16"]


def slow_on_jax(shape: tuple[int, ...]) -> Any:
    """Marks for a shape: all but the first are slow on JAX, which compiles each for a second."""
    on_jax = keras.backend.backend() == "jax"
    return pytest.mark.slow if on_jax and shape != SHAPES[0] else ()


def make_layer(kind: Any, shape: tuple[int, ...], filters: int = 5, **options: Any) -> Any:
    """A built layer; equal arguments give equal weights."""
    layer = kind(filters, options.pop("kernel_size", 1), **options)
    layer.build(shape)
    random = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(random.normal(size=weight.shape))
    return layer


@pytest.mark.parametrize("distribution", slow_except_on_jax(["far"], DISTRIBUTIONS))
@pytest.mark.parametrize("dtype", slow_except_on_jax(["float32", "bfloat16"], DTYPES))
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=slow_on_jax(shape)) for shape in SHAPES], ids=str
)
def test_outputs_and_gradients_match_the_formula(
    run_layer: Any, shape: tuple[int, ...], strides: int, dtype: str, distribution: str
) -> None:
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    layer = make_layer(Conv2D, shape, strides=strides, dtype=policy)
    random = np.random.default_rng(0)
    x = random.normal(size=shape) * (1e-3 if distribution == "tiny" else 1)
    x = np.asarray(ops.convert_to_numpy(ops.cast(x + 100 * (distribution == "far"), dtype)), "f8")
    dy = random.normal(size=layer.compute_output_shape(shape))
    dy = np.asarray(ops.convert_to_numpy(ops.cast(dy, dtype)), "f8")
    kernel, bias = (
        np.asarray(ops.convert_to_numpy(ops.cast(weight, dtype)), "f8") for weight in layer.weights
    )
    run = run_layer(layer, x, dy)
    d_kernel, d_bias = run.d_weights["kernel"], run.d_weights["bias"]
    sampled = x[:, ::strides, ::strides]
    expected_dx = np.zeros_like(x)
    expected_dx[:, ::strides, ::strides] = np.einsum("nhwo,ijco->nhwc", dy, kernel)
    sums = "nhwc,nhwo->co"
    magnitudes = np.abs(sampled), np.abs(dy), np.abs(kernel)
    for actual, expected, magnitude in (
        (
            run.outputs,
            np.einsum("nhwc,ijco->nhwo", sampled, kernel) + bias,
            np.einsum("nhwc,ijco->nhwo", magnitudes[0], magnitudes[2]) + np.abs(bias),
        ),
        (run.d_inputs, expected_dx, np.einsum("nhwo,ijco->nhwc", *magnitudes[1:]).max()),
        (
            d_kernel[0, 0],
            np.einsum(sums, sampled, dy),
            np.einsum(sums, *magnitudes[:2]),
        ),
        (d_bias, dy.sum((0, 1, 2)), magnitudes[1].sum((0, 1, 2))),
    ):
        # Sums are in float32 at least; results are rounded to the dtype, y twice.
        allowed = 2 * EPSILON[dtype] * np.abs(magnitude) + FLOAT32_ROUNDINGS * 2.0**-23 * magnitude
        assert actual.shape == expected.shape
        assert (np.abs(actual - expected) <= allowed).all()


SMALL_STRIDED = """
from normbench.engine import backend
backend.start("tensorflow", "float32")
import tensorflow as tf
tf.random.set_seed(0)
from normbench.kernels.conv import conv2d
for channels in (1, 3, 4, 7):
    for images in (8, 16, 50):
        x = tf.random.normal([images, 8, 8, channels])
        kernel = tf.random.normal([1, 1, channels, 8])
        for _ in range(60):
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                y = conv2d(x, kernel, strides=(2, 2), padding="same")
            tape.gradient(y, kernel)
print("whole")
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts TensorFlow")
def test_gradients_of_few_channels_do_not_corrupt_the_heap() -> None:
    environment = {
        **os.environ,
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "TF_NUM_INTRAOP_THREADS": "1",
        "MALLOC_CHECK_": "3",
    }
    command = [sys.executable, "-c", SMALL_STRIDED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize(
    ("kind", "size"),
    slow_except_on_jax(
        [(Conv2D, 3), (DepthwiseConv2D, 3)],
        [
            (Conv2D, 1),
            (Conv2D, 3),
            (Conv2D, 5),
            (norms.WSConv2D, 3),
            (DepthwiseConv2D, 3),
            (DepthwiseConv2D, 5),
            (norms.WSDepthwiseConv2D, 3),
        ],
    ),
)
def test_strides_do_not_matter_for_1x1_images(run_layer: Any, kind: Any, size: int) -> None:
    shape = (3, 1, 1, 8)
    # On JAX, a Keras layer takes half precision only as part of a network.
    half = keras.backend.backend() == "tensorflow"
    options = {"dtype": "mixed_bfloat16" if half else "float32", "padding": "same"}
    sizes = (size,) if "Depthwise" in kind.__name__ else (4, size)
    layers = [kind(*sizes, strides=strides, **options) for strides in (1, 2)]
    random = np.random.default_rng(0)
    for layer in layers:
        layer.build(shape)
    for weights in zip(*(layer.weights for layer in layers), strict=True):
        value = random.normal(size=weights[0].shape)
        for weight in weights:
            weight.assign(value)
    x = random.normal(size=shape).astype(ml_dtypes.bfloat16 if half else np.float32)
    dy = random.normal(size=layers[0].compute_output_shape(shape))
    plain = run_layer(layers[0], x, dy)
    for _ in range(20):
        # Leave NaNs in memory that TensorFlow reuses, to expose reads of unwritten memory.
        for length in (2, 8, 32, 64, 128, 256, 512, 1024, 4096, 65536):
            ops.convert_to_numpy(ops.full((length,), np.nan, "bfloat16"))
        strided = run_layer(layers[1], x, dy)
        np.testing.assert_array_equal(strided.outputs, plain.outputs)
        np.testing.assert_array_equal(strided.d_inputs, plain.d_inputs)
        for name, gradient in plain.d_weights.items():
            np.testing.assert_array_equal(strided.d_weights[name], gradient, name)


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
def test_matches_keras_layer(options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 6)).astype(np.float32)
    ours = make_layer(Conv2D, x.shape, **options)
    theirs = make_layer(keras.layers.Conv2D, x.shape, **options)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    inputs = keras.Input((None, None, 6))
    assert ours(inputs).shape == theirs(inputs).shape
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    config = theirs.get_config()
    assert Conv2D.from_config(ours.get_config()).get_config() == ours.get_config()
    assert ours.get_config() == {**config, "name": ours.name}


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"strides": 2, "padding": "same", "use_bias": False},
        {"depth_multiplier": 2, "dilation_rate": 2},
    ],
    ids=str,
)
def test_depthwise_matches_keras_layer(options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 6)).astype(np.float32)
    ours, theirs = (kind(3, **options) for kind in (DepthwiseConv2D, keras.layers.DepthwiseConv2D))
    for layer in (ours, theirs):
        layer.build(x.shape)
    ours.set_weights(theirs.get_weights())
    inputs = keras.Input((None, None, 6))
    assert ours(inputs).shape == theirs(inputs).shape
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert ours.get_config() == {**theirs.get_config(), "name": ours.name}


@pytest.mark.parametrize("distribution", slow_except_on_jax(["far"], DISTRIBUTIONS))
@pytest.mark.parametrize("dtype", slow_except_on_jax(["float32", "bfloat16"], DTYPES))
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=slow_on_jax(shape)) for shape in SHAPES], ids=str
)
def test_depthwise_outputs_and_gradients_match_the_formula(
    run_layer: Any, shape: tuple[int, ...], strides: int, dtype: str, distribution: str
) -> None:
    if keras.backend.backend() == "jax" and dtype != "float32":
        pytest.skip("on JAX, a Keras layer takes half precision only as part of a network")
    layer = DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        dtype=dtype if dtype == "float32" else f"mixed_{dtype}",
    )
    layer.build(shape)
    random = np.random.default_rng(1)

    def rounded(values: np.ndarray) -> np.ndarray:
        return np.asarray(ops.convert_to_numpy(ops.cast(values, dtype)), "f8")

    kernel = rounded(random.normal(size=layer.kernel.shape))
    layer.kernel.assign(kernel)
    x = random.normal(size=shape) * (1e-3 if distribution == "tiny" else 1)
    x = rounded(x + 100 * (distribution == "far"))
    dy = rounded(random.normal(size=layer.compute_output_shape(shape)))
    run = run_layer(layer, x, dy)

    def formula(x: np.ndarray, kernel: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
        """Outputs and gradients; like TensorFlow, with more padding after than before."""
        sizes = shape[1:3]
        lost = [
            max((out - 1) * strides + 3 - size, 0)
            for out, size in zip(dy.shape[1:3], sizes, strict=True)
        ]
        edges = [(count // 2, count - count // 2) for count in lost]
        padded = np.pad(x, ((0, 0), *edges, (0, 0)))
        y, dx, d_kernel = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
        for i in range(3):
            for j in range(3):
                window = np.s_[
                    :,
                    i : i + strides * (dy.shape[1] - 1) + 1 : strides,
                    j : j + strides * (dy.shape[2] - 1) + 1 : strides,
                ]
                y += padded[window] * kernel[i, j, :, 0]
                dx[window] += dy * kernel[i, j, :, 0]
                d_kernel[i, j, :, 0] = (padded[window] * dy).sum((0, 1, 2))
        (top, _), (left, _) = edges
        return [y, dx[:, top : top + sizes[0], left : left + sizes[1]], d_kernel]

    values = run.outputs, run.d_inputs, run.d_weights["kernel"]
    wanted = formula(x, kernel, dy)
    magnitudes = formula(np.abs(x), np.abs(kernel), np.abs(dy))
    for value, expected, magnitude in zip(values, wanted, magnitudes, strict=True):
        allowed = EPSILON[dtype] * np.abs(expected) + FLOAT32_ROUNDINGS * 2.0**-23 * magnitude
        if dtype == "float16":  # its numbers next to 0 are this far apart
            allowed = allowed + 2.0**-24
        assert value.shape == expected.shape
        assert (np.abs(value - expected) <= allowed).all()


def test_1x1_convolutions_are_matrix_products_on_tensorflow_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products = []

    def matmul(*tensors: Any) -> Any:
        products.append(tensors)
        return original(*tensors)

    original = ops.matmul
    monkeypatch.setattr(ops, "matmul", matmul)
    x = np.ones((1, 2, 2, 3), np.float32)
    for kind in (Conv2D, norms.WNConv2D):
        layer = make_layer(kind, x.shape)
        products.clear()
        layer(x)
        assert bool(products) == on_cpu()
    products.clear()
    make_layer(Conv2D, x.shape, kernel_size=2)(x)
    many = np.ones((1, 2, 2, 8), np.float32)
    make_layer(Conv2D, many.shape, strides=2)(many)
    make_layer(keras.layers.Conv2D, x.shape)(x)
    assert not products
    make_layer(Conv2D, x.shape, strides=2)(x)  # of few channels
    assert bool(products) == on_cpu()


def test_networks_use_these_layers() -> None:
    norm = Norm(None)
    assert type(norm.conv(4, 1, place="mid", name="a")) is Conv2D
    assert type(norm.conv(4, 3, place="mid", name="b")) is Conv2D
    assert type(norm.depthwise_conv(3, place="mid", name="c")) is DepthwiseConv2D
    assert issubclass(norms.WSConv2D, Conv2D)


def test_saves_and_loads_with_a_network(tmp_path: Any) -> None:
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, Conv2D(2, 1, strides=2)(inputs))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="shards are TensorFlow's")
@pytest.mark.parametrize("filters", [5, 2048])  # few weights, and enough for XLA to add them up
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_share_a_kernel_and_add_up_its_gradients_in_float32(
    dtype: str, filters: int
) -> None:
    import tensorflow as tf

    from normbench.engine.shards import shard_function

    shape = (6, 4, 4, 16)
    layer = make_layer(Conv2D, shape, filters, dtype=f"mixed_{dtype}")
    xs = [tf.cast(tf.random.stateless_normal((n, *shape[1:]), (0, n)), dtype) for n in (2, 4)]

    def shards() -> list[Any]:
        return shard_function(layer)(layer, xs, False)

    def alone() -> list[Any]:
        return [layer(x) for x in xs]

    results = []
    for compute in (shards, alone):
        with tf.GradientTape() as tape:
            outputs = compute()
            loss = sum(tf.reduce_sum(tf.cast(tf.square(y), tf.float32)) for y in outputs)
        results.append((outputs, tape.gradient(loss, layer.kernel.value)))
    for one, other in zip(*(outputs for outputs, _ in results), strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(np.asarray(one, "f4"), np.asarray(other, "f4"))
    # A layer called once per shard also gets its gradients cast to float32 before they are added.
    assert results[0][1].dtype == tf.float32
    np.testing.assert_array_equal(results[0][1], results[1][1])
