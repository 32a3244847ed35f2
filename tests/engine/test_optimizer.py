import numpy as np
import pytest
from keras import ops

from normbench.engine.optimizer import SGD, AdamW
from normbench.errors import UserError

RATES = (0.1, 0.05, 0.2)


def run(optimizer, weights, gradients, decayed):
    slots = [ops.zeros(weights.shape)] * optimizer.slots
    weights = ops.convert_to_tensor(weights)
    for step, (rate, gradient) in enumerate(zip(RATES, gradients, strict=True)):
        weights, slots = optimizer.update(
            weights,
            ops.convert_to_tensor(gradient),
            slots,
            rate,
            ops.convert_to_tensor(step),
            ops.convert_to_tensor(decayed),
        )
    return ops.convert_to_numpy(weights)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=6).astype(np.float32)
    gradients = [rng.normal(size=6).astype(np.float32) for _ in RATES]
    return weights, gradients, np.array([1, 1, 1, 0, 0, 0], np.float32)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_matches_torch(problem, nesterov):
    torch = pytest.importorskip("torch")
    weights, gradients, _ = problem
    parts = [torch.nn.Parameter(torch.tensor(section)) for section in np.split(weights, 2)]
    reference = torch.optim.SGD(
        [
            {"params": parts[:1], "weight_decay": 0.01},
            {"params": parts[1:], "weight_decay": 0.0},
        ],
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
    )
    for rate, gradient in zip(RATES, gradients, strict=True):
        for group, part, section in zip(
            reference.param_groups, parts, np.split(gradient, 2), strict=True
        ):
            group["lr"] = rate
            part.grad = torch.tensor(section)
        reference.step()
    got = run(SGD(momentum=0.9, nesterov=nesterov, weight_decay=0.01, agc=0.0), *problem)
    np.testing.assert_allclose(
        got, np.concatenate([part.detach().numpy() for part in parts]), rtol=2e-6
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_its_formula(problem, nesterov):
    weights, gradients, decayed = problem
    w, v = weights.astype(np.float64), np.zeros(6)
    for rate, gradient in zip(RATES, gradients, strict=True):
        g = gradient + 0.01 * decayed * w
        v = 0.9 * v + g
        w = w - rate * (g + 0.9 * v if nesterov else v)
    got = run(SGD(momentum=0.9, nesterov=nesterov, weight_decay=0.01, agc=0.0), *problem)
    np.testing.assert_allclose(got, w, rtol=2e-6)


def test_adamw_equals_its_formula(problem):
    weights, gradients, decayed = problem
    w, m, s = weights.astype(np.float64), np.zeros(6), np.zeros(6)
    for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), 1):
        m, s = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g * g
        adam = (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.99**t)) + 1e-8)
        w = w - rate * (adam + 0.05 * decayed * w)
    got = run(AdamW(beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.05, agc=0.0), *problem)
    np.testing.assert_allclose(got, w, rtol=1e-5)


def test_values_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"optimizer\.momentum must be in \[0, 1\), got 1"):
        SGD(momentum=1.0, nesterov=False, weight_decay=0.0, agc=0.0)
    with pytest.raises(UserError, match="weight_decay"):
        SGD(momentum=0.9, nesterov=False, weight_decay=-1.0, agc=0.0)
