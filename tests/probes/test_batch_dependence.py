"""The probes of batch dependence and of the gap between training and inference mode."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.engine.train import train
from normbench.errors import UserError
from normbench.norms.batch import BatchNormalization
from normbench.norms.group import GroupNormalization
from normbench.norms.study.minmax import MinMaxNormalization
from normbench.norms.weights import SNConv2D
from normbench.probes.batch_dependence import BatchDependence
from normbench.probes.train_gap import TrainGap
from tests.marks import slow, slow_except

NORMS = {
    "bn": lambda: BatchNormalization(epsilon=1e-3, name="norm"),
    "gn": lambda: GroupNormalization(groups=2, name="norm"),
    "none": lambda: keras.layers.Identity(name="norm"),
    "minmax": lambda: MinMaxNormalization(name="norm"),
}


def network(norm, conv=keras.layers.Conv2D):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = conv(4, 3, name="conv")(inputs)
    x = keras.layers.ReLU()(NORMS[norm]()(x))
    x = keras.layers.Dropout(0.5, seed=3)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(5, name="logits")(x))


def probe(**changes):
    return BatchDependence(**{"images": 40, "sizes": (2, 4, 16), "every": 1, **changes})


@pytest.mark.parametrize(
    ("norm", "conv"),
    [
        ("gn", keras.layers.Conv2D),
        ("none", SNConv2D),
        slow("gn", SNConv2D),
        slow("none", keras.layers.Conv2D),
    ],
)
def test_batch_free_network_has_exactly_zero_dependence(norm, conv, loop_on):
    values = probe().measure(*loop_on(network(norm, conv)))
    assert len(values) == 18
    assert set(values.values()) == {0.0}


def test_batch_normalization_depends_on_the_batch_in_training_only(loop_on):
    loop, dataset = loop_on(network("bn"))
    before = loop.state()
    values = probe().measure(loop, dataset)
    for name, value in loop.state().items():
        np.testing.assert_array_equal(before[name], value, strict=True)
    assert {v for key, v in values.items() if key.startswith("inference")} == {0.0}
    for key in ("neighbours", "size4", "size2"):
        assert values[f"training_{key}_max"] > values[f"training_{key}_mean"] > 1e-3
    assert values["training_size2_mean"] > values["training_size4_mean"]


def test_batch_statistics_in_inference_are_detected(loop_on):
    values = probe().measure(*loop_on(network("minmax")))
    assert values["inference_size2_max"] > 1e-3
    assert values["inference_size2_max"] == pytest.approx(values["training_size2_max"], rel=1e-4)


def direct(model, dataset):
    """A function from pixels to logits with batch statistics, in NumPy and float64."""
    weights = {
        f"{layer.name}/{v.name}": keras.ops.convert_to_numpy(v).astype(np.float64)
        for layer in model.layers
        for v in layer.weights
    }

    def logits(pixels, statistics=None):
        x = (pixels / 255 - 0.5) / 0.25
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.einsum("nhwcij,ijco->nhwo", windows, weights["conv/kernel"])
        x = x + weights["conv/bias"]
        mean, variance = statistics or (x.mean((0, 1, 2)), x.var((0, 1, 2)))
        x = np.maximum((x - mean) / np.sqrt(variance + 1e-3), 0).reshape(len(x), -1)
        return x @ weights["logits/kernel"] + weights["logits/bias"]

    return logits


def test_dependence_matches_a_direct_computation(loop_on):
    """Compares mini-batches of four distinct images with those of 16."""
    model = network("bn")
    loop, dataset = loop_on(model)
    values = probe(images=48).measure(loop, dataset)
    logits, pixels = direct(model, dataset), dataset.validation.images
    small, large = (
        np.concatenate([logits(pixels[i : i + size]) for i in range(0, 48, size)])
        for size in (4, 16)
    )
    assert values["training_size4_max"] == pytest.approx(np.abs(small - large).max(), rel=1e-4)
    assert values["training_size4_mean"] == pytest.approx(np.abs(small - large).mean(), rel=1e-4)
    changed = (small.argmax(1) != large.argmax(1)).mean()
    assert 0 < changed < 1
    assert values["training_size4_changed"] == pytest.approx(changed)


def test_train_gap_matches_a_direct_computation(loop_on):
    from normbench.probes.minibatches import scores, shuffled

    model = network("bn")
    loop, dataset = loop_on(model)
    values = TrainGap(images=48, every=1).measure(loop, dataset)
    logits, order = direct(model, dataset), shuffled(48, 2)
    pixels, labels = dataset.train.images[order], dataset.train.labels[order]
    training = np.concatenate([logits(pixels[i : i + 16]) for i in (0, 16, 32)])
    inference = logits(pixels, (np.zeros(4), np.ones(4)))
    loss, accuracy = scores(training, labels)
    assert values["training_loss"] == pytest.approx(loss, rel=1e-4)
    assert values["training_acc"] == accuracy
    other_loss, other_accuracy = scores(inference, labels)
    assert values["inference_loss"] == pytest.approx(other_loss, rel=1e-4)
    assert values["loss_gap"] == pytest.approx(other_loss - loss, rel=1e-3)
    assert values["acc_gap"] == pytest.approx(accuracy - other_accuracy)


def test_train_gap_is_zero_without_batch_statistics(loop_on):
    values = TrainGap(images=30, every=1).measure(*loop_on(network("gn")))
    assert values["loss_gap"] == pytest.approx(0, abs=1e-6)
    assert values["acc_gap"] == 0


@pytest.mark.parametrize("norm", slow_except(["norm=bn"], ["norm=bn", "norm=gn norm.groups=7"]))
def test_training_is_bit_identical_with_the_probe(norm, tiny, warm):
    norm = norm.split()
    on = ("probe=[batch_dependence,train_gap]", "probe.batch_dependence.sizes=[2,8]")
    often = ("probe.batch_dependence.every=1", "probe.train_gap.every=1")
    plain = train(tiny(*norm, store="a"), warm=warm).summary
    probed = train(tiny(*norm, *on, *often, store="b"), warm=warm)
    assert probed.summary["weights_sha256"] == plain["weights_sha256"]
    row = probed.run.metrics()[0]
    assert (row["probe/batch_dependence/training_size2_max"] > 0) == (norm == ["norm=bn"])
    assert row["probe/batch_dependence/inference_size2_max"] == 0
    assert row["probe/train_gap/inference_loss"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.batch_dependence.images=0"], "images must be at least 1, got 0"),
        (["probe.batch_dependence.sizes=[3,8]"], "3 does not divide the largest, 8"),
        (["probe.batch_dependence.sizes=[0,8]"], r"at least 1 each, got \[0, 8\]"),
        (
            ["norm=ghost_bn", "norm.virtual_batch=8", "probe.batch_dependence.sizes=[1,4]"],
            "the largest, 4, is not a multiple of the 8 images that hidden1_norm",
        ),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(overrides, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny("probe=batch_dependence", *overrides))
    assert not (tmp_path / "runs").exists()
