"""Properties of every activation normalization in conf/norm/, or of all of one kind."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml

from normbench.components import target
from normbench.config import conf_dir
from tests.marks import slow_except, slow_except_on_jax

SHAPE = (16, 3, 4, 16)
BACKEND = keras.backend.backend()


def spec_of(path: Path) -> dict[str, Any]:
    """Read a layer's target and options without Hydra; empty unless it is a single layer."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    first, *others = tree.pop("defaults")
    if others != ["_self_"]:
        return {}  # a pair with a weight parametrization
    return tree if isinstance(first, dict) else spec_of(path.with_name(f"{first}.yaml")) | tree


SPECS = {path.stem: spec_of(path) for path in sorted((conf_dir() / "norm").glob("*.yaml"))}
NAMES = [
    name
    for name, spec in SPECS.items()
    if spec.get("_target_") and not spec.keys() & {"bfn", "places"} and name != "minmax_reshape"
]
assert len(NAMES) > 25
QUICK = ("bn", "frn", "gn")
"""Layers for tests that compile each one: over the batch with a state, over space, over groups."""


def make(name: str, **options: Any) -> Any:
    """Make the layer as ``norm=<name>`` does."""
    if name.endswith("_tfa") and (BACKEND != "tensorflow" or not find_spec("tensorflow_addons")):
        pytest.skip("tensorflow-addons is not installed, or not for this backend")
    in_file = {k: v for k, v in SPECS[name].items() if k not in ("name", "_target_")}
    return target(SPECS[name]["_target_"])(**in_file, **options)


@cache
def prepared(name: str) -> tuple[Any, Any]:
    """Return a layer with random weights and state from two steps, and a function to call it."""
    layer = make(name)
    layer.build(SHAPE)
    random = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        value = keras.ops.convert_to_numpy(variable.value)
        noise = random.standard_normal(value.shape)
        variable.assign(value + 0.3 * noise.astype(np.float32))

    def call(x: Any, training: bool) -> np.ndarray:
        options = {"training": training} if layer._call_has_training_arg else {}
        if BACKEND == "jax":
            import jax

            function = compiled.setdefault(
                training, jax.jit(lambda t, o, x: layer.stateless_call(t, o, x, **options))
            )
            weights = layer.trainable_variables, layer.non_trainable_variables
            outputs, state = function(*([v.value for v in some] for some in weights), x)
            for variable, value in zip(layer.non_trainable_variables, state, strict=True):
                variable.assign(value)
        else:
            outputs = layer(x, **options)
        return keras.ops.convert_to_numpy(outputs)

    compiled: dict[bool, Any] = {}
    for seed in range(2):
        call(images(seed), True)
    return layer, call


def images(seed: int = 0) -> np.ndarray:
    return (1 + np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)


def sees_the_batch(name: str, training: bool) -> bool:
    kind = target(SPECS[name]["_target_"])
    if "batch" not in kind.computed_over:
        return False
    return training or kind.state == "none"


# --- images and their batch -------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", slow_except_on_jax((*QUICK, "evonorm_b0"), NAMES))
def test_images_affect_each_other_only_if_computed_over_the_batch(name, training):
    """Never in batch-free normalizations; in training only in variants of Batch Normalization."""
    _, call = prepared(name)
    x = images(5)
    others = x.copy()
    others[1:] = 3 * images(6)[1:] - 2
    alone, among = call(x, training)[0], call(others, training)[0]
    if sees_the_batch(name, training):
        assert np.abs(alone - among).max() > 1e-3
    else:
        np.testing.assert_allclose(alone, among, atol=1e-6)


@pytest.mark.parametrize("name", slow_except_on_jax((*QUICK, "evonorm_b0"), NAMES))
def test_order_of_images_does_not_matter(name):
    layer, call = prepared(name)
    order = np.random.default_rng(7).permutation(SHAPE[0])
    x = images(5)
    state = [keras.ops.convert_to_numpy(v.value) for v in layer.non_trainable_variables]
    outputs = []
    for batch in (x, x[order]):
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        outputs.append(call(batch, True))
    np.testing.assert_allclose(outputs[1], outputs[0][order], atol=2e-5)


@pytest.mark.parametrize("name", slow_except_on_jax((*QUICK, "evonorm_b0"), NAMES))
def test_inference_does_not_change_the_state(name):
    layer, call = prepared(name)
    before = [keras.ops.convert_to_numpy(v.value) for v in layer.weights]
    call(images(8), False)
    for value, variable in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(value, keras.ops.convert_to_numpy(variable.value))


# --- saving and options -----------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_except_on_jax(QUICK, NAMES))
def test_saves_and_loads(name, tmp_path):
    layer, call = prepared(name)
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    (other,) = loaded.layers
    assert type(other) is type(layer)
    assert other.get_config() == layer.get_config()
    assert [v.name for v in other.weights] == [v.name for v in layer.weights]
    assert len(layer.weights) == len(model.weights)
    options = {"training": False} if other._call_has_training_arg else {}
    outputs = keras.ops.convert_to_numpy(other(images(3), **options))
    np.testing.assert_allclose(outputs, call(images(3), False), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_options_in_conf_reach_the_constructor(name):
    config = make(name).get_config()
    for key, value in SPECS[name].items():
        if key not in ("name", "_target_"):
            assert config[key] == value, key


@pytest.mark.parametrize(
    "policy", slow_except_on_jax(["mixed_bfloat16"], ["mixed_bfloat16", "mixed_float16"])
)
@pytest.mark.parametrize("name", slow_except_on_jax(QUICK, NAMES))
def test_half_precision_keeps_weights_and_state_in_float32(name, policy):
    layer = make(name, dtype=policy)
    layer.build(SHAPE)
    assert {keras.backend.standardize_dtype(v.dtype) for v in layer.weights} <= {"float32"}
    options = {"training": True} if layer._call_has_training_arg else {}
    outputs = layer(images(), **options)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    assert outputs.shape == SHAPE


@pytest.mark.parametrize("name", NAMES)
def test_works_in_a_functional_model(name):
    inputs = keras.Input(SHAPE[1:])
    outputs = make(name)(inputs)
    assert outputs.shape == (None, *SHAPE[1:])
    assert outputs.dtype == "float32"


# --- TensorFlow's graphs ----------------------------------------------------------------------

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="for TensorFlow's graphs")


def step_of(layer: Any, **options: Any) -> Any:
    """A compiled function from images to outputs and gradients."""
    import tensorflow as tf

    training = {"training": True} if layer._call_has_training_arg else {}

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, **training)
        variables = [v.value for v in layer.trainable_variables]
        return outputs, tape.gradient(outputs, [x, *variables], tf.reverse(x, [0]))

    return tf.function(step, autograph=False, **options)


def assert_same(actual: Any, expected: Any) -> None:
    import tensorflow as tf

    for some, other in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-4, atol=2e-4)


@tensorflow_only
@pytest.mark.parametrize(
    "name",
    slow_except(QUICK, [n for n in NAMES if n != "frn_tfa"]),  # refuses unknown sizes
)
def test_sizes_may_be_unknown_when_traced(name):
    import tensorflow as tf

    layer = make(name)
    layer.build((None, None, None, 16))
    unknown = [tf.TensorSpec((None, None, None, 16))]
    x = tf.constant(images())
    assert_same(step_of(layer, input_signature=unknown)(x), fresh_step(name)(x))


@tensorflow_only
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("_tfa")])
def test_compiles_with_xla(name):
    import tensorflow as tf

    layer = make(name)
    layer.build(SHAPE)
    x = tf.constant(images())
    assert_same(step_of(layer, jit_compile=True)(x), fresh_step(name)(x))


def fresh_step(name: str) -> Any:
    layer = make(name)
    layer.build(SHAPE)
    return step_of(layer)


@tensorflow_only
@pytest.mark.parametrize("name", slow_except(QUICK, [n for n in NAMES if not n.endswith("_tfa")]))
def test_steps_are_bitwise_reproducible(name):
    import tensorflow as tf

    x = tf.constant(images())
    runs = [tf.nest.flatten(fresh_step(name)(x)) for _ in range(2)]
    for some, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(some, other)
