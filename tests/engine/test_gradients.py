"""Gradients at given weights: those of the next step, without changing any state."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.engine.tinyloop import first_batch, gradient_and_step, loop_of
from tests.marks import slow_except

NORMS = ("none", "bn", "gn_ws", "brn", "precise_bn", "bn_sn", "ghost_bn", "bn_keras", "frn")


@pytest.fixture(autouse=True)
def float32():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("norm", slow_except(["bn", "gn_ws", "bn_sn"], NORMS))
def test_gradient_is_that_of_the_next_step(norm, shared_loop):
    # The first step with momentum equals one without: the velocity starts at zero.
    loop, split = shared_loop(f"norm={norm}", momentum=0.9)
    loss, gradient, steps, taken = gradient_and_step(loop, split)
    assert loss == pytest.approx(float(steps.loss[0]), rel=1e-5)
    assert np.linalg.norm(gradient) == pytest.approx(float(steps.grad_norm[0]), rel=1e-4)
    np.testing.assert_allclose(gradient, taken, atol=2e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("norm", slow_except(["bn", "bn_sn"], ["bn", "brn", "bn_sn"]))
def test_gradient_changes_no_state(norm, shared_loop):
    loop, split = shared_loop(f"norm={norm}", momentum=0.9)
    loop.begin_epoch(0)
    loop.train(0, np.full(1, 0.1, np.float32))
    before = loop.state()
    other_weights = loop.weights() * 0.9
    pixels, labels = first_batch(split)
    current = loop.gradients(pixels, labels)
    other = loop.gradients(pixels, labels, other_weights)
    assert current[0] != other[0]
    again = loop.gradients(pixels, labels)
    assert again[0] == current[0]
    np.testing.assert_array_equal(again[1], current[1])
    after = loop.state()
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


def test_gradient_at_other_weights_matches_difference_quotients(shared_loop):
    """The difference quotient of the loss along the gradient is the gradient's norm."""
    loop, split = shared_loop("norm=gn", "norm.groups=2")
    loop.begin_epoch(0)
    pixels, labels = first_batch(split)
    at = loop.weights() * 1.1
    _, gradient = loop.gradients(pixels, labels, at)
    direction = gradient / np.linalg.norm(gradient)
    length = np.float32(2e-3)
    ahead, _ = loop.gradients(pixels, labels, at + length * direction)
    behind, _ = loop.gradients(pixels, labels, at - length * direction)
    assert (ahead - behind) / (2 * length) == pytest.approx(np.linalg.norm(gradient), rel=2e-2)


@pytest.mark.parametrize(
    "precision", slow_except(["mixed_float16"], ["mixed_bfloat16", "mixed_float16"])
)
def test_half_precision(precision, shared_loop):
    """Gradients of a scaled loss are returned unscaled, close to those in float32."""
    exact, split = shared_loop("norm=gn", "norm.groups=2")
    exact.begin_epoch(0)
    pixels, labels = first_batch(split)
    expected = exact.gradients(pixels, labels)
    loop, _ = shared_loop("norm=gn", "norm.groups=2", f"precision={precision}")
    loss, gradient = loop.gradients(pixels, labels)
    assert gradient.dtype == np.float32
    assert loss == pytest.approx(expected[0], rel=0.02)
    off = np.linalg.norm(gradient - expected[1]) / np.linalg.norm(expected[1])
    assert off < (0.1 if precision == "mixed_bfloat16" else 0.05)


@pytest.mark.slow
def test_gradient_includes_auxiliary_classifiers_and_dropout():
    """Two calls drop the same units as the next step."""
    loop, split = loop_of(
        "arch=googlenet", "arch.width=0.125", "arch.auxiliary_weight=0.3", "norm=bn", size=12
    )
    assert len(loop.model.outputs) == 3
    loop.begin_epoch(0)
    pixels, labels = first_batch(split)
    first, second = (loop.gradients(pixels, labels) for _ in range(2))
    np.testing.assert_array_equal(first[1], second[1])
    steps = loop.train(0, np.full(1, 2.0**-6, np.float32))
    assert first[0] == pytest.approx(float(steps.loss[0]), rel=1e-4)


def test_step_skipped_by_the_loss_scale_has_no_update(shared_loop):
    from normbench.engine.lookahead import lookahead

    loop, split = shared_loop("norm=gn", "norm.groups=2", "precision=mixed_float16")
    state = loop.state()
    loop.load(state | {"loss_scale/factor": np.float32(1e38)})
    (step,) = lookahead(loop, [first_batch(split)], 0.1)
    assert not np.isfinite(step.gradient).all()
    assert not step.update.any()
