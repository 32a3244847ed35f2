import numpy as np
import pytest
from keras import ops

from normbench.engine.loop import correct, cross_entropy, logits_of, objective


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_its_formula(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 5)) * 8, rng.integers(0, 5, 7)
    target = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    shifted = logits - logits.max(1, keepdims=True)
    expected = -(target * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1)
    got = cross_entropy(
        ops.convert_to_tensor(logits.astype(np.float32)),
        ops.convert_to_tensor(labels.astype(np.int32)),
        smoothing,
    )
    np.testing.assert_allclose(ops.convert_to_numpy(got), expected, rtol=1e-5, atol=1e-6)


def test_loss_of_large_logits_is_finite():
    logits = ops.convert_to_tensor(np.array([[1e4, -1e4]], np.float32))
    got = cross_entropy(logits, ops.convert_to_tensor(np.array([1], np.int32)), 0.0)
    assert float(got[0]) == 2e4


def test_correct_counts_hits():
    logits = ops.convert_to_tensor(np.array([[1, 2], [3, 0], [0, 1]], np.float32))
    assert int(correct(logits, ops.convert_to_tensor(np.array([1, 0, 0], np.int32)))) == 2


def test_auxiliary_classifiers_add_their_weighted_losses():
    rng = np.random.default_rng(0)
    labels = ops.convert_to_tensor(rng.integers(0, 5, 7).astype(np.int32))
    outputs = [ops.convert_to_tensor(rng.normal(size=(7, 5)).astype(np.float32)) for _ in range(3)]
    alone = [float(ops.mean(cross_entropy(logits, labels, 0.1))) for logits in outputs]
    got = float(objective(outputs, labels, 0.1, 0.3))
    assert got == pytest.approx(alone[0] + 0.3 * (alone[1] + alone[2]), rel=1e-6)
    assert float(objective(outputs[0], labels, 0.1, 0.3)) == pytest.approx(alone[0], rel=1e-6)
    assert logits_of(outputs) is outputs[0]
    assert logits_of(outputs[1]) is outputs[1]
