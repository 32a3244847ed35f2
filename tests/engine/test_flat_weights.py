"""Weights in vectors: packed and unpacked without loss, and trained like one vector."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.engine import loop_tensorflow as tensorflow_loop
from normbench.engine.flat_weights import WeightVectors
from normbench.engine.optimizer import SGD, AdamW
from tests.engine.tinyloop import loop_of
from tests.marks import slow_except

SHAPES = [(2, 3), (5,), (4, 4), (), (3, 3, 2)]


@pytest.mark.parametrize(
    ("large", "sizes"),
    [(None, [46]), (100, [46]), (6, [6, 6, 16, 18]), (16, [12, 16, 18]), (1, [6, 5, 16, 1, 18])],
)
def test_weights_survive_the_round_trip(large, sizes):
    random = np.random.default_rng(0)
    tensors = [random.normal(size=shape).astype(np.float32) for shape in SHAPES]
    layout = WeightVectors(SHAPES, large)
    vectors = [keras.ops.convert_to_numpy(vector) for vector in layout.vectors(tensors)]
    assert [vector.shape for vector in vectors] == [(size,) for size in sizes]
    for tensor, restored in zip(tensors, layout.tensors(vectors), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(restored), tensor)
    whole = np.concatenate([tensor.ravel() for tensor in tensors])
    for piece, vector in zip(layout.split(whole), vectors, strict=True):
        np.testing.assert_array_equal(piece, vector)
    np.testing.assert_array_equal(layout.join(vectors), whole)


OPTIMIZERS = {
    "nesterov": SGD(momentum=0.9, nesterov=True, weight_decay=1e-2, agc=0.0),
    "clipped": SGD(momentum=0.9, nesterov=False, weight_decay=1e-2, agc=0.01),
    "adamw": AdamW(beta1=0.9, beta2=0.99, epsilon=1e-3, weight_decay=1e-1, agc=0.0),
}
CASES = [(name, precision) for name in OPTIMIZERS for precision in ("float32", "mixed_float16")]
QUICK = [("clipped", "mixed_float16"), ("adamw", "float32")]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX has one vector")
@pytest.mark.parametrize(("optimizer", "precision"), slow_except(QUICK, CASES))
def test_several_vectors_train_like_one(monkeypatch, optimizer, precision):
    rates, ends = np.full(3, 0.05, np.float32), []
    options = {"count": 48, "optimizer": OPTIMIZERS[optimizer]}
    for large in (10**9, 500, 1):
        monkeypatch.setattr(tensorflow_loop, "LARGE", large)
        loop, _ = loop_of("norm=gn_ws", f"precision={precision}", **options)
        assert len(loop._slots) > 1 or large == 10**9
        loop.begin_epoch(0)
        steps = loop.train(0, rates)
        ends.append((loop.state(), steps))
    (state, steps), *others = ends
    for other_state, other_steps in others:
        assert other_state.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_allclose(other_state[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(other_steps.loss, steps.loss, rtol=1e-4)
        np.testing.assert_allclose(other_steps.grad_norm, steps.grad_norm, rtol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX has one vector")
def test_state_is_restored_into_differently_split_vectors(monkeypatch):
    """As when reading a checkpoint that another machine wrote."""
    rates, ends = np.full(1, 0.05, np.float32), []
    loops = []
    for large in (500, 10**9):
        monkeypatch.setattr(tensorflow_loop, "LARGE", large)
        loop, _ = loop_of("norm=gn", momentum=0.9)
        loop.begin_epoch(0)
        loops.append(loop)
    loops[0].train(0, rates)
    state = loops[0].state()
    for loop in loops:
        loop.load(state)
        assert all(np.array_equal(value, state[name]) for name, value in loop.state().items())
        loop.train(1, rates)
        ends.append(loop.state())
    assert not np.array_equal(ends[0]["optimizer/slot0"], state["optimizer/slot0"])
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
