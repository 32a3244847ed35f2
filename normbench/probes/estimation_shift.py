"""The estimation shift of layers with population statistics: :class:`EstimationShift`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from normbench.data.streaming import ImageView
from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError
from normbench.probes import minibatches

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop
    from normbench.probes.population import Keeper, Statistics

_ORDER = 0
"""Seed of the order in which validation images are divided into mini-batches."""

SUMMARIZED = ("mean_shift", "std_shift")


class EstimationShift(Probe):
    """Distance of the population statistics used in inference from the true ones, and its cost.

    Huang et al. 2022 (section 3) compare Batch Normalization's population statistics μ̂, σ̂² with
    the actual statistics μ, σ² of its input in inference, where all preceding layers use their
    population statistics; they find that this shift grows with depth. Here μ and σ² are computed
    over training images, without augmentation, with the present weights, for each layer with moving
    statistics. The moving statistics were averaged over augmented images and older weights, with
    the preceding layers in training mode; the shift includes all of these effects.

    With norms over channels, by layer, in the order of the network:

    * ``<layer>/mean_shift`` = ‖μ̂ − μ‖₂/‖σ‖₂, in units of the input's deviation;
    * ``<layer>/mean_shift_of_mean`` = ‖μ̂ − μ‖₂/‖μ‖₂, which is large if the mean is near 0;
    * ``<layer>/std_shift`` = ‖σ̂ − σ‖₂/‖σ‖₂ and ``<layer>/variance_shift`` = ‖σ̂² − σ²‖₂/‖σ²‖₂;
    * ``<layer>/mean_distance`` = ‖μ̂ − μ‖₂ and ``<layer>/std_distance`` = ‖σ̂ − σ‖₂;
    * ``<layer>/depth``: the index, from 1, of the convolution or fully connected layer that it
      follows, which does not depend on the choice of normalizations.

    Over depth, for ``mean_shift`` and ``std_shift``: ``…_average``, ``…_largest``, and ``…_slope``,
    the least-squares slope over a depth scaled to 0 at the first layer and 1 at the last.

    On all validation images, ``…_loss`` and ``…_acc`` (0..1) with three kinds of statistics:

    * ``population``: the layers' population statistics;
    * ``recomputed``: statistics of training images with the present weights, recomputed as in
      PreciseBN (Wu & Johnson 2021, section 3), with all preceding layers normalizing mini-batches
      of ``batch`` images; if the images are a single mini-batch, these are exact, layer by layer.
      Afterwards the population statistics are restored, bit for bit;
    * ``mini_batch``: statistics of mini-batches of the training's size, in a fixed random order,
      the last one filled up with the first images; without dropout.

    For a network without such layers, the three are equal to within rounding.

    Args:
        images: Number of training images for the true statistics, evenly spread; all if there are
            fewer.
        batch: Images per step, which are normalized together when recomputing. All mini-batches
            have the same size, so a few images may be left out.
        every: Epochs between two measurements.

    Raises:
        UserError: An option is below 1; from ``check``, a layer's statistics are not mean, variance
            or deviation of each channel.
    """

    name = "estimation_shift"
    values = (
        ProbeValue("mean_shift_average", "Shift of the mean, average of the layers"),
        ProbeValue("mean_shift_largest", "Shift of the mean, largest of the layers"),
        ProbeValue("mean_shift_slope", "Shift of the mean, slope over depth"),
        ProbeValue("std_shift_average", "Shift of the deviation, average of the layers"),
        ProbeValue("std_shift_largest", "Shift of the deviation, largest of the layers"),
        ProbeValue("std_shift_slope", "Shift of the deviation, slope over depth"),
        ProbeValue("population_acc", "Validation accuracy", "%", 100.0, 2, True),
        ProbeValue(
            "recomputed_acc", "Validation accuracy, recomputed statistics", "%", 100.0, 2, True
        ),
        ProbeValue(
            "mini_batch_acc", "Validation accuracy, mini-batch statistics", "%", 100.0, 2, True
        ),
        ProbeValue("*/mean_shift", "Shift of the mean"),
        ProbeValue("*/std_shift", "Shift of the deviation"),
        ProbeValue("*/variance_shift", "Shift of the variance"),
    )

    def __init__(self, *, images: int, batch: int, every: int) -> None:
        for option, value in (("images", images), ("batch", batch)):
            if value < 1:
                raise UserError(f"probe.{self.name}.{option} must be at least 1, got {value}")
        self.images = images
        self.batch = batch
        self.every = checked_every(self.name, every)

    def check(self, model: keras.Model) -> None:
        from normbench.probes.population import batch_multiple, keepers

        try:
            layers = keepers(model)
        except UserError as error:
            raise UserError(f"probe={self.name}: {error}") from None
        multiple = batch_multiple(layers)
        if min(self.batch, self.images) < multiple:
            raise UserError(
                f"probe.{self.name}: batch and images must be at least {multiple}, the images that "
                f"{model.name} normalizes together, got {self.batch} and {self.images}"
            )

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        from normbench.probes.population import keepers

        layers = keepers(loop.model)
        values = self._shifts(loop, dataset, layers) if layers else {}
        validation = dataset.validation
        population = loop.evaluate("validation")
        order = minibatches.shuffled(len(validation.labels), _ORDER)
        view = ImageView(validation.images, order)  # all of them may not fit into memory
        logits = minibatches.logits(loop, view, loop.settings.micro_batch, batch_statistics=True)
        for kind, (loss, accuracy) in (
            ("population", population),
            ("recomputed", self._recomputed(loop, dataset, layers) if layers else population),
            ("mini_batch", minibatches.scores(logits, validation.labels[order])),
        ):
            values |= {f"{kind}_loss": loss, f"{kind}_acc": accuracy}
        return values

    def _shifts(self, loop: Loop, dataset: Dataset, layers: list[Keeper]) -> dict[str, float]:
        from normbench.probes.population import chosen_images, input_statistics, values_of

        current = values_of(loop, loop.state())
        pixels = chosen_images(dataset.train.images, self.images)
        true = input_statistics(loop, layers, pixels, most=self.batch, batch_statistics=False)
        values: dict[str, float] = {}
        for layer, expected in zip(layers, true, strict=True):
            layer_values = {"depth": float(layer.depth), **shifts(layer.read(current), expected)}
            values |= {f"{layer.name}/{key}": value for key, value in layer_values.items()}
        return _over_depth(values, layers) | values

    def _recomputed(
        self, loop: Loop, dataset: Dataset, layers: list[Keeper]
    ) -> tuple[float, float]:
        """Return loss and accuracy on validation with recomputed statistics."""
        from normbench.probes.population import chosen_images, input_statistics, replaced

        pixels = chosen_images(dataset.train.images, self.images)
        layer_statistics = input_statistics(
            loop, layers, pixels, most=self.batch, batch_statistics=True
        )
        replacements: dict[int, np.ndarray] = {}
        for layer, statistics in zip(layers, layer_statistics, strict=True):
            replacements |= layer.write(statistics)
        state = loop.state()
        try:
            loop.load(replaced(loop, state, replacements))
            return loop.evaluate("validation")
        finally:
            loop.load(state)


def shifts(estimated: Statistics, true: Statistics) -> dict[str, float]:
    """Return the distances of estimated statistics, where known, from the true ones."""
    assert true.mean is not None
    assert true.variance is not None
    true_std = np.sqrt(true.variance)
    shifts_of: dict[str, float] = {}
    distances: dict[str, float] = {}
    if estimated.mean is not None:
        distance = np.linalg.norm(estimated.mean - true.mean)
        shifts_of["mean_shift"] = _ratio(distance, true_std)
        distances["mean_shift_of_mean"] = _ratio(distance, true.mean)
        distances["mean_distance"] = float(distance)
    if estimated.variance is not None:
        # The moving deviation of Batch Renormalization may be below the root of epsilon.
        std = np.sqrt(np.maximum(estimated.variance, 0.0))
        distance = np.linalg.norm(std - true_std)
        shifts_of["std_shift"] = _ratio(distance, true_std)
        distances["std_distance"] = float(distance)
        distance = np.linalg.norm(estimated.variance - true.variance)
        shifts_of["variance_shift"] = _ratio(distance, true.variance)
    return shifts_of | distances


def _ratio(distance: float | np.floating, size: np.ndarray) -> float:
    length = float(np.linalg.norm(size))
    return float(distance) / length if length else float("nan")


def _over_depth(values: dict[str, float], layers: list[Keeper]) -> dict[str, float]:
    """Return average, maximum and slope over depth of the values by layer."""
    result: dict[str, float] = {}
    for key in SUMMARIZED:
        pairs = [
            (layer.depth, values[f"{layer.name}/{key}"])
            for layer in layers
            if f"{layer.name}/{key}" in values
        ]
        if not pairs:
            continue
        depths, layer_values = np.array(pairs, np.float64).T
        result[f"{key}_average"] = float(layer_values.mean())
        result[f"{key}_largest"] = float(layer_values.max())
        if np.ptp(depths):
            x = (depths - depths.min()) / np.ptp(depths)
            x -= x.mean()
            result[f"{key}_slope"] = float(x @ layer_values / (x @ x))
    return result
