"""The gradients probe, against formulas in NumPy, and its lack of effect on training."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.config import compose
from normbench.engine.optimizer import SGD, AdamW
from normbench.errors import UserError
from normbench.network import build_model
from normbench.probes.gradients import Gradients, angle
from normbench.probes.invariance import kernels, scale_invariant
from tests.marks import slow_except, slow_except_on_jax

ALL = {"weight_norm", "gradient_norm", "relative_update", "angle"}


@pytest.fixture
def regression():
    """Softmax regression on 3×3 images with two channels, with a bias."""
    inputs = keras.Input((3, 3, 2))
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="regression")


def degrees(one, other):
    cosine = np.sum(one * other) / np.sqrt(np.sum(one**2) * np.sum(other**2))
    return np.degrees(np.arccos(cosine))


def softmax_gradient(images, labels, kernel, bias):
    x = ((images / 255.0 - 0.5) / 0.25).reshape(len(images), -1)
    scores = x @ kernel + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return x.T @ p / len(labels), p.mean(0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_match_the_formula(regression, loop_on, nesterov):
    """Momentum and decay in float64, from the state after some training."""
    optimizer = SGD(momentum=0.8, nesterov=nesterov, weight_decay=0.05, agc=0.0)
    loop, dataset = loop_on(regression, count=40, optimizer=optimizer)
    loop.train(0, np.full(2, 0.05, np.float32))
    loop.rate = 0.3
    state = loop.state()
    kernel, bias = (v.astype("f8") for n, v in state.items() if n.startswith("model/"))
    velocity = state["optimizer/slot0"].astype("f8")
    velocity = [velocity[: kernel.size].reshape(kernel.shape), velocity[kernel.size :]]
    first, gradients, updates, relative = kernel.copy(), [], [], []
    for step in range(3):
        places = np.arange(16 * step, 16 * step + 16) % 40
        images, labels = dataset.train.images[places], dataset.train.labels[places]
        gradient = softmax_gradient(images, labels, kernel, bias)
        decayed = [gradient[0] + 0.05 * kernel, gradient[1]]
        velocity = [0.8 * v + g for v, g in zip(velocity, decayed, strict=True)]
        moved = velocity
        if nesterov:
            moved = [g + 0.8 * v for v, g in zip(velocity, decayed, strict=True)]
        relative.append(0.3 * np.linalg.norm(moved[0]) / np.linalg.norm(kernel))
        kernel, bias = kernel - 0.3 * moved[0], bias - 0.3 * moved[1]
        gradients.append(gradient)
        updates.append(moved)
    values = Gradients(batches=3, every=1).measure(loop, dataset)
    assert values["logits/weight_norm"] == pytest.approx(np.linalg.norm(first), rel=1e-5)
    expected = np.mean([np.linalg.norm(g[0]) for g in gradients])
    assert values["logits/gradient_norm"] == pytest.approx(expected, rel=1e-4)
    assert values["logits/relative_update"] == pytest.approx(np.mean(relative), rel=1e-4)
    expected = np.mean([degrees(updates[i][0], updates[i + 1][0]) for i in (0, 1)])
    assert values["logits/angle"] == pytest.approx(expected, rel=1e-3)
    flat = [np.concatenate([g.ravel(), b]) for g, b in gradients]
    expected = np.mean([degrees(flat[i], flat[i + 1]) for i in (0, 1)])
    assert values["gradient_angle"] == pytest.approx(expected, rel=1e-3)
    assert "logits/effective_rate" not in values
    assert set(values) == {"gradient_angle", *ALL, *(f"logits/{key}" for key in ALL)}
    for name, value in loop.state().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(momentum=0.9, nesterov=True, weight_decay=0.01, agc=0.02),
        AdamW(beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.1, agc=0.0),
    ],
    ids=["agc", "adamw"],
)
def test_first_steps_equal_those_of_training(loop_on, optimizer):
    inputs = keras.Input((3, 3, 2))
    x = keras.layers.Dense(5, activation="tanh", name="hidden")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))
    from normbench.engine.lookahead import lookahead
    from normbench.engine.random import epoch_order

    loop, dataset = loop_on(model, optimizer=optimizer)
    loop.train(0, np.full(1, 0.1, np.float32))
    order = np.asarray(keras.ops.convert_to_numpy(epoch_order(np.uint32(0), np.int32(0), 48)))
    batches = [(dataset.train.images[p], dataset.train.labels[p]) for p in order.reshape(3, 16)[1:]]
    steps = lookahead(loop, batches, 0.25)
    before = loop.weights()
    loop.train(1, np.full(2, 0.25, np.float32))
    np.testing.assert_allclose(
        steps[1].weights + steps[1].update, loop.weights(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(steps[0].weights, before)


def test_tiny_learning_rate_still_has_a_direction(regression, loop_on):
    loop, dataset = loop_on(regression)
    loop.rate = 1e-12
    values = Gradients(batches=3, every=1).measure(loop, dataset)
    assert values["angle"] == pytest.approx(values["gradient_angle"], abs=0.05)
    assert 0 < values["relative_update"] < 1e-10


def test_constrained_weights_stay_within_the_constraint(loop_on):
    inputs = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(3, kernel_constraint=keras.constraints.UnitNorm(), name="logits")
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    loop, dataset = loop_on(model)
    loop.train(0, np.full(1, 0.1, np.float32))
    loop.rate = 0.5
    from normbench.engine.lookahead import lookahead

    batch = (dataset.train.images[:16], dataset.train.labels[:16])
    (step,) = lookahead(loop, [batch], 0.5)
    moved = (step.weights + step.update)[:12].reshape(4, 3)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(step.direction * 0.5, step.update, rtol=1e-5)


def network(norm):
    config = compose(["arch=resnet8", "arch.width=8", f"norm={norm}"])
    return build_model(config, (8, 8, 3), 10)


SEEN = {
    "bn": {"logits"},
    "gn": {"logits"},
    "in": {"logits"},
    "ghost_bn": {"logits"},
    "none": None,
    "dyt": None,
    "none_wn": {"logits"},
    "gn_ws": {"logits"},
}
"""Kernels whose scale the outputs depend on, by normalization of the network; None for all."""


@pytest.mark.parametrize("norm", slow_except_on_jax(["bn", "none", "gn_ws"], SEEN))
def test_scale_invariant_kernels_are_recognized(norm):
    model = network(norm)
    names = set(kernels(model))
    assert len(names) == 10
    assert scale_invariant(model) == (set() if SEEN[norm] is None else names - SEEN[norm])


@pytest.mark.parametrize("norm", slow_except(["bn"], ["bn", "gn_ws"]))
def test_gradient_of_a_scale_invariant_kernel_is_orthogonal_to_it(norm, loop_on):
    """Euler's theorem for functions that a factor does not change: ⟨w, ∇f(w)⟩ = 0."""
    loop, dataset = loop_on(network(norm))
    weights = loop.weights()
    _, gradient = loop.gradients(dataset.train.images[:16], dataset.train.labels[:16])
    ends = np.cumsum([0, *(np.prod(v.shape) for v in loop.model.trainable_variables)]).astype(int)
    for name, (place,) in kernels(loop.model).items():
        section = slice(ends[place], ends[place + 1])
        off = abs(angle(weights[section], gradient[section]) - 90)
        assert off < 0.5 if name != "logits" else off > 0.5
    loop.rate = 0.2
    values = Gradients(batches=2, every=1).measure(loop, dataset)
    norm = values["stem_conv/weight_norm"]
    assert values["stem_conv/effective_rate"] == pytest.approx(0.2 / norm**2)


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match="batches must be at least 2, got 1"):
        Gradients(batches=1, every=1)
    with pytest.raises(UserError, match="every must be at least 1"):
        Gradients(batches=2, every=0)
