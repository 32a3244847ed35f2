"""Group, Layer and Instance Normalization."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.kernels import compile as _compiled
from normbench.norms import GroupNormalization, InstanceNormalization, LayerNormalization
from tests.marks import slow, slow_except


def groups_for(channels: int) -> int:
    return 4 if channels % 4 == 0 else 1


def reference(x, groups, gamma, beta, epsilon=1e-5):
    images, channels = x.shape[0], x.shape[-1]
    split = x.reshape(images, -1, groups, channels // groups)
    mean = split.mean(axis=(1, 3), keepdims=True)
    variance = ((split - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    return ((split - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta


def images(seed: int = 0, shape: tuple[int, ...] = (2, 5, 3, 8)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- against the formula ----------------------------------------------------------------------


def test_group(case, check):
    groups = groups_for(case.channels)
    layer = GroupNormalization(groups, epsilon=1e-5, dtype=case.dtype)
    check(layer, lambda x, gamma, beta: reference(x, groups, gamma, beta), case)


def test_layer(case, check):
    layer = LayerNormalization(epsilon=1e-5, dtype=case.dtype)
    check(layer, lambda x, gamma, beta: reference(x, 1, gamma, beta), case)


def test_instance(case, check):
    layer = InstanceNormalization(epsilon=1e-5, dtype=case.dtype)
    check(layer, lambda x, gamma, beta: reference(x, case.channels, gamma, beta), case)


@pytest.mark.parametrize("shape", [(3, 1, 1, 4), (3, 4)])
def test_instance_norm_of_one_position_is_beta(shape, run_layer, randomize):
    layer = InstanceNormalization()
    layer.build(shape)
    randomize(layer)
    x = 1e3 * images(0, shape)
    got = run_layer(layer, x, images(1, shape))
    beta = np.broadcast_to(keras.ops.convert_to_numpy(layer.beta), shape)
    np.testing.assert_allclose(got.outputs, beta, rtol=1e-6)
    np.testing.assert_allclose(got.d_inputs, 0, atol=1e-5)  # where dy·γ/σ is about 60
    np.testing.assert_allclose(got.d_weights["gamma"], 0, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_large_images_lose_no_precision(offset, run_layer):
    """A plain float32 sum of 12,544 values near 1000 gives a mean that is off by 1e-3."""
    x = offset + images(0, (1, 112, 112, 2))
    got = run_layer(GroupNormalization(2, epsilon=1e-5), x)
    expected = reference(x.astype("f8"), 2, 1.0, 0.0)
    np.testing.assert_allclose(got.outputs, expected, rtol=5e-6, atol=5e-6)


def count_compiled_calls() -> int:
    info = _compiled._graph.cache_info()
    return info.hits + info.misses


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX compiles all alike")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("groups", slow_except([4], [1, 4, 16]))
@pytest.mark.parametrize(
    "shape",
    [slow((32, 32, 32, 16)), slow((32, 16, 16, 32)), slow((32, 8, 8, 64)), (32, 9, 9, 32)],
    ids=str,
)
def test_compiled_path_of_large_inputs_matches_single_images(
    shape, groups, dtype, run_layer, randomize
):
    assert np.prod(shape) >= _compiled.WORTHWHILE
    x, upstream = 1000 + images(0, shape), images(1, shape)
    layer = GroupNormalization(groups, epsilon=1e-5, dtype=dtype)
    layer.build(shape)
    randomize(layer)
    before = count_compiled_calls()
    whole = run_layer(layer, x, upstream)
    assert count_compiled_calls() == before + 2  # forward, backward
    assert np.prod(shape[1:]) < _compiled.WORTHWHILE
    parts = [run_layer(layer, x[i : i + 1], upstream[i : i + 1]) for i in range(32)]
    assert count_compiled_calls() == before + 2
    tolerance = 2e-5 if dtype == "float32" else 2e-2
    for field in ("outputs", "d_inputs"):
        expected = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_allclose(getattr(whole, field), expected, rtol=0, atol=tolerance)
    for name, gradient in whole.d_weights.items():
        expected = sum(part.d_weights[name] for part in parts)
        np.testing.assert_allclose(gradient, expected, atol=2e-3)


def test_large_constant_images_give_beta(run_layer):
    got = run_layer(
        GroupNormalization(2, epsilon=1e-5), np.full((1, 112, 112, 4), 1000.1, np.float32)
    )
    np.testing.assert_allclose(got.outputs, 0, atol=1e-3)


# --- against other libraries ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GroupNormalization(4), lambda: keras.layers.GroupNormalization(4)),
        (InstanceNormalization(), lambda: keras.layers.GroupNormalization(-1)),
        (LayerNormalization(), lambda: keras.layers.GroupNormalization(1)),
    ],
    ids=["group", "instance", "layer"],
)
def test_matches_keras_layer(ours, theirs, run_layer, randomize):
    x, upstream = images(), images(1)
    runs = []
    for layer in (ours, theirs()):
        layer.build(x.shape)
        randomize(layer)
        runs.append(run_layer(layer, x, upstream))
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=2e-6)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=5e-6)
    for name, gradient in runs[0].d_weights.items():
        np.testing.assert_allclose(gradient, runs[1].d_weights[name], atol=2e-5)


def test_matches_pytorch_layer(run_layer):
    torch = pytest.importorskip("torch")
    x = images()
    theirs = torch.nn.GroupNorm(4, 8)(torch.tensor(x.transpose(0, 3, 1, 2)))
    got = run_layer(GroupNormalization(4, epsilon=1e-5), x)
    np.testing.assert_allclose(
        got.outputs, theirs.detach().numpy().transpose(0, 2, 3, 1), atol=2e-6
    )


# --- defining properties ----------------------------------------------------------------------

SHARED = {
    "group": GroupNormalization(4, epsilon=0.0),
    "layer": LayerNormalization(epsilon=0.0),
    "instance": InstanceNormalization(epsilon=0.0),
}
"""One layer each for all Hypothesis examples, so that JAX compiles it once."""


@pytest.mark.parametrize("name", SHARED)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-30, 30), factor=st.floats(1, 2))
def test_scale_of_the_input_is_canceled(name, seed, power, factor, run_layer):
    x = images(seed)
    scale = np.float32(factor * 2.0**power)
    plain, scaled = run_layer(SHARED[name], x), run_layer(SHARED[name], scale * x)
    np.testing.assert_allclose(scaled.outputs, plain.outputs, atol=1e-5)
    np.testing.assert_allclose(scale * scaled.d_inputs, plain.d_inputs, atol=1e-4)


@pytest.mark.parametrize("name", SHARED)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-30, 30))
def test_shift_of_the_input_is_canceled(name, seed, shift, run_layer):
    x = images(seed)
    moved = run_layer(SHARED[name], x + np.float32(shift)).outputs
    np.testing.assert_allclose(moved, run_layer(SHARED[name], x).outputs, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
def test_order_of_the_groups_does_not_matter(seed, order, run_layer):
    x = images(seed)
    channels = np.arange(8).reshape(4, 2)[list(order)].ravel()
    outputs = run_layer(SHARED["group"], x).outputs
    np.testing.assert_allclose(
        run_layer(SHARED["group"], x[..., channels]).outputs, outputs[..., channels], atol=1e-6
    )


def test_channels_of_a_group_are_adjacent(run_layer):
    x = images()
    changed = x.copy()
    changed[..., 3] *= 7
    moved = run_layer(SHARED["group"], changed).outputs != run_layer(SHARED["group"], x).outputs
    assert moved[..., 2:4].any(axis=(0, 1, 2)).all()
    assert not moved[..., [0, 1, 4, 5, 6, 7]].any()


# --- options ----------------------------------------------------------------------------------


def test_channels_per_group_is_equivalent_to_groups(run_layer):
    x = images()
    np.testing.assert_array_equal(
        run_layer(GroupNormalization(channels_per_group=2), x).outputs,
        run_layer(GroupNormalization(groups=4), x).outputs,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, r"groups=3 does not divide the 8 channels of .* \(allowed: 1, 2, 4, 8\)"),
        ({"channels_per_group": 3}, "channels_per_group=3 does not divide the 8 channels"),
        ({"groups": 16}, "groups=16 does not divide the 8 channels"),
        ({"groups": 2, "channels_per_group": 4}, "exactly one of groups and channels_per_group"),
        ({"groups": 0}, "groups must be a whole number of at least 1, got 0"),
        ({"groups": 2.0}, "groups must be a whole number of at least 1, got 2.0"),
        ({"groups": 2, "epsilon": -1e-5}, "epsilon must be 0 or more"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroupNormalization(**options).build((None, 4, 4, 8))


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="known channels"):
        LayerNormalization().build((None, 4, 4, None))
