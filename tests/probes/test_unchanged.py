"""Probes change no bit of training, and measure the same values after a resume."""

from __future__ import annotations

import keras
import pytest

from normbench.config import compose
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.engine.train import train
from tests.engine.tinyloop import TINY
from tests.marks import slow_except

PROBES = {
    "activations": (),
    "gradients": (),
    "smoothness": ("probe.smoothness.every=1",),
    "estimation_shift": ("probe.estimation_shift.every=1", "probe.estimation_shift.batch=40"),
    "batch_dependence": ("probe.batch_dependence.every=1", "probe.batch_dependence.sizes=[2,8]"),
    "train_gap": ("probe.train_gap.every=1",),
    "sharpness": (
        "probe.sharpness.every=1",
        "probe.sharpness.iterations=3",
        "probe.sharpness.images=32",
    ),
}


class Stopping(Observer):
    def on_epoch(self, row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt


@pytest.fixture
def augmented(tmp_path):
    """Compose a config of a small network, on images that are augmented, with momentum."""

    def make(*overrides, store):
        return compose(
            [
                "dataset=digits",
                "dataset.train_size=96",
                "dataset.validation=60",
                "dataset.crop_padding=1",
                *TINY,
                "batch=16",
                "epochs=2",
                f"backend={keras.backend.backend()}",
                f"store={tmp_path / store}",
                *overrides,
            ]
        )

    return make


def values_of(run):
    return [
        {key: value for key, value in row.items() if key.startswith("probe/")}
        for row in run.metrics()
    ]


@pytest.mark.parametrize("norm", slow_except(["norm=bn"], ["norm=bn", "norm=gn norm.groups=2"]))
def test_training_is_bit_identical_with_the_probe(augmented, norm):
    options = [option for options in PROBES.values() for option in options]
    probes = [f"probe=[{','.join(PROBES)}]", *options]
    warm = WarmState()
    plain = train(augmented(*norm.split(), store="plain"), warm=warm)
    probed = train(augmented(*norm.split(), *probes, store="probed"), warm=warm)
    assert plain.run.name == probed.run.name
    assert plain.summary["weights_sha256"] == probed.summary["weights_sha256"]
    assert plain.summary["test_loss"] == probed.summary["test_loss"]
    values = values_of(probed.run)
    assert {key.split("/")[1] for key in values[0]} == set(PROBES)
    cut = augmented(*norm.split(), *probes, store="cut")
    with pytest.raises(KeyboardInterrupt):
        train(cut, observer=Stopping(), warm=warm)
    resumed = train(cut, warm=warm)
    assert resumed.summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert values_of(resumed.run) == values
