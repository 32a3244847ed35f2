"""Batches that a layer cannot be trained with are refused before anything is written."""

from __future__ import annotations

import functools
import re
import sys

import keras
import numpy as np
import pytest

from normbench.config import compose
from normbench.engine.reuse import WarmState
from normbench.engine.train import train
from normbench.errors import NormbenchError, UserError
from normbench.sweep.preflight import refusal
from tests.engine.tinyloop import TINY

GHOST = (
    "virtual_batch=32 does not divide the mini-batch of stem_norm, {} images: "
    "choose a batch that is a multiple of 32, or a virtual_batch that divides it"
)
ONE_VALUE = "unbiased variance is undefined: use a larger batch or unbiased=False"
CASES = [
    (["norm=ghost_bn", "norm.virtual_batch=32", "batch=48"], "batch=48: " + GHOST.format(48)),
    (
        ["norm=ghost_bn", "norm.virtual_batch=32", "batch=96", "accumulate=2"],
        "batch=96 in 2 micro-batches of 48: " + GHOST.format(48),
    ),
    (
        ["norm=xbn", "norm.bfn=ghost_bn", "norm.bfn.virtual_batch=10"],
        "the mini-batch of stage1_block1_norm1, 16 images",
    ),
    (["arch=mlp_sigmoid", "norm=bn", "batch=1"], ONE_VALUE),
    (["arch=mlp_sigmoid", "norm=bn", "batch=4", "accumulate=4"], ONE_VALUE),
    (["arch=mlp_sigmoid", "norm=ghost_bn", "norm.virtual_batch=1", "batch=4"], ONE_VALUE),
]
MINE = """
import keras

class Picky(keras.layers.Layer):
    def __init__(self, most=8, **kwargs):
        super().__init__(**kwargs)
        self.most = most

    def get_config(self):
        return {**super().get_config(), "most": self.most}

    def compute_output_shape(self, shape):
        return shape

    def call(self, inputs, training=False):
        if training and inputs.shape[0] is not None and inputs.shape[0] > self.most:
            raise RuntimeError(f"too many images:\\n\\nat most {self.most}")
        return inputs
"""


def composed(tmp_store, *overrides, config_dir=None):
    has_arch = any(override.startswith("arch=") for override in overrides)
    arch = [] if has_arch else ["arch=resnet8", "arch.width=4"]
    return compose(
        [
            "dataset=digits",
            "dataset.train_size=160",
            *arch,
            "batch=16",
            "epochs=1",
            f"store={tmp_store}",
            *overrides,
        ],
        config_dir,
    )


@pytest.mark.parametrize(("overrides", "says"), CASES)
def test_run_is_refused_before_anything_is_written(overrides, says, tmp_store):
    with pytest.raises(UserError, match=re.escape(says)):
        train(composed(tmp_store, *overrides))
    assert list(tmp_store.iterdir()) == []


@pytest.mark.parametrize(("overrides", "says"), CASES)
def test_sweep_refuses_the_same_without_initializing_weights(overrides, says, tmp_store):
    message = refusal(composed(tmp_store, *overrides), WarmState(), {})
    assert says in message
    assert "cannot be trained with batch=" in message


def test_sweep_checks_equivalent_cells_once(tmp_store, monkeypatch):
    from normbench.sweep import preflight as check

    calls = []
    build = check._build
    monkeypatch.setattr(check, "_build", lambda *args: calls.append(args) or build(*args))
    warm, built = WarmState(), {}
    for overrides in (["batch=16"], ["batch=16", "seed=1"], ["batch=16", "optimizer.lr=1"]):
        assert refusal(composed(tmp_store, *overrides), warm, built) == ""
    assert len(calls) == 1
    assert refusal(composed(tmp_store, "batch=32"), warm, built) == ""
    assert len(calls) == 2


@pytest.fixture
def picky(tmp_path, monkeypatch):
    """A folder of configs with a custom layer that refuses large mini-batches."""
    (tmp_path / "picky_layers.py").write_text(MINE)
    (tmp_path / "conf" / "norm").mkdir(parents=True)
    (tmp_path / "conf" / "norm" / "picky.yaml").write_text(
        "defaults: [{weight: none}, _self_]\nname: picky\n_target_: picky_layers.Picky\nmost: 8\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "conf"
    sys.modules.pop("picky_layers", None)


def test_error_of_a_custom_layer_is_reported_in_one_line(picky, tmp_store):
    config = composed(tmp_store, "norm=picky", config_dir=picky)
    says = (
        "norm=picky in arch=resnet8 cannot be trained with batch=16: "
        "RuntimeError: too many images: at most 8"
    )
    with pytest.raises(UserError, match=f"^{re.escape(says)}$"):
        train(config)
    assert refusal(config, WarmState(), {}) == says
    assert (
        refusal(composed(tmp_store, "norm=picky", "batch=8", config_dir=picky), WarmState(), {})
        == ""
    )
    assert list(tmp_store.iterdir()) == []


def test_batch_split_too_small_for_a_layer_is_a_failed_run(tmp_store):
    from normbench.engine.micro_batches import MicroBatches
    from normbench.engine.observer import Observer
    from normbench.engine.setup import load_dataset
    from normbench.engine.train import Session
    from normbench.store.store import Store

    norm = ["norm=ghost_bn", "norm.virtual_batch=8"]
    config = composed(tmp_store, *TINY, *norm, "batch=16", "accumulate=auto")
    micro_batches = MicroBatches(config, None)
    run, dataset = Store(tmp_store).run(config), load_dataset(config)
    session = Session(run, config, dataset, WarmState(), micro_batches, Observer(), begins=True)
    micro_batches.count = 4
    with pytest.raises(
        NormbenchError, match=r"memory is short, and .* in 4 micro-batches"
    ) as error:
        session.rebuild()
    assert error.value.exit_code == 1


def test_tracing_in_advance_avoids_retracing_and_changes_no_state(tmp_store, monkeypatch):
    from normbench.engine.setup import load_dataset, prepare
    from normbench.norms.group import GroupNormalization

    calls = []
    call = GroupNormalization.call

    @functools.wraps(call)  # Keras inspects the signature
    def counted(self, *args, **kwargs):
        calls.append(self.name)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(GroupNormalization, "call", counted)
    config = composed(tmp_store, *TINY, "norm=gn", "norm.groups=2")
    loop = prepare(config, load_dataset(config), WarmState(), 1).loop
    before = loop.state()
    loop.trace()
    traced = len(calls)
    assert traced
    loop.compile()
    loop.evaluate("validation")
    assert len(calls) == traced
    after = loop.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert keras.config.backend() == "tensorflow"
