"""Weights in parts: laid out and taken apart without loss, and trained as one vector is."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.engine import loop_tensorflow as tensorflow_loop
from normbench.engine.flat_weights import WeightVectors
from normbench.engine.optimizer import SGD, AdamW
from tests.engine.tinyloop import loop_of

SHAPES = [(2, 3), (5,), (4, 4), (), (3, 3, 2)]


@pytest.mark.parametrize(
    ("large", "sizes"),
    [(None, [46]), (100, [46]), (6, [6, 6, 16, 18]), (16, [12, 16, 18]), (1, [6, 5, 16, 1, 18])],
)
def test_nothing_is_lost_or_moved(large, sizes):
    random = np.random.default_rng(0)
    tensors = [random.normal(size=shape).astype(np.float32) for shape in SHAPES]
    parts = WeightVectors(SHAPES, large)
    vectors = [keras.ops.convert_to_numpy(each) for each in parts.vectors(tensors)]
    assert [each.shape for each in vectors] == [(size,) for size in sizes]
    for given, made in zip(tensors, parts.tensors(vectors), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(made), given)
    whole = np.concatenate([each.ravel() for each in tensors])
    for one, other in zip(parts.split(whole), vectors, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(parts.join(vectors), whole)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX has one part")
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(momentum=0.9, nesterov=True, weight_decay=1e-2, agc=0.0),
        SGD(momentum=0.9, nesterov=False, weight_decay=1e-2, agc=0.01),
        AdamW(beta1=0.9, beta2=0.99, epsilon=1e-3, weight_decay=1e-1, agc=0.0),
    ],
    ids=["nesterov", "clipped", "adamw"],
)
def test_parts_train_as_one_vector(monkeypatch, optimizer, precision):
    rates, ends = np.full(3, 0.05, np.float32), []
    for large in (10**9, 500, 1):
        monkeypatch.setattr(tensorflow_loop, "LARGE", large)
        loop, _ = loop_of("norm=gn_ws", f"precision={precision}", count=48, optimizer=optimizer)
        assert len(loop._slots) > 1 or large == 10**9
        loop.begin_epoch(0)
        steps = loop.train(0, rates)
        ends.append((loop.state(), steps))
    (state, steps), *others = ends
    for own, its_steps in others:
        assert own.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_allclose(own[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(its_steps.loss, steps.loss, rtol=1e-4)
        np.testing.assert_allclose(its_steps.grad_norm, steps.grad_norm, rtol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX has one part")
def test_a_state_goes_on_in_other_parts(monkeypatch):
    """As where a checkpoint is read that another machine wrote."""
    rates, ends = np.full(1, 0.05, np.float32), []
    monkeypatch.setattr(tensorflow_loop, "LARGE", 500)
    first, _ = loop_of("norm=gn", momentum=0.9)
    first.begin_epoch(0)
    first.train(0, rates)
    state = first.state()
    for large in (500, 10**9):
        monkeypatch.setattr(tensorflow_loop, "LARGE", large)
        loop, _ = loop_of("norm=gn", momentum=0.9)
        loop.load(state)
        assert all(np.array_equal(value, state[name]) for name, value in loop.state().items())
        loop.begin_epoch(0)
        loop.train(1, rates)
        ends.append(loop.state())
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
