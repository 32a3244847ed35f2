"""Batch Normalization over replicas."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from normbench.norms import BatchNormalization, SynchronizedBatchNormalization


def test_equals_batch_normalization_on_one_device(run_layer, randomize):
    x = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    runs = []
    for kind in (SynchronizedBatchNormalization, BatchNormalization):
        layer = kind(momentum=0.8, unbiased=True)
        layer.build(x.shape)
        runs.append(run_layer(randomize(layer), x, x, training=True))
    np.testing.assert_array_equal(runs[0].outputs, runs[1].outputs)
    np.testing.assert_array_equal(runs[0].d_inputs, runs[1].d_inputs)
    for name, value in runs[1].state.items():
        np.testing.assert_array_equal(runs[0].state[name], value)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="for JAX's mapped axes")
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_mapped_axis_shares_statistics_of_the_full_mini_batch(offset, run_layer, randomize):
    import jax

    x = (offset + np.random.default_rng(0).standard_normal((6, 5, 3, 4))).astype(np.float32)
    upstream = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    options = {"momentum": 0.8, "unbiased": True}
    plain = BatchNormalization(**options)
    plain.build(x.shape)
    expected = run_layer(randomize(plain), x, upstream, training=True)

    layer = SynchronizedBatchNormalization(axis_name="parts", **options)
    layer.build(x.shape)
    randomize(layer)
    weights = [v.value for v in layer.trainable_variables]
    state = [v.value for v in layer.non_trainable_variables]

    def part(x, upstream):
        def forward(weights, x):
            return layer.stateless_call(weights, state, x, training=True)

        outputs, back, other = jax.vjp(forward, weights, x, has_aux=True)
        return outputs, *back(upstream), other

    split = x.reshape(3, 2, *x.shape[1:]), upstream.reshape(3, 2, *x.shape[1:])
    outputs, d_weights, d_inputs, other = jax.jit(jax.vmap(part, axis_name="parts"))(*split)
    np.testing.assert_allclose(outputs.reshape(x.shape), expected.outputs, atol=1e-5)
    np.testing.assert_allclose(d_inputs.reshape(x.shape), expected.d_inputs, atol=1e-5)
    for got, name in zip(d_weights, ("gamma", "beta"), strict=True):
        np.testing.assert_allclose(got.sum(0), expected.d_weights[name], atol=5e-5)
    for got, value in zip(other, expected.state.values(), strict=True):
        for replica in got:
            np.testing.assert_allclose(replica, value, rtol=1e-5, atol=1e-6)


MIRRORED = """
    import keras, numpy as np, tensorflow as tf
    from normbench.norms import BatchNormalization, SynchronizedBatchNormalization
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = np.random.default_rng(0).standard_normal((6, 5, 3, 4)).astype("f4") + 1000
    upstream = np.random.default_rng(1).standard_normal(x.shape).astype("f4")
    x2, up2 = np.split(x, [2]), np.split(upstream, [2])   # parts of different sizes

    def step(layer, x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], upstream)

    plain = BatchNormalization(momentum=0.8, unbiased=True)
    expected = [t.numpy() for t in step(plain, tf.constant(x), tf.constant(upstream))]
    with strategy.scope():
        layer = SynchronizedBatchNormalization(momentum=0.8, unbiased=True)
        layer.build(x.shape)
    values = [
        strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )
        for parts in (x2, up2)
    ]
    parts = tf.function(lambda *v: strategy.run(step, args=(layer, *v)))(*values)
    y, dx, dgamma, dbeta = (strategy.experimental_local_results(p) for p in parts)
    np.testing.assert_allclose(np.concatenate(y), expected[0], atol=1e-5)
    np.testing.assert_allclose(np.concatenate(dx), expected[1], atol=1e-5)
    np.testing.assert_allclose(sum(p.numpy() for p in dgamma), expected[2], atol=1e-4)
    np.testing.assert_allclose(sum(p.numpy() for p in dbeta), expected[3], atol=1e-4)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            getattr(layer, name).numpy(), getattr(plain, name).numpy(), rtol=1e-5, err_msg=name
        )
    print("equal")
"""


MAPPED = """
    import jax, keras, numpy as np
    from jax.sharding import AxisType, PartitionSpec as P
    from normbench.norms import BatchNormalization, SynchronizedBatchNormalization
    x = np.random.default_rng(0).standard_normal((6, 5, 3, 4)).astype("f4") + 1000
    upstream = np.random.default_rng(1).standard_normal(x.shape).astype("f4")

    def step(layer):
        layer.build(x.shape)
        state = [v.value for v in layer.non_trainable_variables]
        def run(weights, x, upstream):
            def forward(weights, x):
                return layer.stateless_call(weights, state, x, training=True)
            outputs, back, _ = jax.vjp(forward, weights, x, has_aux=True)
            return outputs, back(upstream)[1]
        return run

    def check(outputs, d_inputs):
        np.testing.assert_allclose(np.reshape(outputs, x.shape), expected[0], atol=1e-5)
        np.testing.assert_allclose(np.reshape(d_inputs, x.shape), expected[1], atol=1e-5)

    weights = [np.ones(4, "f4"), np.zeros(4, "f4")]
    expected = step(BatchNormalization())(weights, x, upstream)
    layer = SynchronizedBatchNormalization()
    mesh = jax.make_mesh((2,), ("replicas",), axis_types=(AxisType.Auto,))
    split = P("replicas")
    mapped = jax.shard_map(
        step(layer), mesh=mesh, in_specs=(P(), split, split), out_specs=split, check_vma=False
    )
    check(*mapped(weights, x, upstream))
    parts = [np.reshape(a, (2, 3, 5, 3, 4)) for a in (x, upstream)]
    layer = SynchronizedBatchNormalization()
    check(*jax.pmap(step(layer), axis_name="replicas", in_axes=(None, 0, 0))(weights, *parts))
    sharded = [jax.device_put(a, jax.NamedSharding(mesh, split)) for a in (x, upstream)]
    check(*jax.jit(step(BatchNormalization()))(weights, *sharded))  # needs no sync_bn
    print("equal")
"""


@pytest.mark.slow
def test_devices_share_statistics_of_the_full_mini_batch():
    """Runs in a subprocess: a CPU can be split into devices only before the backend starts."""
    backend = keras.backend.backend()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MAPPED if backend == "jax" else MIRRORED)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
