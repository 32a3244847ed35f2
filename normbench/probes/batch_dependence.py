"""Dependence of an image's logits on the mini-batch that it is in: BatchDependence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError
from normbench.probes import minibatches

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

_SEED = 1
"""Seed of the choice of other neighbours for each image."""


class BatchDependence(Probe):
    """Differences between logits of the same images in other mini-batches.

    The reference are mini-batches of W validation images, the largest of ``sizes``, once in
    inference mode and once with the statistics of the mini-batch, as in training but without
    dropout. A network without batch statistics must show no difference at all, so nothing else may
    vary: libraries round differently for another number of images, and for an image at another
    index of the mini-batch. Therefore every mini-batch has W images, and every image keeps its
    index in it:

    * ``<mode>_neighbours_…``: each image is put among others, still W in all;
    * ``<mode>_size<b>_…``: each image is put in a mini-batch of b images, with the same b − 1
      neighbours, all of them repeated W/b times. Means, biased variances, covariances, minima and
      maxima of such a mini-batch are those of its b images.

    ``<mode>`` is ``inference`` or ``training``; the values are ``max`` and ``mean``, of the
    absolute difference over images and logits, and ``changed``, the share of images (0..1) whose
    class with the highest logit is another.

    Args:
        images: Number of validation images, evenly spread; all if there are fewer.
        sizes: Sizes of mini-batches; the largest must be a multiple of the others.
        every: Epochs between two measurements.

    Raises:
        UserError: An option below 1, or sizes that do not divide the largest; from ``check``, a
            largest size that a layer's ghost batches do not divide.
    """

    name = "batch_dependence"
    values = (
        ProbeValue(
            "training_neighbours_changed",
            "Classes that depend on the batch, training mode",
            "%",
            100.0,
            1,
            curve="linear",
        ),
        ProbeValue(
            "inference_neighbours_changed",
            "Classes that depend on the batch, inference mode",
            "%",
            100.0,
            1,
        ),
        ProbeValue("*_changed", "Classes that depend on the batch", "%", 100.0, 1),
        ProbeValue("*_mean", "Mean difference of logits", digits=4),
        ProbeValue("*_max", "Largest difference of logits", digits=4),
    )

    def __init__(self, *, images: int, sizes: Sequence[int], every: int) -> None:
        if images < 1:
            raise UserError(f"probe.{self.name}.images must be at least 1, got {images}")
        if not sizes or min(sizes) < 1:
            raise UserError(f"probe.{self.name}.sizes must be at least 1 each, got {list(sizes)}")
        self.images = images
        self.width = max(sizes)
        self.sizes = tuple(sorted(set(sizes) - {self.width}))
        for size in self.sizes:
            if self.width % size:
                raise UserError(
                    f"probe.{self.name}.sizes: {size} does not divide the largest, {self.width}"
                )
        self.every = checked_every(self.name, every)

    def check(self, model: keras.Model) -> None:
        from normbench.network import layers_within

        for layer in layers_within(model):
            ghost = getattr(layer, "virtual_batch", 1)
            if self.width % ghost:
                raise UserError(
                    f"probe.{self.name}.sizes: the largest, {self.width}, is no multiple of the "
                    f"{ghost} images that {layer.name} normalizes together"
                )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        pixels = dataset.validation.images
        chosen = minibatches.spread(len(pixels), self.images)
        rows = max(2, -(-len(chosen) // self.width))  # at least two, so that there are others
        # Filled up with the first images, whose second logits do not count.
        order = np.resize(chosen, (rows, self.width))
        values: dict[str, float] = {}
        for mode, batch_statistics in (("inference", False), ("training", True)):

            def logits(
                indices: np.ndarray, batch_statistics: bool = batch_statistics
            ) -> np.ndarray:
                outputs = loop.inspect(
                    loop.model, pixels[indices], batch_statistics=batch_statistics
                )
                return outputs[0].astype(np.float64)

            reference = np.stack([logits(indices) for indices in order])
            found = {"neighbours": _among_others(order, logits)}
            for size in self.sizes:
                found[f"size{size}"] = _in_batches_of(size, order, logits)
            for kind, given in found.items():
                apart = [
                    each.reshape(-1, each.shape[-1])[: len(chosen)] for each in (given, reference)
                ]
                values |= {f"{mode}_{kind}_{key}": v for key, v in _differences(*apart).items()}
        return values


def _among_others(order: np.ndarray, logits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return logits (rows, width, K) with each column of ``order`` rotated by a random number."""
    rows, width = order.shape
    turns = np.random.PCG64(np.random.SeedSequence(_SEED)).random_raw(width) % np.uint64(rows)
    columns = np.arange(width)
    row = (np.arange(rows)[:, None] + turns.astype(np.int64)) % rows
    turned = np.stack([logits(indices) for indices in order[row, columns]])
    back = np.empty_like(turned)
    back[row, columns] = turned
    return back


def _in_batches_of(
    size: int, order: np.ndarray, logits: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return logits (rows, width, K) where ``size`` neighbouring images fill a mini-batch alone."""
    width = order.shape[1]
    rows = []
    for indices in order:
        groups = []
        for start in range(0, width, size):
            repeated = np.tile(indices[start : start + size], width // size)
            groups.append(logits(repeated)[start : start + size])
        rows.append(np.concatenate(groups))
    return np.stack(rows)


def _differences(given: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    apart = np.abs(given - reference)
    changed = given.argmax(axis=1) != reference.argmax(axis=1)
    return {
        "max": float(apart.max()),
        "mean": float(apart.mean()),
        "changed": float(changed.mean()),
    }
