"""ReLU on the bits of half precision, against a formula and Keras's layer."""

from __future__ import annotations

import keras
import ml_dtypes
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("JAX compiles ReLU with what is around it", allow_module_level=True)

import tensorflow as tf

from normbench.engine.shards import forward
from normbench.kernels import compile as _compiled
from normbench.kernels.relu import is_rectifier, rectified
from normbench.norms.batch import BatchNormalization
from normbench.norms.convolution import Conv2D, DepthwiseConv2D
from tests.marks import slow_except

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def run_traced(function, x, dy):
    """Run a function in a graph; return outputs, the gradient of x and the kinds of operations."""

    @tf.function
    def graph(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x, dy)

    concrete = graph.get_concrete_function(x, dy)
    kinds = {operation.type for operation in concrete.graph.get_operations()}
    y, dx = concrete(x, dy)
    return y.numpy(), dx.numpy(), kinds


@pytest.mark.parametrize("ceiling", [None, 6.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_16_bit_values_match_the_formula(dtype, ceiling):
    x = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    x = np.stack([x, x[::-1]]).reshape(2, 2**7, 2**9)
    dy = np.random.default_rng(0).standard_normal(x.shape).astype(DTYPES[dtype])
    layer = keras.layers.ReLU(ceiling, dtype=dtype)
    y, dx, kinds = run_traced(lambda x: rectified(layer, x)[0], tf.constant(x), tf.constant(dy))
    assert not any(kind.startswith("Relu") for kind in kinds)
    top = np.inf if ceiling is None else ceiling
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(y.astype(np.float64), np.clip(wide, 0, top))
    passes = (wide > 0) & ((wide < top) | (ceiling is None))
    np.testing.assert_array_equal(dx, np.where(passes, dy, 0))


@pytest.mark.parametrize("ceiling", [None, 6.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(1, 3), (5, 8, 8, 3), (2, 64, 64, 16)])
def test_matches_keras(shape, dtype, ceiling):
    x, dy = (tf.cast(3 * tf.random.stateless_normal(shape, (i, 0)), dtype) for i in (0, 1))
    layer = keras.layers.ReLU(ceiling, dtype=dtype)
    ours, theirs = run_traced(lambda x: rectified(layer, x)[0], x, dy), run_traced(layer, x, dy)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    large = np.prod(shape) >= _compiled.WORTHWHILE and dtype != "float32"
    assert any(kind.startswith("Relu") for kind in ours[2]) != large


def test_result_has_the_dtype_of_the_layer():
    layer = keras.layers.ReLU(dtype="bfloat16")
    x = tf.random.stateless_normal((2, 2**16), (0, 0))
    y, dx, _ = run_traced(lambda x: rectified(layer, x)[0], x, tf.ones(x.shape, "bfloat16"))
    assert (y.dtype, dx.dtype) == (DTYPES["bfloat16"], np.float32)
    np.testing.assert_array_equal(dx, x > 0)


@pytest.mark.parametrize("ceiling", [None, 6.0])
@pytest.mark.parametrize("dtype", [*DTYPES, "float32"])
def test_rectified_sum_with_several_uses_matches_keras(dtype, ceiling):
    """The sum is computed in float32 and rounded once, as in TensorFlow, for any value and NaN."""
    a, b, *upstream = (
        tf.cast(3 * tf.random.stateless_normal((2, 2**7, 2**9), (i, 0)), dtype) for i in range(4)
    )
    if dtype != "float32":
        numbers = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
        a = np.stack([numbers, np.roll(numbers, 999)]).reshape(a.shape)
        a = tf.constant(np.where(np.abs(a.astype("f4")) < 2e-38, 0, a))  # as TensorFlow's ReLU does
    layer = keras.layers.ReLU(ceiling, dtype=dtype)

    @tf.function
    def graph(by_keras):
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            x = a + b
            ys = [layer(x)] * 2 if by_keras else rectified(layer, x, [a, b], 2)
        return *ys, *tape.gradient(ys, [a, b], upstream)

    for ours, theirs in zip(graph(False), graph(True), strict=True):
        ours, theirs = (tf.cast(value, "float32").numpy() for value in (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (keras.layers.ReLU(), True),
        (keras.layers.ReLU(6), True),
        (keras.layers.ReLU(1.0), False),
        (keras.layers.ReLU(negative_slope=0.1), False),
        (keras.layers.ReLU(threshold=0.5), False),
        (keras.layers.LeakyReLU(), False),
        (type("Own", (keras.layers.ReLU,), {})(), False),
    ],
)
def test_only_plain_relus_are_rectifiers(layer, wanted):
    assert is_rectifier(layer) == wanted


@pytest.fixture
def mixed_bfloat16():
    """Let new layers compute in bfloat16."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("count", slow_except([2], [1, 2]))
def test_network_matches_keras(count, normalized, monkeypatch, mixed_bfloat16):
    """TensorFlow computes the ReLU of a convolution, because it fuses the two."""
    monkeypatch.setattr(_compiled, "WORTHWHILE", 1)
    shape = (8, 8, 3)
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(4, 3, use_bias=not normalized)(inputs)
    x = BatchNormalization()(x) if normalized else x
    x = keras.layers.ReLU()(x)
    y = keras.layers.Conv2D(4, 3, padding="same", use_bias=not normalized)(x)
    y = BatchNormalization()(y) if normalized else y
    model = keras.Model(inputs, keras.layers.ReLU(6.0)(keras.layers.Add()([x, y])))
    images = tf.random.stateless_normal((4, *shape), (0, 0))
    dy = tf.cast(tf.random.stateless_normal((4, 6, 6, 4), (1, 0)), "bfloat16")
    ours = run_traced(lambda x: forward(model, x, count, training=True), images, dy)
    theirs = run_traced(lambda x: model(x, training=True), images, dy)
    assert ("Relu" in ours[2], "Relu6" in ours[2]) == (not normalized, not normalized)
    assert "ReluGrad" not in ours[2]
    # XLA adds up the gradients of the tensor that the second convolution and the sum use.
    assert "AddN" not in ours[2]
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), atol=0.02)


@pytest.mark.parametrize(
    ("layer", "taken"),
    [
        (lambda: Conv2D(4, 3), True),
        (lambda: Conv2D(4, 1), False),  # a matrix product
        (lambda: DepthwiseConv2D(3), False),  # computed in float32, then rounded
    ],
    ids=["3x3", "1x1", "depthwise"],
)
def test_only_convolutions_fuse_bias_and_relu(layer, taken, monkeypatch, mixed_bfloat16):
    monkeypatch.setattr(_compiled, "WORTHWHILE", 1)
    inputs = keras.Input((8, 8, 4))
    outputs = keras.layers.ReLU(6.0)(layer()(inputs))
    model = keras.Model(inputs, outputs)
    images = 9 * tf.random.stateless_normal((4, 8, 8, 4), (0, 0))
    dy = tf.cast(tf.random.stateless_normal((4, *outputs.shape[1:]), (1, 0)), "bfloat16")
    ours = run_traced(lambda x: forward(model, x, 2, training=True), images, dy)
    theirs = run_traced(lambda x: model(x, training=True), images, dy)
    assert ("Relu6" in ours[2]) == taken
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), rtol=0.02, atol=0.02)


def network(name):
    """A network whose tensors are used more often, or otherwise, than in a block."""
    inputs = keras.Input((8, 8, 4))
    relu, add = keras.layers.ReLU(), keras.layers.Add()
    if name == "an output used within, and more than once":
        x = relu(inputs)
        return keras.Model(inputs, [x, add([x, keras.layers.Conv2D(4, 1)(x)]), x])
    if name == "a layer called twice":
        return keras.Model(inputs, relu(add([inputs, relu(add([inputs, inputs]))])))
    if name == "a sum used twice":
        x = add([inputs, keras.layers.Conv2D(4, 1)(inputs)])
        y = keras.layers.Conv2D(4, 1)(relu(x))
        return keras.Model(inputs, keras.layers.Add()([x, y]))
    if name == "a sum of three":
        x = keras.layers.Conv2D(4, 1)(inputs)
        return keras.Model(inputs, relu(add([inputs, x, inputs])))
    if name == "a sum with itself":
        x = keras.layers.ReLU()(inputs)
        return keras.Model(inputs, relu(add([x, x])))
    assert name == "a sum of two shapes"
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    return keras.Model(inputs, relu(add([inputs, x])))


@pytest.mark.parametrize("count", slow_except([2], [1, 2]))
@pytest.mark.parametrize(
    "name",
    [
        "an output used within, and more than once",
        "a layer called twice",
        "a sum used twice",
        "a sum of three",
        "a sum with itself",
        "a sum of two shapes",
    ],
)
def test_networks_with_unusual_uses_match_keras(name, count, monkeypatch, mixed_bfloat16):
    monkeypatch.setattr(_compiled, "WORTHWHILE", 1)
    # Fixed weights: with others, a sum may lie where half precision rounds either way.
    keras.utils.set_random_seed(0)
    model = network(name)
    images = tf.random.stateless_normal((4, 8, 8, 4), (0, 0))

    @tf.function
    def graph(images, by_keras):
        with tf.GradientTape() as tape:
            tape.watch(images)
            if by_keras:
                outputs = model(images, training=True)
            else:
                outputs = forward(model, images, count, training=True)
        outputs = keras.tree.flatten(outputs)
        return *outputs, tape.gradient(outputs, images, [x + 1 for x in outputs])

    for ours, theirs in zip(graph(images, False), graph(images, True), strict=True):
        ours, theirs = (tf.cast(value, "float32").numpy() for value in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.05)
