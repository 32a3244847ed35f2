"""Norms of weights, gradients and updates, and angles between updates: :class:`Gradients`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import keras

    from normbench.data.split import Dataset
    from normbench.engine.lookahead import Step
    from normbench.engine.loop import Loop


class Gradients(Probe):
    """Norms of weights and gradients, relative updates, and angles between updates.

    Training steps are neither observed nor taken. After the epoch, the optimizer's own formula is
    applied ``batches`` times in a row to copies of the weights and slots
    (:func:`normbench.engine.lookahead.lookahead`), on the first training images without
    augmentation, in mini-batches of the training's size, at the learning rate of the epoch's last
    step. Each measurement uses the same images, starting over if they run out.

    Values for all weights together and, as ``<layer>/…``, for the kernel of each layer that has
    one:

    * ``weight_norm``: ‖w‖ of the present weights.
    * ``gradient_norm``: ‖g‖ of a mini-batch's loss, without weight decay and before clipping,
      averaged over the steps.
    * ``relative_update``: ‖Δw‖/‖w‖ of a step (the effective learning rate), averaged over the
      steps.
    * ``angle``: mean angle between the updates of successive steps, in degrees; missing if an
      update is 0. Momentum keeps it small.
    * ``gradient_angle``, only for all weights together: mean angle between successive gradients.
    * ``<layer>/effective_rate``: η/‖w‖² of kernels whose scale does not affect the network, which
      is the effective learning rate of gradient descent for their direction (van Laarhoven 2017,
      arXiv 1706.05350, section 3; Hoffer et al. 2018, arXiv 1803.01814, section 3). For an
      optimizer that normalizes its steps, such as Adam, ``relative_update`` is more meaningful.

    In half precision the gradients are those of training, including rounding.

    Args:
        batches: Number of steps, at least 2.
        every: Epochs between two measurements.

    Raises:
        UserError: An option is out of range.
    """

    name = "gradients"
    values = (
        ProbeValue("relative_update", "Relative update ‖Δw‖/‖w‖", digits=5, curve="log"),
        ProbeValue("angle", "Angle between updates", "°", digits=1, curve="linear"),
        ProbeValue("gradient_angle", "Angle between gradients", "°", digits=1, curve="linear"),
        ProbeValue("weight_norm", "Norm of the weights"),
        ProbeValue("gradient_norm", "Norm of the gradient"),
        ProbeValue("*/relative_update", "Relative update ‖Δw‖/‖w‖", digits=5),
        ProbeValue("*/angle", "Angle between updates", "°", digits=1),
        ProbeValue("*/weight_norm", "Norm of the kernel"),
        ProbeValue("*/gradient_norm", "Norm of the kernel's gradient"),
        ProbeValue("*/effective_rate", "Effective learning rate η/‖w‖²", digits=5),
    )

    def __init__(self, *, batches: int, every: int) -> None:
        if batches < 2:
            raise UserError(f"probe.{self.name}.batches must be at least 2, got {batches}")
        self.batches = batches
        self.every = checked_every(self.name, every)
        self._invariant: tuple[object, set[str]] = (None, set())

    def check(self, model: keras.Model) -> None:
        from normbench.probes.invariance import kernels

        if not kernels(model):
            raise UserError(f"probe.{self.name}: no layer of {model.name} has a kernel")

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        from normbench.engine.lookahead import lookahead
        from normbench.probes.invariance import kernels, scale_invariant

        if loop.rate is None:
            raise ValueError("probe gradients: the loop's learning rate is not set")
        model = loop.model
        if self._invariant[0] is not model:
            self._invariant = (model, scale_invariant(model))
        batches = first_batches(dataset, loop.settings.batch, self.batches)
        steps = lookahead(loop, batches, loop.rate)
        values = _of_all(steps)
        ends = np.cumsum([0, *(int(np.prod(v.shape)) for v in model.trainable_variables)])
        for name, variables in kernels(model).items():
            indices = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in variables])
            values |= {f"{name}/{key}": value for key, value in _of(steps, indices).items()}
            if name in self._invariant[1]:
                norm = values[f"{name}/weight_norm"]
                values[f"{name}/effective_rate"] = loop.rate / norm**2 if norm else np.inf
        return values


def first_batches(
    dataset: Dataset, batch: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide the first training images into mini-batches, starting over if they run out.

    Yields:
        Pixels, uint8 (``batch``, H, W, C), and labels, int32 (``batch``,), ``count`` times.
    """
    images, labels = dataset.train.images, dataset.train.labels
    for index in range(count):
        indices = np.arange(index * batch, (index + 1) * batch) % len(labels)
        yield np.asarray(images[indices]), np.asarray(labels[indices], np.int32)


def norm(vector: np.ndarray) -> float:
    """Return the Euclidean norm, summed in float64."""
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """Return the angle between two vectors in degrees, or NaN if one of them is 0."""
    lengths = norm(one) * norm(other)
    if not lengths > 0:
        return np.nan
    cosine = np.dot(one.astype(np.float64), other.astype(np.float64)) / lengths
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _of_all(steps: list[Step]) -> dict[str, float]:
    values = _of(steps, np.arange(len(steps[0].weights)))
    gradients = [step.gradient for step in steps]
    return values | {"gradient_angle": _mean_angle(gradients)}


def _of(steps: list[Step], indices: np.ndarray) -> dict[str, float]:
    """Return the values of the weights at ``indices``."""
    sizes = [(norm(step.update[indices]), norm(step.weights[indices])) for step in steps]
    return {
        "weight_norm": sizes[0][1],
        "gradient_norm": float(np.mean([norm(step.gradient[indices]) for step in steps])),
        "relative_update": float(np.mean([update / w if w else np.inf for update, w in sizes])),
        "angle": _mean_angle([step.direction[indices] for step in steps]),
    }


def _mean_angle(vectors: list[np.ndarray]) -> float:
    """Return the mean angle between successive vectors, or NaN (stored as null) if none exists."""
    angles = [angle(one, other) for one, other in pairwise(vectors)]
    numbers = [value for value in angles if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else np.nan
