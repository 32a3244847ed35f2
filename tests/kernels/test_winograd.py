"""Winograd convolutions against float64 formulas, and the layers that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from normbench import norms
from normbench.kernels import winograd
from normbench.kernels.compile import on_cpu
from normbench.norms.convolution import Conv2D
from tests.marks import slow, slow_except
from tests.norms.conftest import FLOAT32_ROUNDINGS

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="other backends compile their own convolutions"
)

SHAPES = [  # images, height, width, channels, filters
    (2, 6, 8, 5, 3),
    (1, 7, 5, 4, 6),
    (3, 3, 4, 1, 2),
    (1, 3, 3, 130, 1),
    (5, 12, 3, 2, 7),
]
DISTRIBUTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ordinary": lambda x: x,
    "far": lambda x: x + 1000,
    "tiny": lambda x: 1e-6 * x,
}


def draw(
    shape: tuple[int, ...], padding: str = "same", distribution: str = "ordinary"
) -> list[np.ndarray]:
    """Inputs, a kernel and gradients of the outputs, float32."""
    n, height, width, channels, filters = shape
    lost = 0 if padding == "same" else 2
    random = np.random.default_rng(0)
    x = DISTRIBUTIONS[distribution](random.normal(size=(n, height, width, channels)))
    kernel = random.normal(size=(3, 3, channels, filters))
    dy = random.normal(size=(n, height - lost, width - lost, filters))
    return [array.astype(np.float32) for array in (x, kernel, dy)]


def formula(x: Any, kernel: Any, dy: Any, padding: str) -> list[np.ndarray]:
    """Outputs, and the gradients of inputs and kernel, in float64."""
    x, kernel, dy = (np.asarray(array, "f8") for array in (x, kernel, dy))
    edge = 1 if padding == "same" else 0
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    y, dx, d_kernel = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    height, width = dy.shape[1:3]
    for i in range(3):
        for j in range(3):
            window = np.s_[:, i : i + height, j : j + width]
            y += padded[window] @ kernel[i, j]
            dx[window] += dy @ kernel[i, j].T
            d_kernel[i, j] = np.einsum("nhwc,nhwf->cf", padded[window], dy)
    return [y, dx[:, edge : edge + x.shape[1], edge : edge + x.shape[2]], d_kernel]


def run(convolve: Callable[[Any, Any], Any], *arrays: Any, graph: bool = True) -> list[np.ndarray]:
    """Outputs and both gradients of a function of inputs and kernel."""
    import tensorflow as tf

    def outputs_and_gradients(x: Any, kernel: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel)
        return [y, *tape.gradient(y, [x, kernel], dy)]

    function = (
        tf.function(outputs_and_gradients, autograph=False) if graph else outputs_and_gradients
    )
    return [result.numpy() for result in function(*map(tf.constant, arrays))]


def by_winograd(padding: str) -> Callable[[Any, Any], Any]:
    return lambda x, kernel: winograd.convolved(x, winograd.transformed(kernel), padding)


@tensorflow_only
@pytest.mark.parametrize(
    ("mode", "distribution"),
    slow_except(  # mostly eager, because a graph takes a second to compile
        [("graph", "far"), *(("eager", name) for name in DISTRIBUTIONS)],
        [(mode, name) for mode in ("graph", "eager") for name in DISTRIBUTIONS],
    ),
)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "shape", [slow(shape) if shape != SHAPES[1] else shape for shape in SHAPES], ids=str
)
def test_outputs_and_gradients_match_the_formula(
    shape: tuple[int, ...], padding: str, distribution: str, mode: str
) -> None:
    arrays = draw(shape, padding, distribution)
    magnitudes = formula(*map(np.abs, arrays), padding)
    wanted = formula(*arrays, padding)
    values = run(by_winograd(padding), *arrays, graph=mode == "graph")
    for value, expected, magnitude in zip(values, wanted, magnitudes, strict=True):
        assert value.shape == expected.shape
        assert value.dtype == np.float32
        # Values of a tile are mixed, so rounding is relative to the largest.
        allowed = FLOAT32_ROUNDINGS * 2.0**-23 * magnitude.max()
        assert np.abs(value - expected).max() <= allowed


@tensorflow_only
@pytest.mark.parametrize("size", [1, 2])
def test_images_may_be_smaller_than_a_padded_kernel(size: int) -> None:
    arrays = draw((2, size, size, 3, 4))
    for value, wanted in zip(
        run(by_winograd("same"), *arrays), formula(*arrays, "same"), strict=True
    ):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@tensorflow_only
@pytest.mark.parametrize("distribution", ["ordinary", "far"])
def test_rounding_error_is_at_most_that_of_tensorflow(distribution: str) -> None:
    from tensorflow.python.util import _pywrap_util_port  # TensorFlow 2.21

    if not _pywrap_util_port.IsMklEnabled():
        pytest.skip("TensorFlow convolves without oneDNN on this processor, and rounds otherwise")
    import tensorflow as tf

    arrays = draw((4, 16, 16, 128, 128), distribution=distribution)
    wanted = formula(*arrays, "same")

    def error(values: list[np.ndarray]) -> np.ndarray:
        return np.array(
            [
                np.sqrt(np.mean((one - other) ** 2))
                for one, other in zip(values, wanted, strict=True)
            ]
        )

    theirs = error(run(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), *arrays))
    # TensorFlow adds up the kernel's gradient image by image: its error grows with their number.
    assert (error(run(by_winograd("same"), *arrays)) <= theirs * [1, 1, 5]).all()


@tensorflow_only
def test_results_are_bitwise_reproducible() -> None:
    arrays = draw((8, 8, 8, 128, 128))
    first, again = (run(by_winograd("same"), *arrays) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@tensorflow_only
def test_second_derivatives_match_keras() -> None:
    import tensorflow as tf

    arrays = [tf.constant(array) for array in draw((2, 5, 4, 3, 2))]

    def second(convolve: Callable[[Any, Any], Any]) -> list[Any]:
        x, kernel, dy = arrays
        with tf.GradientTape() as outer:
            outer.watch(arrays)
            with tf.GradientTape() as inner:
                inner.watch([x, kernel])
                y = convolve(x, kernel) ** 2
            first = inner.gradient(y, [x, kernel], dy)
            length = sum(tf.reduce_sum(tf.sin(gradient)) for gradient in first)
        return outer.gradient(length, arrays)

    theirs = second(lambda x, kernel: ops.conv(x, kernel, padding="same"))
    for ours, other in zip(second(by_winograd("same")), theirs, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-3)


LARGE = (8, 16, 16, 128)


def pays(layer: Any, x: Any) -> bool:
    """Return whether a built layer convolves ``x`` by Winograd's algorithm."""
    x = ops.zeros(x.shape, layer.compute_dtype) if None not in x.shape else x
    return winograd.pays(x, tuple(layer.kernel.shape), **layer.conv_options())


def layer_for(shape: tuple[int, ...], kind: Any = Conv2D, **options: Any) -> Any:
    """A built layer, 128 filters of 3×3 by default."""
    options = {"filters": 128, "kernel_size": 3, "padding": "same", **options}
    layer = kind(**options)
    layer.build(shape)
    return layer


def test_some_layers_of_64_channels_use_winograd() -> None:
    shape = (8, 16, 16, 64)
    assert pays(layer_for(shape, filters=64), ops.zeros(shape)) == on_cpu()


@pytest.mark.parametrize("kind", [Conv2D, norms.WSConv2D, norms.WNConv2D])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_large_layers_use_winograd_on_a_cpu_under_tensorflow(kind: Any, padding: str) -> None:
    layer = layer_for(LARGE, kind, padding=padding)
    assert pays(layer, ops.zeros(LARGE)) == on_cpu()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 4, 4, 128), {}),  # too little to do
        ((2, 4, 4, 1024), {"filters": 1024}),  # too few positions for a matrix product
        ((64, 32, 32, 64), {"filters": 64}),  # transforms do not fit in the cache
        ((64, 8, 8, 64), {"filters": 64}),  # edges are a large part
        ((64, 32, 32, 32), {}),  # too few channels
        ((64, 32, 32, 128), {"filters": 32}),
        (LARGE, {"kernel_size": 1}),
        (LARGE, {"kernel_size": (3, 5)}),
        (LARGE, {"strides": 2}),
        (LARGE, {"dilation_rate": 2}),
        (LARGE, {"groups": 2}),
        (LARGE, {"dtype": "mixed_bfloat16"}),
        (LARGE, {"dtype": "float64"}),
        ((8, 128, 16, 16), {"data_format": "channels_first"}),
        ((128, 2, 8, 128), {"padding": "valid", "data_format": "channels_last"}),
    ],
    ids=str,
)
def test_other_layers_do_not_use_winograd(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    built = tuple(3 if options.get("padding") == "valid" else size for size in shape[1:-1])
    layer = layer_for((shape[0], *built, shape[-1]), **options)
    assert not pays(layer, ops.zeros(shape))


def test_unknown_batch_sizes_and_depthwise_layers_do_not_use_winograd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not pays(layer_for(LARGE), keras.KerasTensor((None, *LARGE[1:])))
    monkeypatch.setattr(winograd, "transformed", lambda kernel: pytest.fail("used Winograd"))
    norms.WSDepthwiseConv2D(3, padding="same")(ops.zeros(LARGE))


@tensorflow_only
def test_functions_compiled_by_xla_do_not_use_winograd() -> None:
    import tensorflow as tf

    layer = layer_for(LARGE)
    taken = []

    @tf.function(jit_compile=True)
    def function(x: Any) -> Any:
        taken.append(pays(layer, x))
        return x

    function(tf.zeros(LARGE))
    assert taken == [False]


@tensorflow_only
@pytest.mark.parametrize("padding", slow_except(["valid"], ["same", "valid"]))
def test_layer_matches_keras_with_and_without_shards(padding: str) -> None:
    import tensorflow as tf

    shape = (17, 9, 8, 128)
    options = {"padding": padding, "activation": "relu"}
    ours = layer_for(shape, **options)
    theirs = layer_for(shape, keras.layers.Conv2D, **options)
    random = np.random.default_rng(0)
    for weight, other in zip(ours.weights, theirs.weights, strict=True):
        value = random.normal(size=weight.shape) / 30
        weight.assign(value)
        other.assign(value)
    x = tf.constant(random.normal(size=shape), tf.float32)

    from normbench.engine.shards import shard_function

    def of(layer: Any, call: Callable[[Any], Any]) -> list[Any]:
        weights = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
            loss = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(loss, [x, *weights])]

    wanted = of(theirs, theirs)
    in_shards = lambda x: tf.concat(shard_function(ours)(ours, tf.split(x, [8, 9]), False), 0)  # noqa: E731
    assert pays(ours, x)
    for values in (of(ours, ours), of(ours, in_shards)):
        for value, other in zip(values, wanted, strict=True):
            # Rounding may carry a few values over a ReLU's corner.
            np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-4)


@tensorflow_only
@pytest.mark.parametrize("kind", [Conv2D, norms.WSConv2D])
def test_shards_share_the_transformed_kernel(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from normbench.engine.shards import shard_function

    counted = []
    original = winograd.transformed
    monkeypatch.setattr(
        winograd, "transformed", lambda kernel: counted.append(1) or original(kernel)
    )
    layer = layer_for(LARGE, kind)
    assert len(shard_function(layer)(layer, [ops.ones(LARGE), ops.ones(LARGE)], False)) == 2
    assert len(counted) == 1
