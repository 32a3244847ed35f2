"""Masks: masked positions contribute to no statistic."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import keras
import numpy as np
import pytest

from normbench import norms
from tests.marks import slow, slow_except_on_jax
from tests.norms.conftest import Case, Run, run_layer, state_of
from tests.norms.test_every_layer import NAMES, make

SHAPE = (4, 6, 8)
VALID = np.arange(6) < np.array([[6], [3], [1], [4]])
"""The positions before the padding of 4 sequences: 14 of 24."""
GAPS = np.random.default_rng(0).random((4, 3, 5)) < 0.6
"""The valid pixels of 4 images."""
EPSILON = 1e-5

INPUTS = [
    Case(SHAPE, "float32", ("ordinary", "far")),
    slow(Case(SHAPE, "bfloat16", ("ordinary", "far"))),
    slow(Case(SHAPE, "float16", ("ordinary", "far"))),
]


class Masked(keras.layers.Layer):
    """A layer called with a mask."""

    def __init__(self, layer: Any, mask: np.ndarray) -> None:
        super().__init__(dtype=layer.dtype_policy)
        self.layer = layer
        self.mask = mask
        self.epsilon = layer.epsilon

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        options = {"training": training} if self.layer._call_has_training_arg else {}
        return self.layer(inputs, mask=keras.ops.convert_to_tensor(self.mask), **options)


def masked_run(layer: Any, x: np.ndarray, mask: np.ndarray, training: bool = True) -> Run:
    return run_layer(Masked(layer, mask), x.astype(np.float32), training=training)


# --- references on (N, S, C), float64 or complex ------------------------------------------------


def mean_of(values: Any, axes: tuple[int, ...], valid: Any = VALID) -> Any:
    """The mean over valid positions."""
    weights = np.broadcast_to(valid[..., None], values.shape)
    return (values * weights).sum(axes, keepdims=True) / weights.sum(axes, keepdims=True)


def variance_of(values: Any, axes: tuple[int, ...], valid: Any = VALID) -> Any:
    return mean_of((values - mean_of(values, axes, valid)) ** 2, axes, valid)


def by_batch(x: Any, gamma: Any, beta: Any) -> Any:
    deviation = np.sqrt(variance_of(x, (0, 1)) + EPSILON)
    return (x - mean_of(x, (0, 1))) / deviation * gamma + beta


def by_image(x: Any, gamma: Any = 1.0, beta: Any = 0.0, *, groups: int = 1) -> Any:
    parts = [
        (part - mean_of(part, (1, 2))) / np.sqrt(variance_of(part, (1, 2)) + EPSILON)
        for part in np.split(x, groups, axis=-1)
    ]
    return np.concatenate(parts, axis=-1) * gamma + beta


def centering(x: Any, beta: Any) -> Any:
    return x - mean_of(x, (0, 1)) + beta


def scaling(x: Any, gamma: Any, beta: Any) -> Any:
    return x / np.sqrt(variance_of(x, (0, 1)) + EPSILON) * gamma + beta


def ghost(x: Any, gamma: Any, beta: Any) -> Any:
    sets = []
    for part, valid in zip(np.split(x, 2), np.split(VALID, 2), strict=True):
        deviation = np.sqrt(variance_of(part, (0, 1), valid) + EPSILON)
        sets.append((part - mean_of(part, (0, 1), valid)) / deviation)
    return np.concatenate(sets) * gamma + beta


def batch_channel(x: Any, gamma: Any, beta: Any, group_gamma: Any, group_beta: Any) -> Any:
    z = by_batch(x, gamma, beta)
    return by_image(z, np.repeat(group_gamma, 4), np.repeat(group_beta, 4), groups=2)


def rms(x: Any, gamma: Any, beta: Any) -> Any:
    return x / np.sqrt(mean_of(x**2, (1, 2)) + EPSILON) * gamma + beta


def filter_response(x: Any, gamma: Any, beta: Any, tau: Any, extra_epsilon: Any = 0.0) -> Any:
    epsilon = EPSILON + np.sign(np.real(extra_epsilon)) * extra_epsilon
    y = x / np.sqrt(mean_of(x**2, (1,)) + epsilon) * gamma + beta
    return np.where(np.real(y) > np.real(tau), y, tau + 0 * y)


def evonorm_s0(x: Any, gamma: Any, beta: Any, v: Any) -> Any:
    deviation = np.concatenate(
        [
            np.sqrt(variance_of(part, (1, 2)) + EPSILON) + 0 * part
            for part in np.split(x, 2, axis=-1)
        ],
        axis=-1,
    )
    return x / (1 + np.exp(-v * x)) / deviation * gamma + beta


def evonorm_b0(x: Any, gamma: Any, beta: Any, v: Any) -> Any:
    batch = np.sqrt(variance_of(x, (0, 1)) + EPSILON)
    instance = v * x + np.sqrt(variance_of(x, (1,)) + EPSILON)
    return x / np.where(np.real(instance) > np.real(batch), instance, batch) * gamma + beta


def switchable(x: Any, gamma: Any, beta: Any, mean_logits: Any, variance_logits: Any) -> Any:
    axes = ((1,), (1, 2), (0, 1))
    w, u = (np.exp(logits) / np.exp(logits).sum() for logits in (mean_logits, variance_logits))
    mean = sum(weight * mean_of(x, over) for weight, over in zip(w, axes, strict=True))
    variance = sum(weight * variance_of(x, over) for weight, over in zip(u, axes, strict=True))
    return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta


def whitening(x: Any, gamma: Any, beta: Any) -> Any:
    centered = x - mean_of(x, (0, 1))
    whitened = []
    for part in np.split(centered, 2, axis=-1):
        vectors = part[VALID]
        sigma = vectors.T @ vectors / len(vectors) + EPSILON * np.eye(4)
        scaled, power = sigma / np.trace(sigma), np.eye(4)
        for _ in range(5):
            power = (3 * power - power @ power @ power @ scaled) / 2
        whitened.append(part @ power / np.sqrt(np.trace(sigma)))
    return np.concatenate(whitened, axis=-1) * gamma + beta


def min_max(x: Any, gamma: Any, beta: Any, *, axes: tuple[int, ...]) -> Any:
    valid = np.broadcast_to(VALID[..., None], x.shape)

    def extreme(sign: int) -> Any:
        keys = np.where(valid, sign * np.real(x), -np.inf)
        selected = keys == keys.max(axes, keepdims=True)
        return (x * selected).sum(axes, keepdims=True) / selected.sum(axes, keepdims=True)

    least, most = extreme(-1), extreme(1)
    span = np.where(np.real(most - least) > EPSILON, most - least, EPSILON)
    return (x - least) / span * gamma + beta


REFERENCES: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "bn": (norms.BatchNormalization, {}, by_batch),
    "bn_moments": (norms.MomentsBatchNormalization, {}, by_batch),
    "sync_bn": (norms.SynchronizedBatchNormalization, {}, by_batch),
    "precise_bn": (norms.PreciseBatchNormalization, {}, by_batch),
    "brn": (norms.BatchRenormalization, {}, by_batch),  # in its first step
    "bn_center": (norms.BatchCentering, {"epsilon": None}, centering),
    "bn_var": (norms.BatchScaling, {}, scaling),
    "ghost_bn": (norms.GhostBatchNormalization, {"virtual_batch": 2}, ghost),
    "bcn": (norms.BatchChannelNormalization, {"groups": 2}, batch_channel),
    "gn": (norms.GroupNormalization, {"groups": 2}, partial(by_image, groups=2)),
    "ln": (norms.LayerNormalization, {}, by_image),
    "in": (norms.InstanceNormalization, {}, partial(by_image, groups=8)),
    "rms": (norms.RMSNormalization, {}, rms),
    "frn": (norms.FilterResponseNormalization, {}, filter_response),
    "frn_learned": (norms.FilterResponseNormalization, {"learned_epsilon": True}, filter_response),
    "evonorm_s0": (norms.EvoNormS0, {"groups": 2}, evonorm_s0),
    "evonorm_b0": (norms.EvoNormB0, {}, evonorm_b0),
    "switchable": (norms.SwitchableNormalization, {}, switchable),
    "iternorm": (norms.IterativeNormalization, {"groups": 2}, whitening),
    "minmax": (
        norms.MinMaxNormalization,
        {"center": True, "scale": True},
        partial(min_max, axes=(0, 1, 2)),
    ),
    "minmax_image": (
        norms.ImageMinMaxNormalization,
        {"center": True, "scale": True},
        partial(min_max, axes=(1, 2)),
    ),
}
UNCENTERED = {"bn_moments", "bn_var", "evonorm_b0", "evonorm_s0", "frn", "frn_learned", "rms"}
"""Normalizations with terms proportional to |mean| / deviation, by formula or in TensorFlow."""


QUICK = ("bn", "evonorm_b0", "frn", "gn", "minmax")
"""Normalizations tested on JAX, which compiles each one, by default."""


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("name", slow_except_on_jax(QUICK, REFERENCES))
def test_statistics_cover_valid_positions_only(name, inputs, check):
    kind, options, reference = REFERENCES[name]
    options = {"epsilon": EPSILON, "dtype": inputs.dtype, **options}
    layer = kind(**{key: value for key, value in options.items() if value is not None})
    if name in UNCENTERED:
        inputs = Case(inputs.shape, inputs.dtype)
    check(Masked(layer, VALID), reference, inputs, terms=4.0)


# --- against Keras ------------------------------------------------------------------------------


def after_masking(layer: Any) -> Any:
    return keras.Sequential([keras.Input(SHAPE[1:]), keras.layers.Masking(0.0), layer])


@pytest.mark.parametrize("distribution", ["ordinary", "far"])
def test_batch_normalization_after_masking_matches_keras(distribution):
    x = np.where(VALID[..., None], Case(SHAPE).inputs(distribution), np.float32(0))
    upstream = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    runs = []
    for kind in (norms.BatchNormalization, keras.layers.BatchNormalization):
        model = after_masking(kind(momentum=0.8, epsilon=EPSILON))
        runs.append((run_layer(model, x, upstream, training=True), model))
    (ours, model), (theirs, _) = runs
    valid = ours.outputs[VALID]
    np.testing.assert_allclose(valid.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(valid.std(0), 1, atol=1e-4)
    far = distribution == "far"  # Keras's E[x] of values about 1000 is off by 1e-4
    np.testing.assert_allclose(ours.outputs, theirs.outputs, atol=2e-2 if far else 1e-5)
    np.testing.assert_allclose(ours.d_inputs, theirs.d_inputs, atol=2e-3 if far else 1e-5)
    for name, value in theirs.state.items():
        np.testing.assert_allclose(ours.state[name], value, rtol=1e-5, atol=1e-5)
    for name, value in theirs.d_weights.items():
        np.testing.assert_allclose(ours.d_weights[name], value, atol=2e-2 if far else 1e-4)
    inference = keras.ops.convert_to_numpy(model(x, training=False))
    state = ours.state
    deviation = np.sqrt(state["moving_variance"] + EPSILON)
    np.testing.assert_allclose(inference, (x - state["moving_mean"]) / deviation, rtol=1e-5)


def test_model_with_a_mask_saves_and_loads(tmp_path):
    model = after_masking(norms.GroupNormalization(groups=2))
    x = np.where(VALID[..., None], Case(SHAPE).inputs("ordinary"), np.float32(0))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


# --- every normalization ------------------------------------------------------------------------

MASKABLE = [name for name in NAMES if not name.endswith("_tfa")]
STATEFUL = [name for name in REFERENCES if hasattr(REFERENCES[name][0], "update_average")]
assert len(STATEFUL) > 8


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", slow_except_on_jax(("bn", "gn", "lrn"), MASKABLE))
def test_padding_does_not_change_valid_outputs(name, training):
    random = np.random.default_rng(3)
    shape = (*GAPS.shape, 16)
    x = random.standard_normal(shape)
    other = np.where(GAPS[..., None], x, 7 + 9 * random.standard_normal(shape))
    options = {"virtual_batch": 2} if name == "ghost_bn" else {}
    runs = []
    for values in (x, other):
        layer = make(name) if not options else norms.GhostBatchNormalization(**options)
        layer.build(shape)
        if "mask" in signature(layer.call).parameters:
            runs.append(masked_run(layer, values, GAPS, training))
        else:  # normalizes each position by itself
            assert layer.supports_masking
            runs.append(run_layer(layer, values.astype(np.float32), training=training))
    first, second = runs
    np.testing.assert_allclose(first.outputs[GAPS], second.outputs[GAPS], atol=1e-6)
    for key, value in first.state.items():
        np.testing.assert_allclose(value, second.state[key], atol=1e-6)


@pytest.mark.parametrize("name", slow_except_on_jax(("bn", "brn"), STATEFUL))
def test_moving_statistics_cover_valid_positions_only(name):
    if name == "ghost_bn":
        pytest.skip("its virtual batches are not those of the valid positions alone")
    kind, options, _ = REFERENCES[name]
    options = {key: value for key, value in options.items() if value is not None}
    x = Case(SHAPE).inputs("far")
    masked, alone = kind(**options), kind(**options)
    masked.build(SHAPE)
    masked_run(masked, x, VALID)
    run_layer(alone, x[VALID][None], training=True)
    for key, value in state_of(alone).items():
        np.testing.assert_allclose(state_of(masked)[key], value, rtol=1e-5, atol=1e-5)


def test_virtual_batches_of_only_padding_are_ignored():
    x = Case(SHAPE).inputs("ordinary")
    mask = VALID & (np.arange(4) >= 2)[:, None]
    masked, alone = (norms.GhostBatchNormalization(virtual_batch=2) for _ in range(2))
    masked.build(SHAPE)
    masked_run(masked, x, mask)
    alone.build(SHAPE)
    masked_run(alone, x[2:], VALID[2:])
    for key, value in state_of(alone).items():
        np.testing.assert_allclose(state_of(masked)[key], value, rtol=1e-6)


@pytest.mark.parametrize("name", slow_except_on_jax(QUICK, MASKABLE))
def test_batch_of_only_padding_is_finite_and_changes_no_state(name):
    layer = make(name)
    shape = (16, 3, 16)
    layer.build(shape)
    if "mask" not in signature(layer.call).parameters:
        return
    before = state_of(layer)
    got = masked_run(layer, np.zeros(shape), np.zeros(shape[:-1], bool))
    for values in (got.outputs, got.d_inputs, *got.d_weights.values()):
        assert np.isfinite(values).all()
    for key, value in before.items():
        if name != "bn_keras":  # Keras's layer moves its averages toward 0
            np.testing.assert_array_equal(state_of(layer)[key], value)


@pytest.mark.parametrize("name", ["pn", "dyt", "lrn"])
def test_layers_of_single_positions_propagate_the_mask(name):
    x = keras.ops.convert_to_tensor(np.where(VALID[..., None], np.ones(SHAPE), 0))
    outputs = make(name)(keras.layers.Masking(0.0)(x))
    np.testing.assert_array_equal(outputs._keras_mask, VALID)


# --- refusals -----------------------------------------------------------------------------------


def test_mask_of_the_wrong_shape_is_refused():
    layer = norms.LayerNormalization(name="ln")
    x = keras.ops.ones((4, 6, 8))
    for shape in ((4, 6, 8), (4,), (4, 5)):
        with pytest.raises(ValueError, match=r"mask of ln must have the shape .*\(4, 6\), got"):
            layer(x, mask=keras.ops.ones(shape, "bool"))


def test_layer_that_cannot_exclude_positions_refuses_a_mask():
    layer = norms.FlatteningMinMaxNormalization(name="flattening")
    assert not layer.supports_masking
    with pytest.raises(ValueError, match="flattening takes its statistics over all positions"):
        layer(keras.ops.ones((4, 8)), mask=keras.ops.ones((4,), "bool"))


def test_custom_layer_without_mask_argument_does_not_support_masking():
    from normbench.norms.base import ChannelAffine

    class Custom(ChannelAffine):
        computed_over = "space"

        def call(self, inputs: Any) -> Any:
            return inputs

    assert not Custom(epsilon=0.0, center=True, scale=True).supports_masking
