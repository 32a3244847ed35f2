"""The largest eigenvalue of the loss's Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from normbench.errors import UserError
from normbench.probes.gradients import first_batches, norm
from normbench.probes.probe import Probe, checked_every

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

_KAPPA = 0.02
"""κ, see :class:`Sharpness`: the cube root of a hundred roundings of float32 (6·10⁻⁸), about."""

_FIRST = 1e-3
"""The very first step, before any curvature is known, as a share of ‖w‖."""


class Sharpness(Probe):
    """The largest eigenvalue of the Hessian of the training loss, by power iteration.

    The loss is the mean over the first ``images`` training images as they are stored, not
    augmented, in as many mini-batches of the training's size as hold them, each with its own
    statistics.

    The hand-written gradients of the normalizations have no second derivative, so the Hessian's
    product with a vector v of length 1 is a central difference of gradients in float32,
    Hv ≈ (∇L(w + hv) − ∇L(w − hv)) / 2h, with h = κ/√λ, where λ is the last estimate: along v the
    loss then bends by κ²/2 nats. The rule does not change with the scale of the weights, as λ does
    (for scale-invariant weights as 1/‖w‖²). Why κ = 0.02: a gradient of norm G is rounded by
    about a hundred roundings u of float32, which is 100·u·G/(κ·√λ) of λ, and the third derivative
    is seen as κ²/12 of λ where curvature changes over the length √(2/λ), at which the loss has
    risen by 1. With G ≈ √λ both are smallest near κ = (6·100·u)^⅓ ≈ 0.03, and below 10⁻³. Across
    the kinks of a ReLU it is the mean curvature over 2h.

    Power iteration from a fixed random vector stops when the estimate changes by less than
    ``tolerance`` of itself, or after ``iterations``. It finds the eigenvalue that is largest in
    size; where that is negative, it goes on with H + |λ|·1, whose largest eigenvalue belongs to
    the largest of H.

    Values:

    * ``eigenvalue``: λ, the Rayleigh quotient vᵀHv of the last vector.
    * ``residual``: ‖Hv − λv‖/|λ|: H has an eigenvalue within this share of λ of it.
    * ``iterations``: products with the Hessian; the limit, where it did not settle.

    Args:
        images: Training images; rounded up to whole mini-batches.
        iterations: Largest number of products, each two gradients, in each of the two phases.
        tolerance: In (0, 1).
        every: Epochs between two measurements.

    Raises:
        UserError: An option out of its range; from ``check``, a network that computes in half
            precision, whose roundings would be all there is to see.
    """

    name = "sharpness"

    def __init__(self, *, images: int, iterations: int, tolerance: float, every: int) -> None:
        for option, value in (("images", images), ("iterations", iterations)):
            if value < 1:
                raise UserError(f"probe.{self.name}.{option} must be at least 1, got {value}")
        if not 0 < tolerance < 1:
            raise UserError(f"probe.{self.name}.tolerance must be in (0, 1), got {tolerance:g}")
        self.images = images
        self.iterations = iterations
        self.tolerance = tolerance
        self.every = checked_every(self.name, every)

    def check(self, model: keras.Model) -> None:
        for layer in model._flatten_layers():
            if layer.compute_dtype in ("float16", "bfloat16"):
                raise UserError(
                    f"probe.{self.name} needs precision=float32: {layer.name} computes in "
                    f"{layer.compute_dtype}, whose roundings hide differences of gradients"
                )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        weights = loop.weights()
        batch = loop.plan.batch
        batches = list(first_batches(dataset, batch, -(-self.images // batch)))

        def gradient(at: np.ndarray) -> np.ndarray:
            total = np.zeros(len(at))
            for pixels, labels in batches:
                total += loop.gradients(pixels, labels, at)[1]
            return total / len(batches)

        length = _FIRST * norm(weights) or _KAPPA
        found = largest(gradient, weights, length, self.iterations, self.tolerance)
        return {
            "eigenvalue": found.value,
            "residual": found.residual,
            "iterations": float(found.iterations),
        }


class Eigen(NamedTuple):
    """What power iteration came to; see :class:`Sharpness`."""

    value: float
    residual: float
    iterations: int


def largest(
    gradient: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    length: float,
    iterations: int,
    tolerance: float,
) -> Eigen:
    """Return the largest eigenvalue of the Jacobian of ``gradient``, which is symmetric.

    Args:
        gradient: From float32 (P,) to float64 (P,).
        weights: Where, float32 (P,).
        length: h of the first difference.
        iterations: As for :class:`Sharpness`.
        tolerance: As for :class:`Sharpness`.
    """
    vector = np.random.default_rng(0).standard_normal(len(weights))
    vector /= norm(vector)
    value, residual, shift, count = 0.0, np.nan, 0.0, 0
    for phase in range(2):
        for _ in range(iterations):
            product = _product(gradient, weights, vector, length)
            count += 1
            before, value = value, float(vector @ product)
            residual = norm(product - value * vector)
            shifted = product + shift * vector
            size = norm(shifted)
            if not np.isfinite(size):
                return Eigen(np.nan, np.nan, count)
            if not size:  # no curvature at all
                return Eigen(value, 0.0, count)
            vector = shifted / size
            length = _KAPPA / np.sqrt(max(abs(value), norm(product)))
            if abs(value - before) <= tolerance * abs(value + shift):
                break
        if value >= 0 or phase:
            break
        shift = -value
        vector = np.random.default_rng(1).standard_normal(len(weights))
        vector /= norm(vector)
    return Eigen(value, residual / abs(value) if value else np.nan, count)


def _product(
    gradient: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    vector: np.ndarray,
    length: float,
) -> np.ndarray:
    """The Hessian times a vector of length 1, float64 (P,), over the distance really moved."""
    step = (length * vector).astype(np.float32)
    ahead, behind = weights + step, weights - step
    # Weights are rounded to float32: what lies between is not 2h·v to the last digit.
    moved = norm(ahead.astype(np.float64) - behind.astype(np.float64))
    return (gradient(ahead) - gradient(behind)) / moved
