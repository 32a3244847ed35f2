"""The sharpness probe, against known Hessians."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model
from normbench.probes.sharpness import Sharpness, largest


def matrix(eigenvalues, seed=3):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    return (basis * eigenvalues) @ basis.T


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ([7.0, 3.0, 1.0, 0.5, 0.1, -2.0], 7.0),
        ([5.0, 4.0, 1.0, 0.5, 0.1, -20.0], 5.0),
        ([-1.0, -2.0, -3.0, -4.0, -5.0, -9.0], -1.0),
        ([1e4, 10.0, 1.0, 0.0, 0.0, 0.0], 1e4),
    ],
    ids=["positive", "negative-is-larger", "all-negative", "sharp"],
)
def test_largest_eigenvalue_of_a_quadratic(eigenvalues, expected):
    hessian = matrix(np.array(eigenvalues))
    weights = np.ones(6, np.float32)

    def gradient(at):
        return hessian @ at.astype("f8")

    result = largest(gradient, weights, 1e-3, 400, 1e-7)
    assert result.value == pytest.approx(expected, rel=1e-3)
    assert result.residual < 0.02


def test_few_products_suffice_despite_large_negative_eigenvalues():
    """Power iteration alone would waver between 10 and −9.9 for hundreds of products."""
    bulk = np.random.default_rng(0).normal(0, 0.3, 296)
    hessian = matrix(np.concatenate([[10.0, 6.0, -9.9, -7.0], bulk]))
    weights = np.ones(300, np.float32)
    result = largest(lambda at: hessian @ at.astype("f8"), weights, 1e-3, 20, 0.05)
    assert result.value == pytest.approx(10.0, rel=0.01)
    assert result.iterations < 20
    assert result.residual <= 0.05


def test_too_few_iterations_show_in_the_residual():
    hessian = matrix(np.array([7.0, 6.9, 6.8, 1.0, 0.1, 0.0]))
    result = largest(lambda at: hessian @ at.astype("f8"), np.ones(6, np.float32), 1e-3, 2, 1e-7)
    assert result.iterations == 2
    assert result.residual > 1e-3


def test_eigenvalue_of_a_plane_is_0():
    result = largest(lambda at: np.ones(len(at)), np.ones(6, np.float32), 1e-3, 9, 1e-2)
    assert result.value == 0
    assert result.iterations == 1


def test_matches_softmax_regression(loop_on):
    """Its Hessian is the mean of (diag p − p·pᵀ) ⊗ x·xᵀ."""
    inputs = keras.Input((2, 2, 2))
    dense = keras.layers.Dense(3, name="logits", use_bias=False)
    loop, dataset = loop_on(keras.Model(inputs, dense(keras.layers.Flatten()(inputs))))
    state = loop.state()
    x = ((dataset.train.images[:32] / 255 - 0.5) / 0.25).reshape(32, 8)
    scores = x @ loop.weights().astype("f8").reshape(8, 3)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    hessian = np.zeros((24, 24))
    for x_i, p_i in zip(x, p, strict=True):
        hessian += np.kron(np.outer(x_i, x_i), np.diag(p_i) - np.outer(p_i, p_i)) / 32
    probe = Sharpness(images=20, iterations=300, tolerance=1e-5, every=1)
    values = probe.measure(loop, dataset)
    assert values["eigenvalue"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=2e-3)
    assert values["residual"] < 0.03
    assert values["iterations"] < 300
    for name, value in loop.state().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_matches_a_network_of_positive_and_negative_curvature(loop_on):
    """A hidden tanh layer; the Hessian is from float64 differences of the gradient's formula."""
    inputs = keras.Input((2, 2, 2))
    hidden = keras.layers.Dense(5, activation="tanh", use_bias=False, name="hidden")
    logits = keras.layers.Dense(3, use_bias=False, name="logits")
    model = keras.Model(inputs, logits(hidden(keras.layers.Flatten()(inputs))))
    loop, dataset = loop_on(model)
    x = ((dataset.train.images[:16] / 255 - 0.5) / 0.25).reshape(16, 8)
    labels = dataset.train.labels[:16]

    def gradient(w):
        a, b = w[:40].reshape(8, 5), w[40:].reshape(5, 3)
        h = np.tanh(x @ a)
        p = np.exp(h @ b)
        p /= p.sum(1, keepdims=True)
        p[np.arange(16), labels] -= 1
        p /= 16
        return np.concatenate([(x.T @ ((p @ b.T) * (1 - h**2))).ravel(), (h.T @ p).ravel()])

    at, step = loop.weights().astype("f8"), 1e-5
    hessian = np.array(
        [(gradient(at + step * e) - gradient(at - step * e)) / (2 * step) for e in np.eye(55)]
    )
    eigenvalues = np.linalg.eigvalsh((hessian + hessian.T) / 2)
    assert eigenvalues[0] < -0.01
    values = Sharpness(images=16, iterations=400, tolerance=1e-5, every=1).measure(loop, dataset)
    assert values["eigenvalue"] == pytest.approx(eigenvalues[-1], rel=5e-3)


def test_scaling_scale_invariant_weights_divides_it_by_the_square(loop_on):
    """H(αw) = H(w)/α² for scale-invariant weights, by finite differences too."""
    config = compose(["arch=resnet8", "arch.width=4", "norm=bn", "norm.epsilon=1e-9"])
    loop, dataset = loop_on(build_model(config, (8, 8, 3), 4))
    others = [v for v in loop.model.trainable_variables if not v.path.endswith("conv1/kernel")]
    assert len(others) < len(loop.model.trainable_variables)
    at = loop.weights()
    batch = (dataset.train.images[:16], dataset.train.labels[:16])
    sizes = [int(np.prod(v.shape)) for v in loop.model.trainable_variables]
    names = [v.path for v in loop.model.trainable_variables]
    invariant = np.repeat([name.startswith("stage1_block1_conv1") for name in names], sizes)
    assert invariant.sum() == 3 * 3 * 4 * 4

    def sharpest(factor):
        def gradient(section):
            whole = at.copy()
            whole[invariant] = section
            return loop.gradients(*batch, whole)[1][invariant].astype("f8")

        section = at[invariant] * np.float32(factor)
        return largest(gradient, section, 1e-3 * float(np.linalg.norm(section)), 60, 1e-3).value

    assert sharpest(4.0) == pytest.approx(sharpest(1.0) / 16, rel=0.03)


def test_invalid_options_and_half_precision_are_refused(loop_on):
    for option in ({"images": 0}, {"iterations": 0}, {"tolerance": 1.0}):
        with pytest.raises(UserError, match=f"probe.sharpness.{next(iter(option))} must be"):
            Sharpness(**{"images": 1, "iterations": 1, "tolerance": 0.1, "every": 1, **option})
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Conv2D(2, 1, dtype="mixed_bfloat16", name="half")(inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    with pytest.raises(UserError, match="needs precision=float32: half computes in bfloat16"):
        Sharpness(images=1, iterations=1, tolerance=0.1, every=1).check(model)
