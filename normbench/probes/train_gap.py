"""The gap between training and inference mode on the same training images: :class:`TrainGap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normbench.engine.observer import Probe, ProbeValue, checked_every
from normbench.errors import UserError
from normbench.probes import minibatches

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

_ORDER = 2
"""Seed of the order in which images are divided into mini-batches."""


class TrainGap(Probe):
    """Loss and accuracy of the same training images in training mode and in inference mode.

    Weights, images and mini-batches are the same, and there is no augmentation and no dropout. The
    only difference is the normalization, which uses the mini-batch's statistics in training mode
    and its moving statistics in inference mode. Mini-batches have the training's size and a fixed
    random order; the last one is filled up with the first images.

    Values: ``training_loss`` and ``inference_loss``, mean cross-entropy without label smoothing;
    ``training_acc`` and ``inference_acc`` (0..1); ``loss_gap``, inference minus training, and
    ``acc_gap``, training minus inference: both are positive if inference does worse.

    Args:
        images: Number of training images, evenly spread; all if there are fewer.
        every: Epochs between two measurements.

    Raises:
        UserError: An option is below 1.
    """

    name = "train_gap"
    values = (
        ProbeValue("loss_gap", "Loss gap of inference to training mode", curve="linear"),
        ProbeValue(
            "acc_gap",
            "Accuracy gap of training to inference mode",
            "points",
            100.0,
            2,
            curve="linear",
        ),
        ProbeValue("training_loss", "Loss in training mode", digits=4),
        ProbeValue("inference_loss", "Loss in inference mode", digits=4),
        ProbeValue("training_acc", "Accuracy in training mode", "%", 100.0, 2, True),
        ProbeValue("inference_acc", "Accuracy in inference mode", "%", 100.0, 2, True),
    )

    def __init__(self, *, images: int, every: int) -> None:
        if images < 1:
            raise UserError(f"probe.{self.name}.images must be at least 1, got {images}")
        self.images = images
        self.every = checked_every(self.name, every)

    def check(self, model: keras.Model) -> None:
        """Accept any network."""

    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        train = dataset.train
        indices = minibatches.spread(len(train.labels), self.images)
        indices = indices[minibatches.shuffled(len(indices), _ORDER)]
        pixels, labels = train.images[indices], train.labels[indices]
        values: dict[str, float] = {}
        for mode, batch_statistics in (("training", True), ("inference", False)):
            logits = minibatches.logits(
                loop, pixels, loop.settings.micro_batch, batch_statistics=batch_statistics
            )
            values[f"{mode}_loss"], values[f"{mode}_acc"] = minibatches.scores(logits, labels)
        values["loss_gap"] = values["inference_loss"] - values["training_loss"]
        values["acc_gap"] = values["training_acc"] - values["inference_acc"]
        return values
