"""Change of the loss and its gradient along the gradient's direction: :class:`Smoothness`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError
from normbench.probes.gradients import first_batches, norm

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop


class Smoothness(Probe):
    """The loss landscape along the gradient (Santurkar et al. 2018, section 3.1, figure 4).

    After the epoch, at the weights w, for each of the first ``batches`` mini-batches of training
    images (of the training's size, without augmentation, with the mini-batch's statistics): the
    gradient g = ∇L(w), then loss and gradient of the same mini-batch at w − η·g for each η in
    ``steps``. The paper does this at each training step, on that step's mini-batch.

    Values, each the mean over the mini-batches:

    * ``loss``: L(w); ``gradient_norm``: ‖g‖.
    * ``loss_low``, ``loss_high``: the smallest and the largest L(w − η·g) (figure 4a, "variation
      in loss").
    * ``change_low``, ``change_high``: the smallest and largest ‖g − ∇L(w − η·g)‖ (figure 4b,
      "gradient predictiveness").
    * ``beta``: the largest ‖g − ∇L(w − η·g)‖ / ‖η·g‖ (figure 4c, effective β-smoothness: the
      maximum difference in gradient over the distance moved).

    If a step leads to a loss or gradient that is not finite, the highest values and β are infinite,
    which is stored as null. In half precision, the differences are those of rounded gradients.

    Args:
        steps: Values of η, each positive, in units of the gradient and independent of the
            training's learning rate, so that they are the same for all normalizations.
        batches: Number of mini-batches.
        every: Epochs between two measurements.

    Raises:
        UserError: An option is out of range.
    """

    name = "smoothness"
    values = (
        ProbeValue("beta", "Effective β-smoothness", higher_is_better=False),
        ProbeValue("loss", "Loss of training images, training mode", digits=4),
        ProbeValue("loss_low", "Smallest loss along the gradient", digits=4),
        ProbeValue("loss_high", "Largest loss along the gradient", digits=4),
        ProbeValue("gradient_norm", "Norm of the gradient"),
        ProbeValue("change_low", "Smallest change of the gradient"),
        ProbeValue("change_high", "Largest change of the gradient"),
    )

    def __init__(self, *, steps: Sequence[float], batches: int, every: int) -> None:
        if not steps or not all(0 < step < np.inf for step in steps):
            raise UserError(f"probe.{self.name}.steps must be above 0 each, got {list(steps)}")
        if batches < 1:
            raise UserError(f"probe.{self.name}.batches must be at least 1, got {batches}")
        self.steps = tuple(float(step) for step in steps)
        self.batches = batches
        self.every = checked_every(self.name, every)

    def check(self, model: keras.Model) -> None:
        """Accept any network."""

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        weights = loop.weights()
        batch_values = [
            self._along(loop, pixels, labels, weights)
            for pixels, labels in first_batches(dataset, loop.settings.batch, self.batches)
        ]
        return {
            key: float(np.mean([values[key] for values in batch_values])) for key in batch_values[0]
        }

    def _along(
        self, loop: Loop, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> dict[str, float]:
        loss, gradient = loop.gradients(pixels, labels, weights)
        size = norm(gradient)
        losses, changes = [], []
        for step in self.steps:
            new_weights = weights - np.float32(step) * gradient
            moved_loss, moved_gradient = loop.gradients(pixels, labels, new_weights)
            losses.append(moved_loss)
            changes.append(norm(gradient - moved_gradient))
        losses, changes = (np.where(np.isfinite(x), x, np.inf) for x in (losses, changes))
        slopes = changes / (np.array(self.steps) * size) if size else np.array([np.nan])
        return {
            "loss": loss,
            "gradient_norm": size,
            "loss_low": float(losses.min()),
            "loss_high": float(losses.max()),
            "change_low": float(changes.min()),
            "change_high": float(changes.max()),
            "beta": float(slopes.max()),
        }
