"""Dependence of an image's logits on its mini-batch: :class:`BatchDependence`."""

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
"""Seed of the random choice of other neighbors for each image."""


class BatchDependence(Probe):
    """Differences between the logits of the same images in different mini-batches.

    The references are mini-batches of W validation images, where W is the largest of ``sizes``,
    once in inference mode and once with mini-batch statistics, as in training but without dropout.
    A network without batch statistics must show no difference at all, so nothing else may vary.
    Libraries round differently for another number of images, and for an image at another index of
    the mini-batch. Therefore every mini-batch has W images, and every image keeps its index:

    * ``<mode>_neighbours_…``: each image is combined with other images, still W in total;
    * ``<mode>_size<b>_…``: each image is in a mini-batch of b images, itself and its b − 1
      neighbors in the reference, repeated W/b times. Means, biased variances, covariances, minima
      and maxima of such a mini-batch are those of its b images.

    ``<mode>`` is ``inference`` or ``training``. The values are ``max`` and ``mean`` of the absolute
    difference over images and logits, and ``changed``, the share of images (0..1) whose predicted
    class changes.

    Args:
        images: Number of validation images, evenly spread; all if there are fewer.
        sizes: Sizes of mini-batches; the largest must be a multiple of the others.
        every: Epochs between two measurements.

    Raises:
        UserError: An option is below 1, or a size does not divide the largest; from ``check``, a
            layer's ghost batches do not divide the largest size.
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
                    f"probe.{self.name}.sizes: the largest, {self.width}, is not a multiple of the "
                    f"{ghost} images that {layer.name} normalizes together"
                )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        pixels = dataset.validation.images
        sample = minibatches.spread(len(pixels), self.images)
        rows = max(2, -(-len(sample) // self.width))  # at least two, so that images can be mixed
        # Fill up with the first images; their repeated logits are dropped below.
        order = np.resize(sample, (rows, self.width))
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
            variants = {"neighbours": _among_others(order, logits)}
            for size in self.sizes:
                variants[f"size{size}"] = _in_batches_of(size, order, logits)
            for kind, result in variants.items():
                pair = [x.reshape(-1, x.shape[-1])[: len(sample)] for x in (result, reference)]
                values |= {f"{mode}_{kind}_{key}": v for key, v in _differences(*pair).items()}
        return values


def _among_others(order: np.ndarray, logits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return logits (rows, width, K) with each column of ``order`` rotated by a random number."""
    rows, width = order.shape
    turns = np.random.PCG64(np.random.SeedSequence(_SEED)).random_raw(width) % np.uint64(rows)
    columns = np.arange(width)
    row = (np.arange(rows)[:, None] + turns.astype(np.int64)) % rows
    outputs = np.stack([logits(indices) for indices in order[row, columns]])
    result = np.empty_like(outputs)
    result[row, columns] = outputs
    return result


def _in_batches_of(
    size: int, order: np.ndarray, logits: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return logits (rows, width, K) where ``size`` neighboring images fill a mini-batch alone."""
    width = order.shape[1]
    rows = []
    for indices in order:
        groups = []
        for start in range(0, width, size):
            batch = np.tile(indices[start : start + size], width // size)
            groups.append(logits(batch)[start : start + size])
        rows.append(np.concatenate(groups))
    return np.stack(rows)


def _differences(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    difference = np.abs(logits - reference)
    flips = logits.argmax(axis=1) != reference.argmax(axis=1)
    return {
        "max": float(difference.max()),
        "mean": float(difference.mean()),
        "changed": float(flips.mean()),
    }
