"""A batch that goes through the network in parts: the same step for what sees no batch."""

import keras
import numpy as np
import pytest

from tests.engine.tinyloop import first_batch, gradient_and_step, loop_of

RATES = np.full(1, 0.05, np.float32)  # one step: in a second, roundings decide which unit is on


@pytest.fixture(autouse=True)
def float32():
    yield
    keras.config.set_dtype_policy("float32")


def trained(norm, parts, *options):
    loop, split = loop_of(f"norm={norm}", *options, momentum=0.9, micro_batches=parts)
    loop.begin_epoch(0)
    return loop, split, loop.train(0, RATES)


@pytest.mark.parametrize("norm", ["none", "gn", "gn_ws", "frn"])
@pytest.mark.parametrize("parts", [2, 16])
def test_a_network_that_sees_no_batch_takes_the_same_steps(norm, parts):
    whole, _, expected = trained(norm, 1)
    split, _, steps = trained(norm, parts)
    np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(steps.correct, expected.correct)
    np.testing.assert_allclose(steps.grad_norm, expected.grad_norm, rtol=1e-4)
    np.testing.assert_allclose(split.weights(), whole.weights(), atol=1e-5)


def test_batch_statistics_are_of_a_part():
    """Ghost batch normalization computes with just these statistics, in one pass."""
    whole, _, _ = trained("bn", 1)
    ghost, _, expected = trained("ghost_bn", 1, "norm.virtual_batch=4")
    split, _, steps = trained("bn", 4)
    np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-4)
    step = np.linalg.norm(ghost.weights() - loop_of("norm=bn")[0].weights())
    # Not closer: one unit that a rounding turns on or off weighs much in a part of four images.
    assert np.linalg.norm(split.weights() - ghost.weights()) < 0.1 * step
    assert np.linalg.norm(split.weights() - whole.weights()) > 0.2 * step


def test_moving_statistics_move_once_a_part():
    loop, split = loop_of("norm=bn", "norm.momentum=0.5", micro_batches=4)
    loop.begin_epoch(0)
    first = next(layer for layer in loop.model.layers if hasattr(layer, "moving_mean"))
    reads = keras.Model(loop.model.inputs, first.input)
    part = loop.sub_model("input", lambda model: reads)
    pixels, _ = first_batch(split)
    expected = np.zeros(first.moving_mean.shape)
    for start in range(0, 16, 4):
        (inputs,) = loop.inspect(part, pixels[start : start + 4])
        expected = 0.5 * expected + 0.5 * inputs.mean(axis=(0, 1, 2), dtype=np.float64)
    loop.train(0, RATES)
    (name,) = [n for n in loop.state() if n.endswith(f"{first.name}/moving_mean")]
    np.testing.assert_allclose(loop.state()[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["bn", "gn_ws", "bn_sn"])
def test_the_gradient_that_probes_ask_for_is_of_the_same_parts(norm):
    loop, split = loop_of(f"norm={norm}", micro_batches=4)
    loss, gradient, steps, taken = gradient_and_step(loop, split)
    assert loss == pytest.approx(float(steps.loss[0]), rel=1e-5)
    if norm == "bn_sn":  # whose power iteration goes on from part to part
        return
    np.testing.assert_allclose(gradient, taken, atol=2e-4 * np.abs(gradient).max())


def test_half_precision_scales_each_part_and_steps_once():
    loop, _ = loop_of("norm=gn", "precision=mixed_float16", micro_batches=4)
    loop.begin_epoch(0)
    before = loop.state()
    steps = loop.train(0, RATES)
    after = loop.state()
    assert np.isfinite(steps.grad_norm).all()
    assert after["optimizer/step"] == 1
    assert after["loss_scale/finite_steps"] == before["loss_scale/finite_steps"] + 1


def test_recomputed_statistics_are_of_parts():
    whole, _ = loop_of("norm=precise_bn")
    split, _ = loop_of("norm=precise_bn", micro_batches=4)
    for loop in (whole, split):
        loop.begin_epoch(0)
        loop.recompute()
    a, b = whole.state(), split.state()
    variances = [name for name in a if name.endswith("moving_variance")]
    # The first layer sees the same images, and its parts' statistics are put together exactly.
    np.testing.assert_allclose(a[variances[0]], b[variances[0]], rtol=1e-4)
    # The last one sees what those before it normalized, part by part.
    assert not np.allclose(a[variances[-1]], b[variances[-1]], rtol=1e-2)
