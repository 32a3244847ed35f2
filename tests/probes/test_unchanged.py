"""That probes change no bit of training, also after a resume, and measure the same then."""

from __future__ import annotations

import keras
import pytest

from normbench.config import compose
from normbench.engine.observer import Observer
from normbench.engine.train import train

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
def wide(tmp_path):
    """A small residual network, on images that are augmented, with momentum."""

    def make(*overrides, store):
        return compose(
            [
                "dataset=digits",
                "dataset.train_size=96",
                "dataset.validation=60",
                "dataset.crop_padding=1",
                "arch=resnet8",
                "arch.width=4",
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


@pytest.mark.parametrize("norm", ["norm=bn", "norm=gn norm.groups=2"])
def test_training_is_the_same_to_the_last_bit(wide, norm):
    asked = [f"probe=[{','.join(PROBES)}]", *(each for more in PROBES.values() for each in more)]
    plain = train(wide(*norm.split(), store="plain"))
    probed = train(wide(*norm.split(), *asked, store="probed"))
    assert plain.run.name == probed.run.name
    assert plain.summary["weights_sha256"] == probed.summary["weights_sha256"]
    assert plain.summary["test_loss"] == probed.summary["test_loss"]
    found = values_of(probed.run)
    assert {key.split("/")[1] for key in found[0]} == set(PROBES)
    cut = wide(*norm.split(), *asked, store="cut")
    with pytest.raises(KeyboardInterrupt):
        train(cut, observer=Stopping())
    again = train(cut)
    assert again.summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert values_of(again.run) == found
