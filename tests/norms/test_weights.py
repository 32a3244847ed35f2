"""The weight parametrizations against float64 formulas, finite differences and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from normbench import norms
from normbench.kernels import compile as _compiled
from normbench.kernels.filters import standardize_filters
from normbench.norms.weights import ParametrizedConv2D
from tests.marks import slow_except_on_jax

NAMES = ("WS", "ScaledWS", "WN", "CWN", "SN")
CLASSES = {
    "WS": norms.WeightStandardization,
    "ScaledWS": norms.ScaledWeightStandardization,
    "WN": norms.WeightNormalization,
    "CWN": norms.CenteredWeightNormalization,
    "SN": norms.SpectralNormalization,
}
SHAPES = [(3, 2, 3, 4), (1, 1, 130, 2), (3, 3, 1, 1)]
DEPTHWISE_SHAPES = [(3, 2, 3, 2), (5, 3, 1, 1)]
CASES = [
    *((shape, False, "float32") for shape in SHAPES),
    *((shape, True, "float32") for shape in DEPTHWISE_SHAPES),
    (SHAPES[0], False, "mixed_float16"),
    (DEPTHWISE_SHAPES[0], True, "mixed_bfloat16"),
]


# --- the reference, in float64 --------------------------------------------------------------------


def matrix(kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    return kernel.reshape(-1, np.prod(kernel.shape[-2:]) if depthwise else kernel.shape[-1])


def ws(k: np.ndarray) -> np.ndarray:
    return (k - k.mean(0)) / np.sqrt(k.var(0) + 1e-5)


def scaled_ws(k: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return 1.3 * gain * (k - k.mean(0)) / np.sqrt(np.maximum(k.var(0) * len(k), 1e-4))


def wn(k: np.ndarray, g: np.ndarray) -> np.ndarray:
    return g * k / np.linalg.norm(k, axis=0)


def cwn(k: np.ndarray, g: np.ndarray) -> np.ndarray:
    return wn(k - k.mean(0), g)


def power_iteration(kernel: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run one step in each block; u is (blocks, rows). Return the new u, and v (blocks, K)."""
    blocks = kernel.reshape(-1, *u.shape).transpose(1, 2, 0)
    v = np.einsum("brk,br->bk", blocks, u)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    u = np.einsum("brk,bk->br", blocks, v)
    return u / np.linalg.norm(u, axis=1, keepdims=True), v


def reference(name: str, layer: Any, depthwise: bool) -> Callable[..., np.ndarray]:
    """The map from stored kernel and gain to effective kernel, with fixed statistics of SN."""
    if name == "SN":
        (u,) = (np.asarray(w, "f8") for w in layer.non_trainable_weights)
        u, v = power_iteration(np.asarray(layer.kernel, "f8"), u)

        def divided(kernel: np.ndarray) -> np.ndarray:
            blocks = kernel.reshape(-1, *u.shape).transpose(1, 2, 0)
            return kernel / np.einsum("br,brk,bk->b", u, blocks, v).max()

        return divided
    function = {"WS": ws, "ScaledWS": scaled_ws, "WN": wn, "CWN": cwn}[name]
    return lambda kernel, *gain: function(matrix(kernel, depthwise), *gain).reshape(kernel.shape)


def convolve(x: np.ndarray, kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    if depthwise:
        out = np.einsum("nhwcij,ijcm->nhwcm", windows, kernel)
        return out.reshape(*out.shape[:3], -1)
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel)


def difference_gradients(function: Callable[..., float], values: list[np.ndarray]) -> list[Any]:
    """Gradients by central differences."""
    gradients = []
    for position, value in enumerate(values):
        gradient = np.zeros_like(value)
        step = 1e-5 * max(1e-3, float(np.abs(value).mean()))
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[position][index] += sign * step
                ends.append(function(*moved))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


# --- the layers -----------------------------------------------------------------------------------


def make(name: str, shape: tuple[int, ...], depthwise: bool, seed: int = 0, **options: Any) -> Any:
    """A built layer whose random weights a float64 reference can read without rounding."""
    if name == "ScaledWS":
        options["gamma"] = 1.3
    kind = getattr(norms, f"{name}{'Depthwise' if depthwise else ''}Conv2D")
    width = {"depth_multiplier": shape[-1]} if depthwise else {"filters": shape[-1]}
    layer = kind(kernel_size=shape[:2], use_bias=False, name="layer", **width, **options)
    layer.build((None, 7, 6, shape[2]))
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(random.normal(0.3, 1, weight.shape).astype("f4"))
    return layer


def with_gradients(layer: Any, x: np.ndarray, weights: np.ndarray) -> tuple[Any, list[Any]]:
    """The layer's output in training and the gradients of its weighted sum, as float64."""
    x = ops.cast(x, layer.compute_dtype)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            outputs = layer(x, training=True)
            loss = ops.sum(ops.cast(outputs, "float32") * weights)
        gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    else:
        import jax

        fixed = [v.value for v in layer.non_trainable_variables]

        def loss_of(values: Any) -> Any:
            outputs, _ = layer.stateless_call(values, fixed, x, training=True)
            return ops.sum(ops.cast(outputs, "float32") * weights), outputs

        values = [v.value for v in layer.trainable_variables]
        gradients, outputs = jax.jit(jax.grad(loss_of, has_aux=True))(values)
    return np.asarray(ops.cast(outputs, "float32"), "f8"), [np.asarray(g, "f8") for g in gradients]


@pytest.mark.parametrize(
    ("shape", "depthwise", "policy"), slow_except_on_jax((CASES[0], CASES[3], CASES[-1]), CASES)
)
@pytest.mark.parametrize("name", slow_except_on_jax(("WS", "WN", "SN"), NAMES))
def test_outputs_and_gradients_match_the_formula(
    name: str, shape: tuple[int, ...], depthwise: bool, policy: str
) -> None:
    layer = make(name, shape, depthwise, dtype=policy)
    random = np.random.default_rng(1)
    x = random.normal(size=(1 if shape[2] == 130 else 2, 7, 6, shape[2])).astype("f4")
    values = [np.asarray(v, "f8") for v in layer.trainable_variables]
    mapped = reference(name, layer, depthwise)
    expected = convolve(x.astype("f8"), mapped(*values), depthwise)
    weights = random.normal(size=expected.shape).astype("f4")
    outputs, gradients = with_gradients(layer, x, weights)

    tolerance = {"float32": 2e-5, "mixed_bfloat16": 5e-2, "mixed_float16": 8e-3}[policy]
    assert layer.kernel.dtype == "float32"
    np.testing.assert_allclose(outputs, expected, atol=tolerance * np.abs(expected).max())
    numeric = difference_gradients(
        lambda *v: float((convolve(x.astype("f8"), mapped(*v), depthwise) * weights).sum()), values
    )
    for gradient, expected in zip(gradients, numeric, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("name", ["WS", "ScaledWS", "CWN"])
def test_large_means_lose_little_precision(name: str, depthwise: bool) -> None:
    layer = make(name, (3, 3, 4, 2), depthwise)
    kernel = np.random.default_rng(2).normal(1e3, 1, layer.kernel.shape).astype("f4")
    layer.kernel.assign(kernel)
    gains = [np.asarray(v, "f8") for v in layer.trainable_variables[1:]]
    expected = reference(name, layer, depthwise)(kernel.astype("f8"), *gains)
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(mapped, expected, atol=2e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX compiles all alike")
@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (1, 1, 2048, 32), (3, 3, 7, 600)], ids=str)
def test_large_kernels_are_standardized_by_compiled_code(
    shape: tuple[int, ...], mean: float
) -> None:
    import tensorflow as tf

    assert np.prod(shape) >= _compiled.WORTHWHILE
    random = np.random.default_rng(3)
    kernel, dy = (
        matrix(random.normal(m, 1, shape).astype("f4"), depthwise=False) for m in (mean, 0)
    )
    tensor = tf.constant(kernel)
    before = _compiled._graph.cache_info()
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = standardize_filters(tensor, 1e-5)
    dw = tape.gradient(y, tensor, dy)
    after = _compiled._graph.cache_info()
    assert after.hits + after.misses == before.hits + before.misses + 2  # forward, backward
    w, upstream = kernel.astype("f8"), dy.astype("f8")
    inverse = 1 / np.sqrt(w.var(0) + 1e-5)
    expected = (w - w.mean(0)) * inverse
    expected_dw = upstream - upstream.mean(0) - expected * (upstream * expected).mean(0)
    tolerance = 4e-4 if mean else 2e-6  # 1000 is rounded to within 6e-5
    np.testing.assert_allclose(y, expected, atol=tolerance)
    np.testing.assert_allclose(dw, expected_dw * inverse, atol=tolerance)


@pytest.mark.parametrize(
    ("value", "depthwise"),
    slow_except_on_jax([(0.25, False)], [(0.0, False), (0.25, False), (0.25, True)]),
)
@pytest.mark.parametrize("name", NAMES)
def test_constant_kernels_give_no_nan(name: str, value: float, depthwise: bool) -> None:
    layer = make(name, (3, 3, 4, 2), depthwise)
    layer.kernel.assign(np.full(layer.kernel.shape, value, "f4"))
    x = np.ones((2, 7, 6, 4), "f4")
    outputs, gradients = with_gradients(layer, x, np.ones((2, 5, 4, 8 if depthwise else 2), "f4"))
    assert np.isfinite(outputs).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("depthwise", [False, True])
def test_filters_with_deviation_1e_6_are_still_scaled(depthwise: bool) -> None:
    layer = make("WN", (3, 3, 4, 2), depthwise)
    kernel = np.random.default_rng(3).normal(0, 1e-6, layer.kernel.shape).astype("f4")
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(kernel)), "f8")
    gain = np.asarray(layer.trainable_variables[1], "f8")
    np.testing.assert_allclose(
        np.linalg.norm(matrix(mapped, depthwise), axis=0), np.abs(gain), rtol=1e-5
    )


# --- defining properties --------------------------------------------------------------------------


def effective_kernel(name: str, kernel: np.ndarray, depthwise: bool = False, **options: Any) -> Any:
    layer = make(name, kernel.shape, depthwise, **options)
    mapped = layer.parametrization(ops.convert_to_tensor(kernel), training=True)
    return np.asarray(mapped, "f8")


kernels = st.builds(
    lambda shape, seed: np.random.default_rng(seed).normal(size=shape).astype("f4"),
    st.sampled_from([(3, 3, 2, 3), (1, 2, 4, 1)]),
    st.integers(0, 2**16),
)


@settings(max_examples=8, deadline=None)
@given(kernels, st.floats(0.5, 20), st.floats(-5, 5), st.booleans())
def test_ws_ignores_shift_and_scale_of_a_filter(
    kernel: np.ndarray, scale: float, shift: float, depthwise: bool
) -> None:
    if matrix(kernel, depthwise).var(0).min() < 0.05:
        return  # epsilon matters there
    for name in ("WS", "ScaledWS", "CWN"):
        standard = effective_kernel(name, kernel, depthwise)
        moved = effective_kernel(name, (kernel * scale + shift).astype("f4"), depthwise)
        np.testing.assert_allclose(moved, standard, atol=3e-3 if name == "WS" else 1e-4)
        np.testing.assert_allclose(matrix(standard, depthwise).mean(0), 0, atol=1e-5)
    filters = matrix(effective_kernel("WS", kernel, depthwise), depthwise)
    np.testing.assert_allclose((filters**2).mean(0), 1, atol=1e-3)


@settings(max_examples=8, deadline=None)
@given(kernels, st.floats(0.01, 100))
def test_wn_and_sn_ignore_the_scale_of_the_kernel(kernel: np.ndarray, scale: float) -> None:
    for name in ("WN", "SN"):
        scaled = effective_kernel(name, (kernel * scale).astype("f4"))
        np.testing.assert_allclose(scaled, effective_kernel(name, kernel), atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_sn_divides_by_the_largest_singular_value_of_the_blocks(groups: int) -> None:
    layer = norms.SNConv2D(6, 3, groups=groups, iterations=8)
    layer.build((None, 8, 8, 4))
    random = np.random.default_rng(4)
    # One filter per block is far longer than the others, so that few steps suffice.
    lengths = np.array([1, 1, 4, 1, 1, 16], "f4")
    kernel = random.normal(size=layer.kernel.shape).astype("f4") * lengths
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(kernel), training=True))
    blocks = np.split(matrix(kernel.astype("f8"), False), groups, axis=1)
    sigma = max(np.linalg.svd(block, compute_uv=False)[0] for block in blocks)
    np.testing.assert_allclose(mapped, kernel / sigma, rtol=1e-4, atol=1e-6)
    depthwise = random.normal(size=(3, 3, 4, 2)).astype("f4") * np.array([1, 8], "f4")
    sigma = max(
        np.linalg.svd(depthwise[:, :, c].reshape(9, 2).astype("f8"))[1][0] for c in range(4)
    )
    np.testing.assert_allclose(
        effective_kernel("SN", depthwise, True, iterations=8), depthwise / sigma, rtol=1e-4
    )


def test_sn_updates_u_in_training_only() -> None:
    layer = make("SN", (3, 3, 2, 4), False)
    x = np.ones((1, 5, 5, 2), "f4")
    before = np.asarray(layer.non_trainable_weights[0])
    first, second = np.asarray(layer(x)), np.asarray(layer(x))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.asarray(layer.non_trainable_weights[0]), before)
    layer(x, training=True)
    u, _ = power_iteration(np.asarray(layer.kernel, "f8"), before.astype("f8"))
    np.testing.assert_allclose(np.asarray(layer.non_trainable_weights[0]), u, atol=1e-6)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("name", ["WN", "CWN"])
def test_initial_gain_gives_the_stored_kernel(name: str, depthwise: bool) -> None:
    kind = getattr(norms, f"{name}{'Depthwise' if depthwise else ''}Conv2D")
    layer = kind(**({} if depthwise else {"filters": 4}), kernel_size=3)
    layer.build((None, 8, 8, 3))
    kernel = np.asarray(layer.kernel, "f8")
    if name == "CWN":
        kernel = kernel - kernel.mean((0, 1) if depthwise else (0, 1, 2))
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(layer.kernel)))
    np.testing.assert_allclose(mapped, kernel, atol=1e-6)


def test_scaled_ws_preserves_the_variance_after_a_relu() -> None:
    random = np.random.default_rng(6)
    x = np.maximum(random.normal(size=(16, 8, 8, 64)), 0).astype("f4")
    layer = norms.ScaledWSConv2D(64, 3, gamma=1.7139)
    assert np.var(np.asarray(layer(x))) == pytest.approx(1, rel=0.1)


# --- other libraries ------------------------------------------------------------------------------


def test_wn_matches_pytorch() -> None:
    torch = pytest.importorskip("torch")
    layer = make("WN", (3, 3, 2, 4), False)
    kernel, gain = (np.asarray(v) for v in layer.trainable_variables)
    linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 4, 3, bias=False))
    stored = linear.parametrizations.weight
    stored.original1.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    stored.original0.data = torch.tensor(gain.reshape(4, 1, 1, 1))
    mapped = np.asarray(layer.parametrization(ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(
        mapped, linear.weight.detach().numpy().transpose(2, 3, 1, 0), atol=1e-6
    )


def test_sn_matches_pytorch_after_convergence() -> None:
    torch = pytest.importorskip("torch")
    kernel = np.random.default_rng(7).normal(size=(3, 3, 2, 4)).astype("f4")
    conv = torch.nn.Conv2d(2, 4, 3, bias=False)
    conv.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    normed = torch.nn.utils.parametrizations.spectral_norm(conv, n_power_iterations=200)
    wanted = normed.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(
        effective_kernel("SN", kernel, iterations=100), wanted, rtol=1e-4, atol=1e-6
    )


def test_sn_matches_keras_after_one_step() -> None:
    ours = make("SN", (3, 3, 2, 4), False)
    kernel = np.asarray(ours.kernel)
    inner = keras.layers.Conv2D(4, 3, use_bias=False)
    theirs = keras.layers.SpectralNormalization(inner)
    theirs.build((None, 6, 6, 2))
    inner.kernel.assign(kernel)
    theirs.vector_u.assign(np.asarray(ours.non_trainable_weights[0]))
    theirs(np.ones((1, 6, 6, 2), "f4"), training=True)
    mapped = np.asarray(ours.parametrization(ops.convert_to_tensor(kernel), training=True))
    np.testing.assert_allclose(mapped, np.asarray(inner.kernel), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(ours.kernel), kernel)  # Keras overwrites its own


# --- as layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depthwise", slow_except_on_jax([True], [False, True]))
@pytest.mark.parametrize("name", slow_except_on_jax(["SN", "WS"], [*NAMES, "WSAssign"]))
def test_saves_and_loads(name: str, depthwise: bool, tmp_path: Path) -> None:
    kind = getattr(norms, f"{name}{'Depthwise' if depthwise else ''}Conv2D")
    layer = kind(**({} if depthwise else {"filters": 6}), kernel_size=3, strides=2, padding="same")
    model = keras.Sequential([keras.Input((5, 6, 4)), layer])
    x = np.random.default_rng(8).normal(size=(2, 5, 6, 4)).astype("f4")
    model(x, training=True)
    for weight in layer.weights:
        weight.assign(np.asarray(weight) + 0.25)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is kind
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))


def test_public_layers_take_the_options_of_their_parametrization() -> None:
    layer = norms.SNConv2D(4, 3, iterations=3)
    assert layer.parametrization.iterations == 3
    assert norms.SNConv2D.from_config(layer.get_config()).parametrization.iterations == 3
    for name in NAMES:
        parametrization = CLASSES[name]()
        again = CLASSES[name].from_config(parametrization.get_config())
        assert again.get_config() == parametrization.get_config()
    with pytest.raises(TypeError, match="WSConv2D takes no parametrization"):
        norms.WSConv2D(4, 3, parametrization=norms.WeightStandardization())


def test_bias_and_activation_match_keras() -> None:
    x = np.random.default_rng(9).normal(size=(1, 6, 6, 2)).astype("f4")
    layer = norms.WSConv2D(4, 3, activation="relu", bias_initializer="ones")
    outputs = np.asarray(layer(x))
    plain = keras.layers.Conv2D(4, 3, activation="relu", bias_initializer="ones")
    plain.build(x.shape)
    plain.kernel.assign(layer.parametrization(ops.convert_to_tensor(layer.kernel)))
    np.testing.assert_allclose(outputs, np.asarray(plain(x)), atol=1e-6)


def test_invalid_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="filters of one weight each"):
        norms.WSConv2D(4, 1).build((None, 8, 8, 1))
    with pytest.raises(ValueError, match="filters of one weight each"):
        norms.ScaledWSDepthwiseConv2D(1).build((None, 8, 8, 3))
    with pytest.raises(ValueError, match="iterations must be a whole number of at least 1, got 0"):
        norms.SpectralNormalization(0)
    with pytest.raises(TypeError, match="must be a WeightParametrization, got 3"):
        ParametrizedConv2D(4, 3, parametrization=3)
