"""Micro-batches: a batch-free network takes the same step as with the full batch."""

import keras
import numpy as np
import pytest

from tests.engine.tinyloop import first_batch, gradient_and_step
from tests.marks import slow_except

# One step: in a second, rounding decides which units are active.
RATES = np.full(1, 0.05, np.float32)


@pytest.fixture(autouse=True)
def float32():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def train_step(shared_loop):
    """Take one step of a network with ``norm`` in micro-batches; return loop and steps."""

    def step(norm, micro_batches, *overrides):
        options = {"momentum": 0.9, "micro_batches": micro_batches}
        loop, _ = shared_loop(f"norm={norm}", *overrides, **options)
        loop.begin_epoch(0)
        return loop, loop.train(0, RATES)

    return step


@pytest.mark.parametrize("norm", slow_except(["gn_ws"], ["none", "gn", "gn_ws", "frn"]))
@pytest.mark.parametrize("micro_batches", [4, 16])
def test_batch_free_network_takes_the_same_steps(norm, micro_batches, train_step):
    whole, expected = train_step(norm, 1)
    split, steps = train_step(norm, micro_batches)
    np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(steps.correct, expected.correct)
    np.testing.assert_allclose(steps.grad_norm, expected.grad_norm, rtol=1e-4)
    np.testing.assert_allclose(split.weights(), whole.weights(), atol=1e-5)


def test_batch_statistics_are_per_micro_batch(shared_loop, train_step):
    """Ghost Batch Normalization uses the same statistics in one pass."""
    start = shared_loop("norm=bn", momentum=0.9, micro_batches=1)[0].weights()
    whole, _ = train_step("bn", 1)
    ghost, expected = train_step("ghost_bn", 1, "norm.virtual_batch=4")
    split, steps = train_step("bn", 4)
    np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-4)
    step = np.linalg.norm(ghost.weights() - start)
    # Not closer: a single unit that rounding turns on or off matters among four images.
    assert np.linalg.norm(split.weights() - ghost.weights()) < 0.1 * step
    assert np.linalg.norm(split.weights() - whole.weights()) > 0.2 * step


def test_moving_statistics_are_updated_once_per_micro_batch(shared_loop):
    loop, split = shared_loop("norm=bn", momentum=0.9, micro_batches=4)
    loop.begin_epoch(0)
    first = next(layer for layer in loop.model.layers if hasattr(layer, "moving_mean"))
    reads = keras.Model(loop.model.inputs, first.input)
    part = loop.sub_model("input", lambda model: reads)
    pixels, _ = first_batch(split)
    expected = np.zeros(first.moving_mean.shape)
    for start in range(0, 16, 4):
        (inputs,) = loop.inspect(part, pixels[start : start + 4])
        mean = inputs.mean(axis=(0, 1, 2), dtype=np.float64)
        expected = first.momentum * expected + (1 - first.momentum) * mean
    loop.train(0, RATES)
    (name,) = [n for n in loop.state() if n.endswith(f"{first.name}/moving_mean")]
    np.testing.assert_allclose(loop.state()[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", slow_except(["bn"], ["bn", "gn_ws", "bn_sn"]))
def test_gradients_for_probes_use_the_same_micro_batches(norm, shared_loop):
    # The first step with momentum equals one without: the velocity starts at zero.
    loop, split = shared_loop(f"norm={norm}", momentum=0.9, micro_batches=4)
    loss, gradient, steps, taken = gradient_and_step(loop, split)
    assert loss == pytest.approx(float(steps.loss[0]), rel=1e-5)
    if norm == "bn_sn":  # its power iteration advances with each micro-batch
        return
    np.testing.assert_allclose(gradient, taken, atol=2e-4 * np.abs(gradient).max())


def test_half_precision_scales_each_micro_batch_but_steps_once(shared_loop):
    loop, _ = shared_loop("norm=gn", "precision=mixed_float16", micro_batches=4)
    loop.begin_epoch(0)
    before = loop.state()
    steps = loop.train(0, RATES)
    after = loop.state()
    assert np.isfinite(steps.grad_norm).all()
    assert after["optimizer/step"] == 1
    assert after["loss_scale/finite_steps"] == before["loss_scale/finite_steps"] + 1


def test_recomputed_statistics_are_over_micro_batches(shared_loop):
    whole, _ = shared_loop("norm=precise_bn")
    split, _ = shared_loop("norm=precise_bn", micro_batches=4)
    for loop in (whole, split):
        loop.begin_epoch(0)
        loop.recompute()
    a, b = whole.state(), split.state()
    variances = [name for name in a if name.endswith("moving_variance")]
    # The first layer sees the same images, and statistics of micro-batches add up exactly.
    np.testing.assert_allclose(a[variances[0]], b[variances[0]], rtol=1e-4)
    # The last layer's inputs were normalized per micro-batch.
    assert not np.allclose(a[variances[-1]], b[variances[-1]], rtol=1e-2)
