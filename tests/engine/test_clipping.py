from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops

from normbench.engine.optimizer import clip_adaptively


def variable(name, shape, layer="conv"):
    return SimpleNamespace(name=name, path=f"{layer}/{name}", shape=shape)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("kernel", (3, 3, 4, 5), (0, 1, 2)),
        ("kernel", (6, 5), (0,)),
        ("depthwise_kernel", (3, 3, 4, 2), (0, 1)),
        ("gain", (5,), (0,)),
    ],
)
def test_gradient_of_a_unit_is_clipped_relative_to_its_weights(name, shape, axes, scale):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(np.float32)
    gradient = (rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))).astype(np.float32)
    gradient *= 0.1
    norms = np.sqrt((gradient.astype(np.float64) ** 2).sum(axes, keepdims=True))
    weights = np.sqrt((weight.astype(np.float64) ** 2).sum(axes, keepdims=True))
    most = 0.1 * np.maximum(weights, 1e-3)
    expected = gradient * np.where(norms > most, most / norms, 1.0)
    (got,) = clip_adaptively(
        [variable(name, shape)],
        [ops.convert_to_tensor(weight)],
        [ops.convert_to_tensor(gradient * np.float32(scale))],
        0.1,
        scale,
    )
    np.testing.assert_allclose(ops.convert_to_numpy(got) / scale, expected, rtol=1e-5)
    assert (norms > most).any()


def test_head_and_small_gradients_are_not_clipped():
    weight, gradient = np.ones((3, 2), np.float32), np.full((3, 2), 50, np.float32)
    head = variable("kernel", (3, 2), "logits")
    (got,) = clip_adaptively([head], [weight], [gradient], 0.01, 1.0)
    assert got is gradient
    (got,) = clip_adaptively([variable("kernel", (3, 2))], [weight], [weight * 1e-4], 0.01, 1.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(got), weight * 1e-4)


def test_zero_weights_can_still_move():
    zero = np.zeros((3, 2), np.float32)
    (got,) = clip_adaptively([variable("kernel", (3, 2))], [zero], [zero + 1], 0.1, 1.0)
    norms = np.sqrt((ops.convert_to_numpy(got) ** 2).sum(0))
    np.testing.assert_allclose(norms, 0.1 * 1e-3, rtol=1e-5)
