"""The probe of layers' inputs, against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.config import compose
from normbench.engine.training import train
from normbench.errors import UserError
from normbench.store import Store


@pytest.fixture
def tiny(tmp_path):
    def make(*overrides: str, store: str = "runs"):
        return compose(
            [
                "dataset=digits",
                "dataset.train_size=160",
                "dataset.validation=100",
                "arch=mlp_sigmoid",
                "arch.units=7",
                "norm=bn",
                "batch=16",
                "epochs=2",
                f"store={tmp_path / store}",
                *overrides,
            ]
        )

    return make


PROBED = ("probe=activations", "probe.activations.layers=[hidden*_sigmoid]")


def test_a_probe_is_no_part_of_the_signature_and_changes_no_bit(tiny):
    plain, probed = tiny(store="a"), tiny(*PROBED, store="b")
    assert plain.run_name == probed.run_name
    first, second = train(plain), train(probed)
    assert first.summary["weights_sha256"] == second.summary["weights_sha256"]
    assert first.summary["test_loss"] == second.summary["test_loss"]
    rows = second.run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    names = {name for name in rows[0] if name.startswith("probe/")}
    assert names == {
        f"probe/activations/hidden{layer}_sigmoid/{value}"
        for layer in (1, 2, 3)
        for value in ("mean", "std", "p15", "p50", "p85", "unit0/p15", "unit0/p50", "unit0/p85")
    }
    assert not any(name.startswith("probe/") for name in first.run.metrics()[0])


def test_values_are_those_of_the_formula(tiny):
    """The last hidden layer's input, from the checkpoint's weights, in NumPy."""
    from normbench.data.digits import Digits
    from normbench.data.split import load

    config = tiny(
        "probe=activations",
        "probe.activations.layers=[hidden3_sigmoid]",
        "probe.activations.images=50",
        "probe.activations.units=[3]",
    )
    outcome = train(config)
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
        given = x * weights[f"{norm}/gamma"] + weights[f"{norm}/beta"]
        x = 1 / (1 + np.exp(-given))
    row = outcome.run.metrics()[-1]
    prefix = "probe/activations/hidden3_sigmoid"
    assert row[f"{prefix}/mean"] == pytest.approx(given.mean(), abs=1e-4)
    assert row[f"{prefix}/std"] == pytest.approx(given.std(), rel=1e-4)
    for at in (15, 50, 85):
        assert row[f"{prefix}/p{at}"] == pytest.approx(np.percentile(given, at), abs=1e-4)
        expected = np.percentile(given[:, 3], at)
        assert row[f"{prefix}/unit3/p{at}"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.activations.layers=[hiden*]"], r"no layer of mlp_sigmoid is called 'hiden\*'"),
        (["probe.activations.units=[7]"], r"has units 0\.\.6, not 7"),
        (["probe.activations.images=0"], "images must be at least 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(overrides, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(*PROBED, *overrides))
    assert not (tmp_path / "runs").exists()


def test_unknown_probes_are_refused(tiny):
    with pytest.raises(UserError, match="did you mean 'activations'"):
        tiny("probe=activation")
