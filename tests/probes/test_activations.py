"""The activations probe, against a direct computation."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from normbench.engine.train import train
from normbench.errors import UserError
from normbench.probes.activations import Activations
from normbench.store.store import Store

PROBED = ("probe=activations", "probe.activations.layers=[hidden*_sigmoid]")


def test_probe_changes_neither_signature_nor_training(tiny, warm):
    plain, probed = tiny(store="a"), tiny(*PROBED, store="b")
    assert plain.run_name == probed.run_name
    first, second = train(plain, warm=warm), train(probed, warm=warm)
    assert first.summary["weights_sha256"] == second.summary["weights_sha256"]
    assert first.summary["test_loss"] == second.summary["test_loss"]
    rows = second.run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    names = {name for name in rows[0] if name.startswith("probe/")}
    assert names == {
        f"probe/activations/hidden{layer}_sigmoid/{value}"
        for layer in (1, 2, 3)
        for value in (
            "mean",
            "std",
            "p15",
            "p50",
            "p85",
            "unit0/p15",
            "unit0/p50",
            "unit0/p85",
            "saturated",
        )
    }
    assert not any(name.startswith("probe/") for name in first.run.metrics()[0])


def test_values_match_the_formula(tiny, warm):
    """The last hidden layer's input, from the checkpoint's weights, in NumPy."""
    from normbench.data.digits import Digits
    from normbench.data.split import load

    config = tiny(
        "probe=activations",
        "probe.activations.layers=[hidden3_sigmoid]",
        "probe.activations.images=50",
        "probe.activations.units=[3]",
    )
    outcome = train(config, warm=warm)
    arrays, _ = Store(config.store).run(config).load_checkpoint()
    weights = {name.split("/", 2)[2]: value.astype("f8") for name, value in arrays.items()
               if name.startswith("model/")}  # fmt: skip
    data = load(Digits(), 100, 0, 160)
    pixels = data.validation.images[:50].astype("f8") / 255
    x = ((pixels - data.mean) / data.std).reshape(50, -1)
    for layer in (1, 2, 3):
        x = x @ weights[f"hidden{layer}_dense/kernel"]
        norm = f"hidden{layer}_norm"
        x = (x - weights[f"{norm}/moving_mean"]) / np.sqrt(
            weights[f"{norm}/moving_variance"] + config.norm["epsilon"]
        )
        inputs = x * weights[f"{norm}/gamma"] + weights[f"{norm}/beta"]
        x = 1 / (1 + np.exp(-inputs))
    row = outcome.run.metrics()[-1]
    prefix = "probe/activations/hidden3_sigmoid"
    assert row[f"{prefix}/mean"] == pytest.approx(inputs.mean(), abs=1e-4)
    assert row[f"{prefix}/saturated"] == np.mean((x < 0.05) | (x > 0.95))
    assert row[f"{prefix}/std"] == pytest.approx(inputs.std(), rel=1e-4)
    for at in (15, 50, 85):
        assert row[f"{prefix}/p{at}"] == pytest.approx(np.percentile(inputs, at), abs=1e-4)
        expected = np.percentile(inputs[:, 3], at)
        assert row[f"{prefix}/unit3/p{at}"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.activations.layers=[hiden*]"], r"no layer of mlp_sigmoid is called 'hiden\*'"),
        (["probe.activations.units=[7]"], r"has units 0\.\.6, not 7"),
        (["probe.activations.images=0"], "images must be at least 1"),
        (["probe.activations.margin=0.5"], r"margin must be in \(0, 0.5\)"),
        (["probe.activations.layers=[images]"], "no layer with one input in mlp_sigmoid"),
        (["probe.activations.evry=2"], "did you mean 'probe.activations.every'|evry"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(overrides, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(*PROBED, *overrides))
    assert not (tmp_path / "runs").exists()


def test_unknown_probes_are_refused(tiny):
    with pytest.raises(UserError, match="did you mean 'activations'"):
        tiny("probe=activation")


def probe(**changes):
    options = {"layers": [], "images": 45, "units": [1], "places": 1000, "margin": 0.1,
               "active": 0.2, "every": 1}  # fmt: skip
    return Activations(**{**options, **changes})


@pytest.fixture
def convolution():
    """A convolution, a ReLU and a tanh; some units of the ReLU are dead or nearly so."""
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(5, 3, name="conv")(inputs)
    y = keras.layers.ReLU(name="relu")(x)
    z = keras.layers.Activation("tanh", name="tanh")(keras.layers.Add(name="add")([x, y]))
    pooled = keras.layers.GlobalAveragePooling2D()(z)
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled), name="made")
    kernel, bias = model.get_layer("conv").get_weights()
    model.get_layer("conv").set_weights([kernel, bias + np.array([-90, 0, -1.2, 3, -90], "f4")])
    return model


def test_dead_and_saturated_units_match_numpy(convolution, loop_on):
    loop, dataset = loop_on(convolution)
    tested = probe()
    tested.check(convolution)
    values = tested.measure(loop, dataset)
    x = (dataset.validation.images[:45] / 255.0 - 0.5) / 0.25
    kernel, bias = (v.astype("f8") for v in convolution.get_layer("conv").get_weights())
    inputs = bias + sum(
        x[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)
    )
    above = (inputs > 0).mean(axis=(0, 1, 2))
    assert above[0] == above[4] == 0
    assert 0 < above[2] < 0.45
    assert values["relu/dead"] == pytest.approx(2 / 5)
    assert probe(active=0.0).measure(loop, dataset)["relu/collapsed"] == pytest.approx(2 / 5)
    assert probe(active=0.45).measure(loop, dataset)["relu/collapsed"] == pytest.approx(3 / 5)
    outputs = np.tanh(inputs + np.maximum(inputs, 0))
    assert values["tanh/saturated"] == pytest.approx(np.mean(np.abs(outputs) > 0.8), abs=1e-3)
    assert values["relu/mean"] == pytest.approx(inputs.mean(), rel=1e-4)
    assert values["relu/std"] == pytest.approx(inputs.std(), rel=1e-4)
    assert values["relu/unit1/p50"] == pytest.approx(np.median(inputs[..., 1]), abs=1e-4)
    assert {key.split("/")[0] for key in values} == {"relu", "tanh"}
    assert "relu/saturated" not in values
    assert "tanh/dead" not in values


def test_percentiles_of_sampled_positions_approximate_those_of_all(convolution, loop_on):
    loop, dataset = loop_on(convolution)
    whole, some = (probe(places=n).measure(loop, dataset) for n in (16, 6))
    assert some["relu/std"] == whole["relu/std"]
    assert some["relu/unit1/p50"] == pytest.approx(whole["relu/unit1/p50"], abs=0.3)
    assert some["relu/unit1/p50"] != whole["relu/unit1/p50"]


def test_layers_with_several_inputs_are_skipped(convolution):
    names = [layer.name for layer in probe(layers=["*"]).chosen(convolution)]
    assert names[:2] == ["conv", "relu"]
    assert "add" not in names


def test_network_without_nonlinearity_is_refused():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)), name="flat")
    with pytest.raises(UserError, match="no layer that is a nonlinearity in flat"):
        probe(units=[]).check(model)
