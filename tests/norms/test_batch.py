"""Batch Normalization, and the properties that Ioffe & Szegedy 2015 derive for it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.norms import BatchNormalization
from tests.marks import slow_except, slow_except_on_jax


def reference(x, gamma, beta, epsilon=1e-5):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    variance = ((x - mean) ** 2).mean(axes)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def test_training(case, check):
    check(BatchNormalization(epsilon=1e-5, dtype=case.dtype), reference, case)


def test_inference(case, check):
    layer = BatchNormalization(epsilon=1e-5, dtype=case.dtype)
    layer.build(case.shape)
    random = np.random.default_rng(3)
    mean = (5 * random.standard_normal(case.channels)).astype(np.float32)
    variance = random.uniform(0.1, 3, case.channels).astype(np.float32)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)

    def formula(x, gamma, beta):
        return (x - mean.astype("f8")) / np.sqrt(variance.astype("f8") + 1e-5) * gamma + beta

    check(layer, formula, case, training=False)
    np.testing.assert_array_equal(layer.moving_mean, mean)


@pytest.mark.parametrize(
    "options", [{"center": False}, {"scale": False}, {"center": 0, "scale": 0}]
)
def test_without_affine(options, run_layer):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    layer = BatchNormalization(epsilon=1e-5, **options)
    got = run_layer(layer, x, training=True)
    assert {v.name for v in layer.trainable_variables} == {
        name for name, option in (("gamma", "scale"), ("beta", "center")) if options.get(option, 1)
    }
    np.testing.assert_allclose(got.outputs, reference(x.astype("f8"), 1.0, 0.0), atol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moving_statistics_after_several_steps(unbiased, offset, run_layer):
    layer = BatchNormalization(momentum=0.8, unbiased=unbiased)
    random = np.random.default_rng(0)
    mean, variance = np.zeros(6), np.ones(6)
    for _ in range(4):
        x = (offset + random.standard_normal((3, 5, 7, 6)) * np.arange(1, 7)).astype(np.float32)
        got = run_layer(layer, x, training=True)
        mean = 0.8 * mean + 0.2 * x.mean((0, 1, 2), dtype="f8")
        factor = 105 / 104 if unbiased else 1
        variance = 0.8 * variance + 0.2 * x.var((0, 1, 2), dtype="f8") * factor
    np.testing.assert_allclose(got.state["moving_mean"], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.state["moving_variance"], variance, rtol=2e-6)


def test_frozen_layer_normalizes_with_its_moving_statistics(run_layer):
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32)
    layer = BatchNormalization(epsilon=0.0)
    layer.trainable = False
    got = run_layer(layer, x, training=True)
    np.testing.assert_array_equal(got.outputs, x)
    np.testing.assert_array_equal(got.state["moving_mean"], 0)


def test_unbiased_variance_of_one_value_per_channel_is_refused(run_layer):
    with pytest.raises(ValueError, match="one value per channel"):
        run_layer(
            BatchNormalization(unbiased=True), np.ones((1, 1, 1, 3), np.float32), training=True
        )
    got = run_layer(BatchNormalization(), np.full((1, 1, 1, 3), 7, np.float32), training=True)
    np.testing.assert_array_equal(got.outputs, 0)
    np.testing.assert_array_equal(got.d_inputs, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_of_many_equal_values_is_accurate(dtype, run_layer):
    """A plain float32 sum of 50,176 values of 1.7 gives a mean that is off by 4e-4."""
    x = np.full((16, 56, 56, 6), 1.7, np.float32)
    layer = BatchNormalization(epsilon=1e-5, dtype=dtype)
    got = run_layer(layer, x, training=True)
    np.testing.assert_allclose(got.outputs, 0, atol=1e-3)
    assert got.state["moving_mean"] == pytest.approx([0.017] * 6, rel=4e-3)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_fused_path_of_large_inputs_matches_the_formula(offset, run_layer, randomize):
    shape = (32, 32, 32, 16)
    x, upstream = (np.random.default_rng(seed).standard_normal(shape) for seed in range(2))
    x = (x + offset).astype(np.float32)
    layer = BatchNormalization(momentum=0.0, epsilon=1e-5, unbiased=True)
    layer.build(shape)
    got = run_layer(randomize(layer), x, upstream, training=True)
    gamma = keras.ops.convert_to_numpy(layer.gamma).astype("f8")
    beta = keras.ops.convert_to_numpy(layer.beta).astype("f8")
    x = x.astype("f8")
    axes = (0, 1, 2)
    deviation = np.sqrt(x.var(axes) + 1e-5)
    normalized = (x - x.mean(axes)) / deviation
    upstream = upstream.astype("f4").astype("f8")
    gradients = upstream.sum(axes), (upstream * normalized).sum(axes)
    d_inputs = upstream - (gradients[0] + normalized * gradients[1]) / (32 * 32 * 32)
    np.testing.assert_allclose(got.outputs, normalized * gamma + beta, atol=2e-5)
    np.testing.assert_allclose(got.d_inputs, d_inputs * gamma / deviation, atol=2e-5)
    np.testing.assert_allclose(got.d_weights["beta"], gradients[0], atol=2e-3)
    np.testing.assert_allclose(got.d_weights["gamma"], gradients[1], atol=2e-3)
    np.testing.assert_allclose(got.state["moving_mean"], x.mean(axes), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.state["moving_variance"], x.var(axes, ddof=1), rtol=2e-5)
    expected = (x - x.mean(axes)) / np.sqrt(x.var(axes, ddof=1) + 1e-5) * gamma + beta
    np.testing.assert_allclose(run_layer(layer, x.astype("f4")).outputs, expected, atol=3e-4)


on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="JAX does not split batches"
)


@keras.saving.register_keras_serializable("normbench_tests")
class InShards(BatchNormalization):
    """Batch Normalization called as by an engine that splits batches into shards, here unequal."""

    def call(self, inputs, training=None):
        # Called directly: the engine does not split the batch of a class with its own call().
        from normbench.engine.shards import _batch_normalization

        first = max(1, len(inputs) // 3)
        shards = _batch_normalization(self, [inputs[:first], inputs[first:]], bool(training))
        return keras.ops.concatenate(shards, axis=0)


@on_tensorflow
@pytest.mark.parametrize("training", [True, False])
def test_training_and_inference_in_shards(training, case, check):
    if case.shape[0] == 1:
        pytest.skip("one image makes no two shards")
    formula = reference if training else lambda x, gamma, beta: x / np.sqrt(1 + 1e-5) * gamma + beta
    check(InShards(epsilon=1e-5, dtype=case.dtype), formula, case, training=training)


@pytest.fixture
def always_compile(monkeypatch):
    """Compile the passes over inputs of any size with XLA, as for large inputs."""
    monkeypatch.setattr("normbench.kernels.batch_cpu.is_large", lambda x: True)


@on_tensorflow
@pytest.mark.parametrize("layer", [BatchNormalization, InShards])
def test_compiled_passes_match_the_formula(layer, case, check, always_compile):
    if layer is InShards and case.shape[0] == 1:
        pytest.skip("one image makes no two shards")
    check(layer(epsilon=1e-5, dtype=case.dtype), reference, case, training=True)


@on_tensorflow
@pytest.mark.parametrize("layer", [BatchNormalization, InShards])
def test_compiled_passes_are_accurate_at_any_channel_mean(layer, run_layer, always_compile):
    test_statistics_are_accurate_at_any_channel_mean(layer, run_layer)


@on_tensorflow
def test_state_after_shards_equals_state_after_the_full_batch(run_layer):
    x = np.random.default_rng(0).standard_normal((5, 4, 3, 6)) * np.arange(6) + 3
    whole, parts = (
        run_layer(layer(), x.astype(np.float32), training=True).state
        for layer in (BatchNormalization, InShards)
    )
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("layer", [BatchNormalization, pytest.param(InShards, marks=on_tensorflow)])
@pytest.mark.parametrize("channels", slow_except([4], [4, 32]))
def test_variance_of_many_positive_values(layer, channels, run_layer):
    """TensorFlow's fused Batch Normalization sums them in one pass: off by 7e-4 at this size."""
    random = np.random.default_rng(0)
    x = random.standard_normal((128, 32, 32, channels)).clip(0).astype(np.float32)
    got = run_layer(layer(momentum=0.0, epsilon=1e-5), x, x, training=True)
    x = x.astype("f8")
    np.testing.assert_allclose(got.state["moving_variance"], x.var((0, 1, 2)), rtol=2e-6)
    normalized = reference(x, 1.0, 0.0)
    np.testing.assert_allclose(got.outputs, normalized, atol=1e-5)
    # ∂/∂x of sum(y·x) with the second x fixed: (x − mean − y·mean(x·y))/σ, and x − mean = σ·y.
    deviation = np.sqrt(x.var((0, 1, 2)) + 1e-5)
    slope = (x * normalized).mean((0, 1, 2))
    np.testing.assert_allclose(got.d_inputs, normalized - normalized * slope / deviation, atol=1e-5)
    np.testing.assert_allclose(got.d_weights["beta"], x.sum((0, 1, 2)), rtol=2e-6)
    np.testing.assert_allclose(got.d_weights["gamma"], slope * x[..., 0].size, rtol=2e-6)


@on_tensorflow
@pytest.mark.parametrize("images", slow_except([32], [32, 512]))
def test_rounding_error_does_not_grow_with_the_batch(images, run_layer):
    """A naive sum has as many roundings as terms."""
    x = np.random.default_rng(0).standard_normal((images, 32, 32, 32), np.float32).clip(0)
    got = run_layer(BatchNormalization(momentum=0.0), x, training=True)
    np.testing.assert_allclose(
        got.state["moving_variance"], x.var((0, 1, 2), dtype=np.float64), rtol=5e-7
    )


@pytest.mark.parametrize("layer", [BatchNormalization, pytest.param(InShards, marks=on_tensorflow)])
def test_statistics_are_accurate_at_any_channel_mean(layer, run_layer):
    """Channels far from 0 are shifted before summing; others in the same batch are not."""
    distances = np.array([0, 1, 1.9, 2.1, 4, 30, 1e3, -1e3, 1e5])
    random = np.random.default_rng(0)
    x = (random.standard_normal((8, 6, 5, 9)) + distances).astype(np.float32)
    upstream = random.standard_normal(x.shape).astype(np.float32)
    got = run_layer(layer(momentum=0.0, epsilon=1e-5), x, upstream, training=True)
    x, dy, axes = x.astype("f8"), upstream.astype("f8"), (0, 1, 2)
    normalized = reference(x, 1.0, 0.0)
    np.testing.assert_allclose(got.state["moving_mean"], x.mean(axes), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(got.state["moving_variance"], x.var(axes), rtol=2e-6)
    np.testing.assert_allclose(got.outputs, normalized, atol=5e-6)
    d_inputs = dy - dy.mean(axes) - normalized * (dy * normalized).mean(axes)
    d_inputs /= np.sqrt(x.var(axes) + 1e-5)
    np.testing.assert_allclose(got.d_inputs, d_inputs, atol=5e-6)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_outside_0_to_1_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum must be in"):
        BatchNormalization(momentum=momentum)


@pytest.mark.parametrize("training", [True, False])
def test_matches_keras_layer(training, run_layer, randomize):
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 8)).astype(np.float32)
    upstream = np.random.default_rng(1).standard_normal(x.shape)
    ours, theirs = BatchNormalization(), keras.layers.BatchNormalization()
    runs = []
    for layer in (ours, theirs):
        layer.build(x.shape)
        randomize(layer)
        run_layer(layer, x, upstream, training=True)
        runs.append(run_layer(layer, x, upstream, training=training))
    np.testing.assert_allclose(runs[0].outputs, runs[1].outputs, atol=1e-5)
    np.testing.assert_allclose(runs[0].d_inputs, runs[1].d_inputs, atol=1e-5)
    for name in ("gamma", "beta"):
        np.testing.assert_allclose(
            runs[0].d_weights[name], runs[1].d_weights[name], atol=1e-4, err_msg=name
        )
    for name, value in runs[0].state.items():
        np.testing.assert_allclose(value, runs[1].state[name], rtol=1e-5, atol=1e-6)


def test_matches_pytorch_layer_with_unbiased_variance(run_layer):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    theirs = torch.nn.BatchNorm2d(3, eps=1e-5, momentum=0.1)
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    got = run_layer(BatchNormalization(0.9, 1e-5, unbiased=True), x, training=True)
    np.testing.assert_allclose(got.outputs, expected, atol=1e-5)
    np.testing.assert_allclose(got.state["moving_variance"], theirs.running_var, rtol=1e-5)


# --- the theory of section 3.3: BN(Wu) = BN((aW)u) and its gradients --------------------------


def linear_then_bn(weights, u, upstream, run_layer):
    """Outputs of BN(uW), and the gradients of u and W."""
    dense = keras.layers.Dense(weights.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input(u.shape[1:]), dense, BatchNormalization(epsilon=0.0)])
    dense.kernel.assign(weights)
    got = run_layer(model, u, upstream, training=True)
    return got.outputs, got.d_inputs, got.d_weights["kernel"]


@pytest.mark.parametrize("a", slow_except_on_jax([0.3], [2.0**-10, 0.3, 7.0, 2.0**10]))
def test_scale_of_the_weights_is_canceled(a, run_layer):
    random = np.random.default_rng(0)
    u, upstream = random.standard_normal((12, 6)), random.standard_normal((12, 4))
    weights = random.standard_normal((6, 4))
    u, weights = u.astype(np.float32), weights.astype(np.float32)
    plain = linear_then_bn(weights, u, upstream, run_layer)
    scaled = linear_then_bn(np.float32(a) * weights, u, upstream, run_layer)
    np.testing.assert_allclose(scaled[0], plain[0], atol=2e-5)
    np.testing.assert_allclose(scaled[1], plain[1], atol=2e-5)  # ∂BN((aW)u)/∂u = ∂BN(Wu)/∂u
    np.testing.assert_allclose(a * scaled[2], plain[2], atol=5e-5)  # ∂/∂(aW) = 1/a · ∂/∂W


def test_bias_of_the_preceding_layer_is_redundant(run_layer):
    x = np.random.default_rng(0).standard_normal((6, 3, 3, 4)).astype(np.float32)
    plain = run_layer(BatchNormalization(), x, x, training=True)
    moved = run_layer(BatchNormalization(), x + np.float32([1, -2, 4, 0.5]), x, training=True)
    np.testing.assert_allclose(moved.outputs, plain.outputs, atol=2e-6)
    np.testing.assert_allclose(plain.d_inputs.sum((0, 1, 2)), 0, atol=1e-4)


SHARED = BatchNormalization(epsilon=0.0)
"""One layer for all Hypothesis examples, so that JAX compiles it once."""


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mean=st.floats(-100, 100),
    deviation=st.floats(0.01, 100),
)
def test_normalized_values_sum_to_0_with_mean_square_1(seed, mean, deviation, run_layer):
    x = mean + deviation * np.random.default_rng(seed).standard_normal((4, 3, 2, 5))
    outputs = run_layer(SHARED, x.astype(np.float32), training=True).outputs
    np.testing.assert_allclose(outputs.sum((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose((outputs**2).mean((0, 1, 2)), 1, rtol=1e-4)
