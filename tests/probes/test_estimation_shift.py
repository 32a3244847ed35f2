"""The probe of estimation shift, against a direct computation in float64."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from normbench.engine import backend
from normbench.engine.augment import Images
from normbench.engine.loop import LoopSettings
from normbench.engine.observer import Observer
from normbench.engine.optimizer import SGD
from normbench.engine.train import train
from normbench.errors import UserError
from normbench.norms.batch import BatchCentering, BatchNormalization
from normbench.norms.batch_renormalization import BatchRenormalization
from normbench.norms.group import GroupNormalization
from normbench.probes.estimation_shift import EstimationShift
from tests.marks import slow, slow_except

KINDS = {
    "bn": BatchNormalization,
    "keras": keras.layers.BatchNormalization,
    "brn": BatchRenormalization,
    "gn": lambda **options: GroupNormalization(groups=2, **options),
}
BATCH = 16


def network(first, second, auxiliary=False):
    """Two convolutions with norms, 8×8×1 images, three classes, and dropout before the end."""
    rng = np.random.default_rng(3)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv1")(inputs)
    x = keras.layers.ReLU()(KINDS[first](epsilon=1e-3, name="norm1")(x))
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv2")(x)
    x = keras.layers.ReLU()(KINDS[second](epsilon=1e-3, name="norm2")(x))
    x = keras.layers.Dropout(0.5, seed=1)(keras.layers.Flatten()(x))
    logits = keras.layers.Dense(3, name="logits")(x)
    model = keras.Model(inputs, [logits, keras.layers.Dense(3)(x)] if auxiliary else logits)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    for variable in model.non_trainable_variables:
        if variable.name == "moving_mean":
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif variable.name in ("moving_variance", "moving_deviation"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def loop_on(model):
    rng = np.random.default_rng(5)

    def split(count):
        images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
        return SimpleNamespace(images=images, labels=rng.integers(0, 3, count).astype(np.int32))

    data = SimpleNamespace(train=split(50), validation=split(40), test=split(10))
    settings = LoopSettings(
        batch=BATCH,
        eval_batch=25,
        seed=0,
        smoothing=0.0,
        optimizer=SGD(momentum=0.9, nesterov=True, weight_decay=1e-4, agc=0.0),
        images=Images(np.float32([0.5]), np.float32([0.3]), 2, True),
        scaled_loss=False,
    )
    backend.start(keras.backend.backend(), "float32")
    return backend.loop_class(keras.backend.backend())(model, data, settings), data


@pytest.fixture(scope="module")
def loop_of():
    """Return a loop on `network(*options)` in its initial state, cached, and its data set."""
    loops = {}

    def restored(*options):
        if options not in loops:
            backend.start(keras.backend.backend(), "float32")  # before layers take their dtype
            loop, data = loop_on(network(*options))
            loops[options] = loop, data, loop.state()
        loop, data, state = loops[options]
        loop.load(state)
        return loop, data

    return restored


class Direct:
    """The same network in NumPy and float64."""

    def __init__(self, model):
        self.weights = {
            f"{layer.name}/{v.name}": keras.ops.convert_to_numpy(v).astype(np.float64)
            for layer in model.layers
            for v in layer.weights
        }

    def moving_statistics(self, name):
        deviation = self.weights.get(f"{name}/moving_deviation")
        variance = np.square(deviation) - 1e-3 if deviation is not None else None
        return self.weights[f"{name}/moving_mean"], (
            self.weights[f"{name}/moving_variance"] if variance is None else variance
        )

    def normalized(self, x, name, statistics):
        mean, variance = statistics
        y = (x - mean) / np.sqrt(variance + 1e-3)
        return np.maximum(y * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"], 0)

    def conv(self, x, name, stride):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        kernel = self.weights[f"{name}/kernel"]
        return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel)

    def forward(self, pixels, choose):
        """Logits, and the statistics of each norm's input; ``choose`` picks those to use."""
        x = (pixels.astype(np.float64) / 255 - 0.5) / 0.3
        observed = {}
        for index, stride in ((1, 1), (2, 2)):
            x = self.conv(x, f"conv{index}", stride)
            observed[f"norm{index}"] = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = self.normalized(x, f"norm{index}", choose(f"norm{index}", observed[f"norm{index}"]))
        flat = x.reshape(len(x), -1)
        return flat @ self.weights["logits/kernel"] + self.weights["logits/bias"], observed

    def score(self, pixels, labels, choose):
        logits, _ = self.forward(pixels, choose)
        logits = logits - logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
        return losses.mean(), (logits.argmax(1) == labels).mean()


@pytest.mark.parametrize(
    ("kind", "batch"),
    [("bn", 50), ("bn", 16), ("keras", 50), slow("keras", 16), ("brn", 50), slow("brn", 16)],
)
def test_values_match_a_direct_computation(kind, batch, loop_of):
    loop, data = loop_of(kind, kind, kind == "keras")
    direct = Direct(loop.model)
    before = loop.state()
    values = EstimationShift(images=50, batch=batch, every=1).measure(loop, data)
    after = loop.state()
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, strict=True)

    moving = {name: direct.moving_statistics(name) for name in ("norm1", "norm2")}
    # With mini-batches of at most 16 the 50 images make four of 12, and two are left out.
    pixels = data.train.images if batch == 50 else data.train.images[:48]
    _, true = direct.forward(pixels, lambda name, observed: moving[name])
    norm = np.linalg.norm
    for place, name in enumerate(moving, start=1):
        (mean, variance), (true_mean, true_variance) = moving[name], true[name]
        std, true_std = np.sqrt(variance), np.sqrt(true_variance)
        expected = {
            "depth": place,
            "mean_shift": norm(mean - true_mean) / norm(true_std),
            "mean_shift_of_mean": norm(mean - true_mean) / norm(true_mean),
            "mean_distance": norm(mean - true_mean),
            "std_shift": norm(std - true_std) / norm(true_std),
            "variance_shift": norm(variance - true_variance) / norm(true_variance),
            "std_distance": norm(std - true_std),
        }
        found = {k.split("/")[1]: v for k, v in values.items() if k.startswith(f"{name}/")}
        assert found == pytest.approx(expected, rel=1e-4)
    for key in ("mean_shift", "std_shift"):
        first, second = (values[f"norm{place}/{key}"] for place in (1, 2))
        assert values[f"{key}_average"] == pytest.approx((first + second) / 2)
        assert values[f"{key}_largest"] == max(first, second)
        assert values[f"{key}_slope"] == pytest.approx(second - first)

    validation = data.validation
    loss, accuracy = direct.score(
        validation.images, validation.labels, lambda name, observed: moving[name]
    )
    assert values["population_loss"] == pytest.approx(loss, rel=1e-4)
    assert values["population_acc"] == pytest.approx(accuracy, abs=1e-6)
    if kind == "brn":
        return  # normalizes in training with moving averages, too
    collected: dict[str, list] = {"norm1": [], "norm2": []}
    size = 50 if batch == 50 else 12
    for start in range(0, len(pixels), size):
        _, observed = direct.forward(pixels[start : start + size], lambda name, observed: observed)
        for name, moments in observed.items():
            collected[name].append(moments)
    recomputed = {}
    for name, moments in collected.items():
        means, variances = (np.array(part) for part in zip(*moments, strict=True))
        recomputed[name] = means.mean(0), variances.mean(0) + means.var(0)
    loss, accuracy = direct.score(
        validation.images, validation.labels, lambda name, observed: recomputed[name]
    )
    assert values["recomputed_loss"] == pytest.approx(loss, rel=1e-4)
    assert values["recomputed_acc"] == pytest.approx(accuracy, abs=1e-6)

    from normbench.probes.minibatches import shuffled

    order = shuffled(40, 0)
    images, labels = validation.images[order], validation.labels[order]
    total, right = 0.0, 0.0
    for start in (0, 16, 32):
        positions = np.arange(start, start + 16) % 40
        logits, _ = direct.forward(images[positions], lambda name, observed: observed)
        new = min(16, 40 - start)
        logits, batch_labels = logits[:new], labels[positions][:new]
        logits = logits - logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(new), batch_labels]
        total += losses.sum()
        right += (logits.argmax(1) == batch_labels).sum()
    assert values["mini_batch_loss"] == pytest.approx(total / 40, rel=1e-4)
    assert values["mini_batch_acc"] == pytest.approx(right / 40, abs=1e-6)


def test_no_shift_remains_after_recomputing_statistics(loop_of):
    """In the first layer always; in all layers if the images form one mini-batch."""
    from normbench.probes.population import input_statistics, keepers, replaced

    probe = EstimationShift(images=50, batch=50, every=1)
    for batch, layers in ((50, (1, 2)), (16, (1,))):
        loop, data = loop_of("bn", "bn", False)
        layers_with_statistics = keepers(loop.model)
        pixels = data.train.images
        recomputed = input_statistics(
            loop, layers_with_statistics, pixels, most=batch, batch_statistics=True
        )
        values = {}
        for layer, statistics in zip(layers_with_statistics, recomputed, strict=True):
            values |= layer.write(statistics)
        loop.load(replaced(loop, loop.state(), values))
        probe.batch = batch
        measured = probe.measure(loop, data)
        for index in layers:
            assert measured[f"norm{index}/mean_shift"] < 1e-6
            assert measured[f"norm{index}/std_shift"] < 1e-6
        if batch == 16:
            assert measured["norm2/mean_shift"] > 1e-4


def test_only_layers_with_moving_statistics_are_measured(loop_of):
    loop, data = loop_of("gn", "bn")
    values = EstimationShift(images=50, batch=50, every=1).measure(loop, data)
    assert {key.split("/")[0] for key in values if "/" in key} == {"norm2"}
    assert values["norm2/depth"] == 2
    assert "std_shift_slope" not in values


def test_network_without_moving_statistics_has_equal_results(loop_of):
    loop, data = loop_of("gn", "gn")
    values = EstimationShift(images=50, batch=50, every=1).measure(loop, data)
    assert len(values) == 6
    assert values["recomputed_loss"] == values["population_loss"]
    assert values["mini_batch_loss"] == pytest.approx(values["population_loss"], rel=1e-6)
    assert values["mini_batch_acc"] == values["recomputed_acc"] == values["population_acc"]


def test_layer_that_only_keeps_the_mean_has_no_std_shift():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, BatchCentering(name="center")(inputs))
    from normbench.probes.estimation_shift import shifts
    from normbench.probes.population import Statistics, keepers

    (keeper,) = keepers(model)
    assert set(keeper.variables) == {"moving_mean"}
    read = keeper.read({id(keeper.variables["moving_mean"]): np.float32([1, 0, 0, 0])})
    values = shifts(read, Statistics(np.zeros(4), np.full(4, 4.0)))
    assert values["mean_shift"] == pytest.approx(1 / 4)
    assert "std_shift" not in values


def test_depth_is_the_position_of_the_normalized_layer():
    """A shortcut's norm has the depth of its own convolution, whatever the other norms are."""
    from normbench.probes.population import keepers

    def residual(elsewhere):
        inputs = keras.Input((8, 8, 4))
        x = KINDS["bn"](name="norm1")(keras.layers.Conv2D(4, 1, name="conv1")(inputs))
        y = KINDS[elsewhere](name="norm2")(keras.layers.Conv2D(4, 1, name="conv2")(x))
        y = keras.layers.Conv2D(4, 1, name="conv3")(keras.layers.ReLU()(y))
        y = KINDS["bn"](name="norm3")(y)
        x = KINDS["bn"](name="norm0")(keras.layers.Conv2D(4, 1, name="conv0")(x))
        x = KINDS["bn"](name="after")(keras.layers.Add()([x, y]))
        return keras.Model(inputs, x)

    model = residual("bn")
    order = [layer.name for layer in model.layers if layer.name.startswith("conv")]
    depths = {keeper.name: keeper.depth for keeper in keepers(model)}
    for place in "1230":
        assert depths[f"norm{place}"] == order.index(f"conv{place}") + 1
    assert depths["after"] == max(depths["norm0"], depths["norm3"])
    others = {keeper.name: keeper.depth for keeper in keepers(residual("gn"))}
    assert others == {name: depth for name, depth in depths.items() if name != "norm2"}


PROBED = ("probe=estimation_shift", "probe.estimation_shift.images=100")


class Stopping(Observer):
    """Presses Ctrl-C once the first epoch's row is written."""

    def on_epoch(self, row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt


NORMS = ("norm=bn", "norm=ghost_bn norm.virtual_batch=8", "norm=gn norm.groups=7")


@pytest.mark.parametrize("norm", slow_except(["norm=bn"], NORMS))
def test_training_is_bit_identical_with_the_probe(norm, tiny, warm):
    norm = norm.split()
    often = (*PROBED, "probe.estimation_shift.every=1")
    plain = train(tiny(*norm, store="a"), warm=warm).summary
    probed = train(tiny(*norm, *often, store="b"), warm=warm)
    assert probed.summary["weights_sha256"] == plain["weights_sha256"]
    assert probed.summary["test_loss"] == plain["test_loss"]
    config = tiny(*norm, *often, store="c")
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Stopping(), warm=warm)
    resumed = train(config, warm=warm)
    assert resumed.summary["weights_sha256"] == plain["weights_sha256"]
    values = [
        {key: value for key, value in row.items() if key.startswith("probe/")}
        for row in probed.run.metrics()
    ]
    if "norm=gn" not in norm:
        assert values[0]["probe/estimation_shift/hidden1_norm/depth"] == 1
    assert values == [{k: row[k] for k in values[0]} for row in resumed.run.metrics()]
    accuracy = probed.run.metrics()[-1]["val_acc"]
    assert values[-1]["probe/estimation_shift/population_acc"] == accuracy


def test_epochs_in_between_are_not_measured(tiny, warm):
    config = tiny(*PROBED, "epochs=3", "probe.estimation_shift.every=2")
    rows = train(config, warm=warm).run.metrics()
    probed = [any(key.startswith("probe/") for key in row) for row in rows]
    assert probed == [False, True, True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.estimation_shift.every=0"], "every must be at least 1, got 0"),
        (["probe.estimation_shift.batch=0"], "batch must be at least 1, got 0"),
        (["norm=iternorm", "norm.channels_per_group=7"], "keeps moving_whitening, which cannot"),
        (
            ["norm=ghost_bn", "norm.virtual_batch=8", "probe.estimation_shift.batch=4"],
            "at least 8, the images that",
        ),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(overrides, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(*PROBED, *overrides))
    assert not (tmp_path / "runs").exists()
