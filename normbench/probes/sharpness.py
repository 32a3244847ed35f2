"""The largest eigenvalue of the loss's Hessian: :class:`Sharpness`."""

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
"""κ, see :class:`Sharpness`: about the cube root of a hundred roundings of float32 (6·10⁻⁸)."""

_FIRST = 1e-3
"""Length of the first step, before any curvature is known, relative to ‖w‖."""

_NOTHING = 1e-6
"""Share of the largest eigenvalue below which the remainder of a product is only rounding."""


class Sharpness(Probe):
    """The largest eigenvalue of the Hessian of the training loss, by Lanczos iteration.

    The loss is the mean over the first ``images`` training images, without augmentation, in
    mini-batches of the training's size, each with its own statistics.

    The hand-written gradients of the normalizations have no second derivative. So the Hessian's
    product with a vector v of length 1 is a central difference of gradients in float32,
    Hv ≈ (∇L(w + hv) − ∇L(w − hv)) / 2h, with h = κ/√λ, where λ is the eigenvalue of largest
    magnitude so far: along its eigenvector, the loss then changes by κ²/2 nats. This h scales with
    the weights as λ does (with 1/‖w‖² for scale-invariant weights). κ = 0.02 balances two errors: a
    gradient of norm G is off by about a hundred roundings u of float32, a relative error of λ of
    100·u·G/(κ·√λ); and the third derivative contributes a relative error of κ²/12 if curvature
    changes over the length √(2/λ), over which the loss rises by 1. With G ≈ √λ, the total is
    smallest near κ = (6·100·u)^⅓ ≈ 0.03, and below 10⁻³. Across the kinks of a ReLU, the result is
    the mean curvature over 2h.

    Lanczos iteration is power iteration that remembers all its vectors: after m products with the
    Hessian, starting from a fixed random vector, λ is the maximum of vᵀHv over all v of length 1 in
    their span. Plain power iteration fails if a negative eigenvalue has nearly the same magnitude,
    which is common in networks with normalization. The m vectors are stored in float32. The
    iteration ends when the residual is below ``tolerance``, or after ``iterations``.

    Values:

    * ``eigenvalue``: λ, which is rather too low than too high.
    * ``residual``: ‖Hv − λv‖/|λ|. H has an eigenvalue within this relative distance of λ, and the
      error of λ is about its square.
    * ``iterations``: m, which equals the limit if the iteration did not converge.

    Args:
        images: Number of training images, rounded up to full mini-batches.
        iterations: Maximum number of products, of two gradients each.
        tolerance: Residual at which the iteration stops, in (0, 1).
        every: Epochs between two measurements.

    Raises:
        UserError: An option is out of range; from ``check``, the network computes in half
            precision, whose rounding would hide the differences of gradients.
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
        eigen = largest(gradient, weights, length, self.iterations, self.tolerance)
        return {
            "eigenvalue": eigen.value,
            "residual": eigen.residual,
            "iterations": float(eigen.iterations),
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
        length: Step h of the first difference.
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
        basis.append(vector.astype(np.float32))  # half the memory; the rounding is harmless
        # Orthogonalize twice, because rounding leaves the first pass inexact.
        for _ in range(2):
            for index, direction in enumerate(basis):
                component = float(direction @ rest)
                projected[index, count - 1] += component
                rest -= component * direction
        # The matrix in this basis, which is symmetric up to the errors of the differences.
        upper = np.triu(projected[:count, :count])
        matrix = upper + np.triu(upper, 1).T
        values, vectors = np.linalg.eigh(matrix)
        size, rest_norm = float(np.abs(values).max()), norm(rest)
        if not max(size, rest_norm):  # no curvature at all
            return Eigen(0.0, 0.0, count)
        value = float(values[-1])
        residual = rest_norm * abs(float(vectors[-1, -1])) / abs(value) if value else np.inf
        if residual <= tolerance or rest_norm <= _NOTHING * size:
            break
        vector = rest / rest_norm
        length = _KAPPA / np.sqrt(max(size, rest_norm))
    return Eigen(value, residual, len(basis))


def _product(
    gradient: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    vector: np.ndarray,
    length: float,
) -> np.ndarray:
    """Return the Hessian times a vector of length 1, float64 (P,)."""
    step = (length * vector).astype(np.float32)
    forward, backward = weights + step, weights - step
    # Divide by the actual distance, which is not 2h because weights are rounded to float32.
    distance = norm(forward.astype(np.float64) - backward.astype(np.float64))
    return (gradient(forward) - gradient(backward)) / distance
