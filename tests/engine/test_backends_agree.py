"""TensorFlow and JAX agree: same weights, order and augmentation; losses equal up to rounding.

Each backend trains a hundred steps in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.marks import slow_except

NORMS = ("none", "bn", "gn", "gn_ws")
SMOOTH = "mlp_sigmoid arch.units=96"
SMALL = "conv_encoder arch.widths=[8] arch.halvings=1 arch.embedding=8"
NETWORKS = {SMOOTH: 1e-4, SMALL: 5e-2, "resnet8": 5e-2}
"""Networks, and how much their losses may differ.

Rounding errors, 1e-7, grow slowly in a smooth network. With ReLU, about once in a hundred steps a
unit is 1e-8 on one backend and 0 on the other: from then on the gradients differ.
"""
STEPS = 100
KEYS = ("start", "end", "loss", "grad_norm")
TRAIN = """
import sys
import numpy as np
from normbench.config import compose
from normbench.engine import backend
from normbench.engine.setup import load_dataset, prepare
from normbench.engine.reuse import WarmState

name, file, steps, *cells = sys.argv[1:]
warm, found = WarmState(), {}
for cell in cells:
    arch, norm = cell.split(":")
    config = compose([
        "dataset=digits", "dataset.crop_padding=1", "dataset.flip=true", "batch=12", "seed=3",
        *f"arch={arch}".split(), f"norm={norm}", f"backend={name}",
    ])
    dataset = warm.dataset(config, load_dataset)
    backend.start(config.backend, config.precision)
    loop = prepare(config, dataset, WarmState(), 1).loop
    start = loop.weights()
    loop.begin_epoch(0)
    taken = loop.train(0, np.full(int(steps), 0.005, np.float32))
    values = {
        "start": start, "end": loop.weights(), "loss": taken.loss, "grad_norm": taken.grad_norm
    }
    found |= {f"{cell}/{key}": value for key, value in values.items()}
np.savez(file, **found)
"""


QUICK = [(SMOOTH, "bn"), (SMALL, "gn_ws")]  # JAX compiles a residual network for ten seconds
CELLS = [*((arch, norm) for arch in (SMOOTH, "resnet8") for norm in NORMS), QUICK[1]]


def train_cells(backend, cells, file):
    """Train each cell in one process of the backend; return its arrays."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, backend, str(file), str(STEPS), *cells],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Return the arrays of a cell on both backends; quick cells are trained separately."""
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("curves")
    trained = {}

    def of(arch, norm):
        quick = (arch, norm) in QUICK
        if quick not in trained:
            cells = [f"{a}:{n}" for a, n in CELLS if ((a, n) in QUICK) == quick]
            trained[quick] = [
                train_cells(backend, cells, folder / f"{backend}-{quick}.npz")
                for backend in ("tensorflow", "jax")
            ]
        return [{k: arrays[f"{arch}:{norm}/{k}"] for k in KEYS} for arrays in trained[quick]]

    return of


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts both by itself")
@pytest.mark.parametrize(("arch", "norm"), slow_except(QUICK, CELLS))
def test_a_hundred_steps_agree_up_to_rounding(arch, norm, curves):
    ours, theirs = curves(arch, norm)
    tolerance = NETWORKS[arch]
    np.testing.assert_array_equal(ours["start"], theirs["start"])
    # The first step has the same images, augmentation and order.
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose(ours[key][0], theirs[key][0], rtol=2e-6)
        np.testing.assert_allclose(ours[key], theirs[key], rtol=tolerance)
    moved = np.linalg.norm(ours["end"] - ours["start"])
    assert moved > 0.01
    assert np.linalg.norm(ours["end"] - theirs["end"]) < 10 * tolerance * moved
    assert ours["loss"][-20:].mean() < ours["loss"][:20].mean()
