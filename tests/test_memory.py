"""Runs that need more memory than there is are refused before they allocate it."""

from __future__ import annotations

import re

import keras
import pytest

from normbench import network
from normbench.config import compose
from normbench.engine.reuse import WarmState
from normbench.engine.setup import check_config, prepare
from normbench.errors import TooLarge, UserError
from normbench.network import build_model, refuse_too_large
from normbench.sweep.preflight import refusal

BASE = ["dataset=digits", "norm=bn", "batch=16", "epochs=1"]


def composed(*overrides):
    return compose([*BASE, *overrides])


@pytest.fixture
def small_machine(monkeypatch):
    """Make this machine appear to have 32 MiB of memory."""
    monkeypatch.setattr(network, "machine_memory", lambda: 32 << 20)


@pytest.mark.parametrize(
    "overrides",
    [
        ["arch=resnet8", "arch.width=1000000"],
        ["arch=mlp_sigmoid", "arch.units=10000000"],
    ],
)
def test_oversized_networks_are_refused_before_weights_are_drawn(overrides):
    config = composed(*overrides)
    with pytest.raises(UserError, match="too large for this machine's memory"):
        build_model(config, (32, 32, 1), 10)
    message = refusal(config, WarmState(), {})
    assert re.search(r"has [\d,]+ weights, which take at least .* TiB in training", message)
    assert re.search(r"this machine has .* of memory$", message)


def test_memory_is_not_checked_for_runs_on_other_machines(small_machine):
    config = composed("arch=resnet8", "arch.width=512")
    assert "this machine has 32.0 MiB of memory" in refusal(config, WarmState(), {})
    assert refusal(config, WarmState(), {}, here=False) == ""


def test_batch_whose_activations_do_not_fit_is_refused_on_a_cpu(small_machine):
    config = composed("arch=resnet8", "batch=1000")
    model = build_model(config, (32, 32, 1), 10)
    with pytest.raises(TooLarge, match=r"with batch=1000 .* use a smaller batch, or accumulate=N"):
        refuse_too_large(config, model, on_cpu=True)
    refuse_too_large(config, model, on_cpu=False)
    refuse_too_large(composed("arch=resnet8", "batch=1000", "accumulate=auto"), model, on_cpu=True)
    refuse_too_large(composed("arch=resnet8", "batch=1000", "accumulate=500"), model, on_cpu=True)
    with pytest.raises(TooLarge):
        prepare(config, check_config(config, WarmState()), WarmState(), 1)


def test_memory_estimate_counts_weights_and_saved_activations(monkeypatch):
    config = composed("arch=mlp_sigmoid", "norm=none", "arch.layers=1", "arch.units=1000")
    model = build_model(config, (8, 8, 1), 10)
    weights = 64 * 1000 + 1000 + 1000 * 10 + 10
    activations = 4 * 1000  # the sigmoid's outputs for one image
    least = 4 * network.COPIES * weights + activations * 16
    monkeypatch.setattr(network, "machine_memory", lambda: least * 2)
    refuse_too_large(config, model, on_cpu=True)
    monkeypatch.setattr(network, "machine_memory", lambda: least - 1)
    with pytest.raises(TooLarge):
        refuse_too_large(config, model, on_cpu=True)


def test_network_checked_by_a_sweep_never_draws_its_weights(monkeypatch):
    from normbench import initializers

    drawn = []
    generator = initializers._generator
    monkeypatch.setattr(initializers, "_generator", lambda: drawn.append(1) or generator())
    assert refusal(composed("arch=resnet8"), WarmState(), {}) == ""
    with keras.StatelessScope():
        pass  # on exit Keras draws the weights that are still pending
    assert drawn == []


def test_runs_with_too_many_steps_are_refused():
    config = composed("arch=resnet8", "epochs=2000000000")
    with pytest.raises(UserError, match=r"epochs=2000000000 is \d+ steps at batch=16: a run has "):
        check_config(config, WarmState())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arch=mlp_sigmoid", "arch.layers=1000000000"], "arch.layers makes 1,000,000,000 layers"),
        (["arch=resnet20", "arch.depth=600000002"], "arch.depth makes 600,000,002 layers"),
        (["arch=resnet_v2", "arch.depth=900000002"], "arch.depth makes 900,000,002 layers"),
        (["arch=wrn16_4", "arch.depth=600000004"], "arch.depth makes 600,000,004 layers"),
        (["arch=resnet18", "arch.blocks=[1,1000000,1,1]"], "arch.blocks makes 2,000,006 layers"),
    ],
)
def test_networks_with_too_many_layers_are_refused_at_once(overrides, message):
    with pytest.raises(UserError, match=f"{message}: a network has at most 5,000"):
        build_model(composed(*overrides), (32, 32, 3), 10)
