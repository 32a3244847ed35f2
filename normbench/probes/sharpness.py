"""The largest eigenvalue of the loss's Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError
from normbench.probes.gradients import first_batches, norm

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

_KAPPA = 0.02
"""κ, see :class:`Sharpness`: the cube root of a hundred roundings of float32 (6·10⁻⁸), about."""

_FIRST = 1e-3
"""The very first step, before any curvature is known, as a share of ‖w‖."""

_NOTHING = 1e-6
"""Share of the largest eigenvalue below which the rest of a product is rounding alone."""


class Sharpness(Probe):
    """The largest eigenvalue of the Hessian of the training loss, by Lanczos iteration.

    The loss is the mean over the first ``images`` training images as they are stored, not
    augmented, in as many mini-batches of the training's size as hold them, each with its own
    statistics.

    The hand-written gradients of the normalizations have no second derivative, so the Hessian's
    product with a vector v of length 1 is a central difference of gradients in float32,
    Hv ≈ (∇L(w + hv) − ∇L(w − hv)) / 2h, with h = κ/√λ, where λ is the largest in size so far:
    along its vector the loss then bends by κ²/2 nats. The rule goes with the scale of the weights,
    as λ does (for scale-invariant weights as 1/‖w‖²). Why κ = 0.02: a gradient of norm G is off by
    about a hundred roundings u of float32, which is 100·u·G/(κ·√λ) of λ, and the third derivative
    is seen as κ²/12 of λ where curvature changes over the length √(2/λ), at which the loss has
    risen by 1. With G ≈ √λ both are smallest near κ = (6·100·u)^⅓ ≈ 0.03, and below 10⁻³. Across
    the kinks of a ReLU it is the mean curvature over 2h.

    Lanczos iteration is power iteration that forgets no vector it went through: after m products
    with the Hessian, from a fixed random vector, λ is the largest that vᵀHv gets for any v of
    length 1 among them. Plain power iteration has nothing to tell where a negative eigenvalue is
    nearly as large in size, as networks with normalizations have them. The m vectors are kept in
    float32. It ends when the residual is below ``tolerance``, or after ``iterations``.

    Values:

    * ``eigenvalue``: λ; if anything too low.
    * ``residual``: ‖Hv − λv‖/|λ|: H has an eigenvalue within this share of λ of it. The error of λ
      falls with the square of it.
    * ``iterations``: m; the limit, where it did not settle.

    Args:
        images: Number of training images; rounded up to whole mini-batches.
        iterations: Largest number of products, each two gradients.
        tolerance: Residual at which the iteration stops, in (0, 1).
        every: Epochs between two measurements.

    Raises:
        UserError: An option out of its range; from ``check``, a network that computes in half
            precision, whose roundings would be all there is to see.
    """

    name = "sharpness"
    values = (
        ProbeValue("eigenvalue", "Largest Hessian eigenvalue", digits=2, curve="log"),
        ProbeValue("residual", "Residual of the largest Hessian eigenvalue"),
        ProbeValue("iterations", "Products with the Hessian", digits=0),
    )

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
        from normbench.network import layers_within

        for layer in layers_within(model):
            if layer.compute_dtype in ("float16", "bfloat16"):
                raise UserError(
                    f"probe.{self.name} needs precision=float32: {layer.name} computes in "
                    f"{layer.compute_dtype}, whose roundings hide differences of gradients"
                )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        weights = loop.weights()
        batch = loop.settings.batch
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
    """Result of the iteration; see :class:`Sharpness`."""

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
        gradient: Function from float32 (P,) to float64 (P,).
        weights: Point at which the Jacobian is taken, float32 (P,).
        length: h of the first difference.
        iterations: See :class:`Sharpness`.
        tolerance: See :class:`Sharpness`.
    """
    vector = np.random.default_rng(0).standard_normal(len(weights))
    vector /= norm(vector)
    basis: list[np.ndarray] = []
    projected = np.zeros((iterations, iterations))
    value = residual = np.nan
    for count in range(1, min(iterations, len(weights)) + 1):
        rest = _product(gradient, weights, vector, length)
        if not np.isfinite(norm(rest)):
            return Eigen(np.nan, np.nan, count)
        basis.append(vector.astype(np.float32))  # half the memory; rounding does no harm
        # Orthogonalize twice, because rounding leaves the first pass inexact.
        for _ in range(2):
            for index, direction in enumerate(basis):
                component = float(direction @ rest)
                projected[index, count - 1] += component
                rest -= component * direction
        # The matrix in the basis, which is symmetric but for the errors of the differences.
        upper = np.triu(projected[:count, :count])
        known = upper + np.triu(upper, 1).T
        values, vectors = np.linalg.eigh(known)
        size, left = float(np.abs(values).max()), norm(rest)
        if not max(size, left):  # no curvature at all
            return Eigen(0.0, 0.0, count)
        value = float(values[-1])
        residual = left * abs(float(vectors[-1, -1])) / abs(value) if value else np.inf
        if residual <= tolerance or left <= _NOTHING * size:
            break
        vector = rest / left
        length = _KAPPA / np.sqrt(max(size, left))
    return Eigen(value, residual, len(basis))


def _product(
    gradient: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    vector: np.ndarray,
    length: float,
) -> np.ndarray:
    """Return the Hessian times a vector of length 1, float64 (P,)."""
    step = (length * vector).astype(np.float32)
    ahead, behind = weights + step, weights - step
    # Divide by the distance really moved: weights are rounded to float32, so that it is not 2h.
    moved = norm(ahead.astype(np.float64) - behind.astype(np.float64))
    return (gradient(ahead) - gradient(behind)) / moved
