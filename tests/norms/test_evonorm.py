"""EvoNorm-S0 and EvoNorm-B0."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.norms import EvoNormB0, EvoNormS0


def groups_for(channels: int) -> int:
    return 4 if channels % 4 == 0 else 1


def group_variance(x, groups):
    split = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = split.mean(axis=(1, 3), keepdims=True)
    variance = ((split - mean) ** 2).mean(axis=(1, 3))
    shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])
    return np.repeat(variance, x.shape[-1] // groups, axis=1).reshape(shape)


def s0(x, gamma, beta, v, groups, epsilon=1e-5):
    sigmoid = 1 / (1 + np.exp(-np.clip(v * x, -700, 700)))  # np.exp overflows, sigmoid does not
    return x * sigmoid / np.sqrt(group_variance(x, groups) + epsilon) * gamma + beta


def b0(x, gamma, beta, v, deviation=None, epsilon=1e-5):
    if deviation is None:
        axes = tuple(range(x.ndim - 1))
        deviation = np.sqrt(((x - x.mean(axes)) ** 2).mean(axes) + epsilon)
    instance = v * x + np.sqrt(group_variance(x, x.shape[-1]) + epsilon)
    larger = np.where(np.real(instance) > np.real(deviation), instance, deviation + 0 * x)
    return x / larger * gamma + beta


def test_s0(case, check):
    groups = groups_for(case.channels)
    layer = EvoNormS0(groups, dtype=case.dtype)
    # Where the mean is 1000, x/σ is about 1000/σ, and its rounding is relative to that.
    check(layer, lambda x, gamma, beta, v: s0(x, gamma, beta, v, groups), case, terms=1000)


def test_b0_training(case, check):
    # The variance between images is that of their means, which are rounded near 1000.
    check(EvoNormB0(dtype=case.dtype), b0, case, terms=8)


def test_b0_inference(case, check):
    layer = EvoNormB0(dtype=case.dtype)
    layer.build(case.shape)
    variance = np.random.default_rng(3).uniform(0.5, 2, case.channels).astype(np.float32)
    layer.moving_variance.assign(variance)
    deviation = np.sqrt(variance.astype("f8") + 1e-5)

    def reference(x, gamma, beta, v):
        return b0(x, gamma, beta, v, deviation)

    check(layer, reference, case, training=False)


def test_b0_moving_variance_after_several_steps(run_layer):
    layer = EvoNormB0(momentum=0.8)
    random = np.random.default_rng(0)
    variance = np.ones(4)
    for _ in range(3):
        x = (5 + random.standard_normal((3, 5, 7, 4)) * np.arange(1, 5)).astype(np.float32)
        got = run_layer(layer, x, training=True)
        variance = 0.8 * variance + 0.2 * x.var((0, 1, 2), dtype="f8")
    np.testing.assert_allclose(got.state["moving_variance"], variance, rtol=2e-6)


def test_they_include_the_activation(run_layer):
    x = np.random.default_rng(0).standard_normal((4, 6, 6, 8)).astype(np.float32)
    s0_outputs = run_layer(EvoNormS0(4), x).outputs
    assert -0.4 < s0_outputs.min() < 0 < x.max() - 2  # Swish's minimum is −0.278
    b0_outputs = run_layer(EvoNormB0(), x, training=True).outputs
    # Divided by the deviation where x is well below 0, bounded by 1/v where it is large.
    np.testing.assert_allclose(b0_outputs[x < -1], (x / x.std((0, 1, 2)))[x < -1], atol=1e-4)
    assert 0 < b0_outputs.max() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups=3 does not divide the 8 channels"),
        ({"groups": 2, "channels_per_group": 4}, "exactly one of"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvoNormS0(**options).build((None, 4, 4, 8))
