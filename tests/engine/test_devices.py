"""One run on several devices: JAX shards each batch and takes the same steps as on one device.

XLA splits the CPU into four devices, in subprocesses, because the number is fixed when JAX starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.config import compose
from normbench.errors import UserError
from tests.conftest import REPOSITORY

pytest.importorskip("jax", reason="JAX is not installed")

CASES = """
import json, sys
import numpy as np
from tests.engine.tinyloop import loop_of

def losses(loop, first=0, count=2):
    return loop.train(first, np.full(count, 0.05, np.float32)).loss.tolist()

def case(*overrides, devices=1, micro_batches=1, **changes):
    changes = {"devices": devices, "micro_batches": micro_batches, "momentum": 0.9, **changes}
    loop, split = loop_of(*overrides, **changes)
    loop.begin_epoch(0)
    found = {"losses": losses(loop), "weights": loop.weights().tolist()}
    state = loop.state()
    found["moving"] = {k: v.tolist() for k, v in state.items() if "moving" in k}
    found["evaluated"] = loop.evaluate("validation")
    loss, gradient = loop.gradients(split.images[:16], split.labels[:16])
    found["gradient"] = float(np.linalg.norm(gradient))
    loop.begin_epoch(1)
    found["next"] = losses(loop)
    loop.load(state)
    loop.begin_epoch(1)
    found["resumed"] = losses(loop)
    found["devices"] = len(loop.devices())
    return found

sync = {"synchronized": True}
print(json.dumps({
    "gn": case("norm=gn", "norm.groups=2"),
    "gn on 4": case("norm=gn", "norm.groups=2", devices=4),
    "bn": case("norm=bn"),
    "bn in 4": case("norm=bn", micro_batches=4),
    "bn on 4": case("norm=bn", devices=4),
    "bn in 2 on 2": case("norm=bn", devices=2, micro_batches=2),
    "bn on 4 streamed": case("norm=bn", devices=4, chunk_bytes=1),
    "sync_bn on 4": case("norm=sync_bn", devices=4, **sync),
}))
"""


def child(code: str, *arguments: str, devices: int = 4) -> subprocess.CompletedProcess[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags.strip()},
        timeout=600,
    )


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    done = child(CASES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same_steps(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-4)
    np.testing.assert_allclose(ours["weights"], theirs["weights"], atol=2e-4)
    np.testing.assert_allclose(ours["gradient"], theirs["gradient"], rtol=1e-2)


@pytest.mark.slow
def test_loop_uses_the_requested_number_of_devices(cases: dict[str, Any]) -> None:
    assert cases["gn on 4"]["devices"] == 4
    assert cases["bn in 2 on 2"]["devices"] == 2


@pytest.mark.slow
def test_batch_free_network_takes_the_same_steps(cases: dict[str, Any]) -> None:
    assert_same_steps(cases["gn on 4"], cases["gn"])
    np.testing.assert_allclose(cases["gn on 4"]["evaluated"], cases["gn"]["evaluated"], rtol=1e-3)


@pytest.mark.slow
def test_batch_statistics_are_per_device_like_per_micro_batch(cases: dict[str, Any]) -> None:
    assert_same_steps(cases["bn on 4"], cases["bn in 4"])
    assert_same_steps(cases["bn in 2 on 2"], cases["bn in 4"])
    apart = np.subtract(cases["bn on 4"]["losses"], cases["bn"]["losses"])
    assert np.abs(apart).max() > 1e-3


@pytest.mark.slow
def test_synchronized_statistics_are_over_the_full_batch(cases: dict[str, Any]) -> None:
    assert_same_steps(cases["sync_bn on 4"], cases["bn"])
    for name, values in cases["bn"]["moving"].items():
        (other,) = [
            candidate
            for key, candidate in cases["sync_bn on 4"]["moving"].items()
            if key.rpartition("/")[2] == name.rpartition("/")[2]
            and len(candidate) == len(values)
            and np.allclose(candidate, values, rtol=1e-3, atol=1e-4)
        ] or [None]
        assert other is not None, name


@pytest.mark.slow
def test_streamed_images_give_the_same_bits(cases: dict[str, Any]) -> None:
    assert cases["bn on 4 streamed"] == cases["bn on 4"]


@pytest.mark.slow
def test_loaded_state_resumes_to_the_same_bits(cases: dict[str, Any]) -> None:
    for case in cases.values():
        assert case["resumed"] == case["next"]


DROPOUT = """
import json
from types import SimpleNamespace
import keras, numpy as np
from normbench.engine import backend
from normbench.engine.augment import Images
from normbench.engine.loop import LoopSettings
from normbench.engine.optimizer import SGD
backend.start("jax", "float32")
from normbench.engine.loop_jax import JaxLoop

def loss_of(devices, batch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Dropout(0.5, seed=7)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="ones")(x * x))
    images = np.full((16, 2, 2, 1), 200, np.uint8)
    images[:, 0, 0] = np.arange(16).reshape(16, 1)
    split = SimpleNamespace(images=images, labels=np.zeros(16, np.int32))
    data = SimpleNamespace(train=split, validation=split, test=split)
    identity = Images(np.zeros(1, np.float32), np.ones(1, np.float32), 0, False)
    settings = LoopSettings(batch=batch, eval_batch=16, seed=0, smoothing=0.0, images=identity,
        optimizer=SGD(momentum=0.0, nesterov=False, weight_decay=0.0, agc=0.0), scaled_loss=False,
        devices=devices)
    loop = JaxLoop(model, data, settings)
    loop.begin_epoch(0)
    masks = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            seed = layer.seed_generator.state.path
    before = loop.weights()
    loop.train(0, np.ones(1, np.float32))
    seeds = [v.tolist() for k, v in loop.state().items() if "seed" in k]
    return (loop.weights() - before).tolist(), seeds

print(json.dumps({"one": loss_of(1, 16), "four": loss_of(4, 16), "again": loss_of(4, 16)}))
"""


@pytest.mark.slow
def test_each_device_drops_different_units() -> None:
    done = child(DROPOUT)
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout)
    assert outputs["four"] == outputs["again"]
    # The state of the random numbers advances equally.
    assert outputs["four"][1] == outputs["one"][1]


RUN = """
import sys
from normbench.cli import main
sys.exit(main(sys.argv[1:]))
"""
WORDS = ("run", "backend=jax", "dataset=digits", "dataset.train_size=160", "dataset.validation=100",
         "arch=conv_encoder", "arch.widths=[4]", "arch.halvings=0", "arch.embedding=4",
         "norm=bn", "batch=16", "epochs=1")  # fmt: skip


def test_run_records_its_devices_and_their_number_is_in_the_signature(tmp_path: Path) -> None:
    done = child(RUN, *WORDS, "devices=2", f"store={tmp_path}")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("digits-*")
    assert len(json.loads((folder / "meta.json").read_text())["devices"]) == 2
    assert compose([*WORDS[1:], "devices=2"]).run_name == folder.name
    assert compose([*WORDS[1:], "devices=1"]).signature == compose([*WORDS[1:]]).signature
    assert compose([*WORDS[1:]]).run_name != folder.name


def test_too_many_devices_are_refused_in_one_line(tmp_path: Path) -> None:
    done = child(RUN, *WORDS, "devices=8", f"store={tmp_path / 'runs'}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "devices=8 is more than this machine has (allowed: 1 to 4)" in line
    assert "xla_force_host_platform_device_count=8" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["devices=2"], "needs backend=jax"),
        (["devices=3", "backend=jax"], "does not divide the 16 images of batch=16"),
        (
            ["devices=4", "accumulate=8", "backend=jax"],
            "the 2 images of batch=16 with accumulate=8",
        ),
        (["devices=2", "accumulate=auto", "backend=jax"], "needs a number for accumulate"),
        (["devices=0"], "devices must be at least 1"),
        (["devices=two"], "devices"),
    ],
)
def test_invalid_device_counts_are_refused(words: list[str], wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["batch=16", *words])
    assert wanted in str(caught.value)
