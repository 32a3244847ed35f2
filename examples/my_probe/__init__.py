# A probe of your own: this class, and conf/probe/calibration.yaml, which names it.
#   cd examples
#   normbench run --config-dir my_probe/conf probe=calibration norm=bn arch=resnet8 dataset=digits
#   normbench diagnose --config-dir my_probe/conf --probe calibration RUN
#   normbench report --metric calibration/ece
"""Calibration: how well a network's confidence matches its accuracy."""

import numpy as np

from normbench.engine.observer import Probe, ProbeValue
from normbench.probes import minibatches


class Calibration(Probe):
    """Expected calibration error on the validation images (Guo et al. 2017, equation 3).

    Values: ``confidence``, the mean of the largest probability; ``ece``, the mean gap between
    accuracy and confidence over bins of equal width, weighted by their number of images.

    Args:
        bins: Number of bins of confidence from 0 to 1.
        every: Number of epochs between measurements.
    """

    name = "calibration"
    values = (
        ProbeValue(
            "ece", "Calibration error", "%", 100.0, 2, higher_is_better=False, curve="linear"
        ),
        ProbeValue("confidence", "Mean confidence", "%", 100.0, 2),
    )

    def __init__(self, *, bins, every):
        self.bins = bins
        self.every = every

    def check(self, model):
        """Accept every network; a probe that needs certain layers would refuse others here."""

    def measure(self, loop, dataset):
        split = dataset.validation
        logits = minibatches.logits(loop, split.images, 128, batch_statistics=False)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidence = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
        correct = logits.argmax(axis=1) == split.labels
        bin_of = np.minimum((confidence * self.bins).astype(int), self.bins - 1)
        gaps = [
            np.abs((correct[bin_of == index] - confidence[bin_of == index]).sum())
            for index in range(self.bins)
        ]
        return {
            "confidence": float(confidence.mean()),
            "ece": float(sum(gaps) / len(confidence)),
        }
