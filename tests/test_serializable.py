"""Models saved with this package's layers load again after ``import normbench.norms``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import normbench
from normbench import serializable
from normbench.archs import resnet_small
from normbench.components import target
from normbench.config import compose
from normbench.norms.norm import make_norm

SHAPE = (8, 8, 16)
LAYERS = [
    "batch.BatchNormalization",
    "batch_apis.KerasBatchNormalization",
    "batch_apis.MomentsBatchNormalization",
    "batch_channel.BatchChannelNormalization",
    "batch_parts.BatchCentering",
    "batch_parts.BatchScaling",
    "batch_renormalization.BatchRenormalization",
    "dynamic_tanh.DynamicTanh",
    "evonorm.EvoNormB0",
    "evonorm.EvoNormS0",
    "filter_response.FilterResponseNormalization",
    "ghost_batch.GhostBatchNormalization",
    "group.GroupNormalization",
    "group.InstanceNormalization",
    "group.LayerNormalization",
    "iterative.IterativeNormalization",
    "local_response.LocalResponseNormalization",
    "minmax.ChannelMinMaxNormalization",
    "minmax.ImageMinMaxNormalization",
    "minmax.MaxFirstMinMaxNormalization",
    "minmax.MinMaxNormalization",
    "positional.PositionalNormalization",
    "precise_batch.PreciseBatchNormalization",
    "rms.RMSNormalization",
    "switchable.SwitchableNormalization",
    "synchronized_batch.SynchronizedBatchNormalization",
]
PARAMETRIZATIONS = [
    "scaled_ws.ScaledWeightStandardization",
    "spectral.SpectralNormalization",
    "weight_normalization.CenteredWeightNormalization",
    "weight_normalization.WeightNormalization",
    "weight_standardization.WeightStandardization",
    "weight_study.WSAsRegularizer",
    "weight_study.WSAssign",
]
CONVOLUTIONS = [
    "scaled_ws.ScaledWSConv2D",
    "spectral.SNConv2D",
    "weight_normalization.CWNConv2D",
    "weight_normalization.WNConv2D",
    "weight_standardization.WSConv2D",
    "weight_study.WSAssignConv2D",
]
OPTIONS = {
    "batch_channel.BatchChannelNormalization": {"groups": 4},
    "evonorm.EvoNormS0": {"groups": 4},
    "group.GroupNormalization": {"channels_per_group": 4},
    "iterative.IterativeNormalization": {"channels_per_group": 4},
}
"""Options of layers whose defaults do not fit 16 channels."""

LOAD = """
import json, sys
import normbench.norms
assert "keras" not in sys.modules
import keras
import numpy as np
folder = sys.argv[1]
x = np.load(f"{folder}/inputs.npy")
for kind in ("keras", "h5"):
    model = keras.models.load_model(f"{folder}/model.{kind}", compile=False)
    outputs = [keras.ops.convert_to_numpy(each) for each in model(x, training=False)]
    np.savez(f"{folder}/{kind}.npz", *outputs)
with open(f"{folder}/layers.json") as file:
    layers = [keras.layers.deserialize(each) for each in json.load(file)]
print(json.dumps([f"{type(each).__module__}.{type(each).__name__}" for each in layers]))
"""


def layer_of(path: str, *args: Any, **options: Any) -> Any:
    return target(f"normbench.norms.{path}")(*args, **OPTIONS.get(path, {}), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Save a model of every layer, load it in a process that names none of them; return both."""
    folder = tmp_path_factory.mktemp("saved")
    layers = [layer_of(path) for path in LAYERS]
    layers += [layer_of(path, 4, 3) for path in CONVOLUTIONS]
    layers += [layer_of(each.replace("Conv2D", "DepthwiseConv2D"), 3) for each in CONVOLUTIONS]
    for path in PARAMETRIZATIONS:
        layers += [
            layer_of("norm.ParametrizedConv2D", 4, 3, parametrization=layer_of(path)),
            layer_of("norm.ParametrizedDepthwiseConv2D", 3, parametrization=layer_of(path)),
            layer_of("norm.ParametrizedDense", 4, parametrization=layer_of(path)),
        ]
    norm = make_norm(compose(["norm=gn_ws", "norm.groups=4"]).norm)
    layers.append(resnet_small.build(norm, SHAPE, 10, depth=8, width=4))
    if keras.backend.backend() == "jax":  # JAX compiles each operation of each layer
        layers = layers[::16]
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    x = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    np.save(folder / "inputs.npy", x)
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    configs = [keras.layers.serialize(layer) for layer in layers]
    (folder / "layers.json").write_text(json.dumps(configs), encoding="utf-8")
    loading = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=False
    )
    assert loading.returncode == 0, loading.stderr[-2000:]
    return SimpleNamespace(
        folder=folder,
        layers=layers,
        outputs=[keras.ops.convert_to_numpy(each) for each in model(x, training=False)],
        names=json.loads(loading.stdout.splitlines()[-1]),
    )


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_saved_model_computes_the_same_outputs_in_another_process(saved, kind):
    with np.load(saved.folder / f"{kind}.npz") as file:
        outputs = [file[name] for name in file.files]
    assert len(outputs) == len(saved.layers)
    for layer, actual, expected in zip(saved.layers, outputs, saved.outputs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=layer.name)


def test_layers_are_deserialized_in_another_process(saved):
    types = [type(layer) for layer in saved.layers]
    assert saved.names == [f"{layer_type.__module__}.{layer_type.__name__}" for layer_type in types]


def test_each_registered_class_has_a_placeholder():
    placeholders = list(serializable.classes())
    assert len({name for _, name in placeholders}) == len(placeholders) > 50
    root = Path(normbench.__file__).parent
    registered = sum(
        len(re.findall(r"^@keras\.saving\.register_keras_serializable", text, re.MULTILINE))
        for text in (file.read_text(encoding="utf-8") for file in root.rglob("*.py"))
    )
    assert len(placeholders) == registered
    for module, name in placeholders:
        kind = getattr(import_module(module), name)
        assert keras.saving.get_registered_object(f"normbench>{name}") is kind


def test_placeholders_are_registered_if_keras_was_imported_first(monkeypatch):
    registry: dict[str, Any] = {"normbench>Conv2D": "imported"}
    fake = SimpleNamespace(saving=SimpleNamespace(get_custom_objects=lambda: registry))
    monkeypatch.setitem(sys.modules, "keras", fake)
    serializable.register()
    assert registry["normbench>Conv2D"] == "imported"
    layer = registry["normbench>GroupNormalization"].from_config({"groups": 2, "name": "gn"})
    assert (type(layer).__name__, layer.groups) == ("GroupNormalization", 2)
    assert registry["normbench>RMSNormalization"](name="rms").name == "rms"


def test_star_import_exports_the_public_classes():
    namespace: dict[str, Any] = {}
    exec("from normbench.norms import *", namespace)
    assert {"BatchNormalization", "WSConv2D", "SpectralNormalization"} <= namespace.keys()
    assert not {"ast", "import_module", "annotations"} & namespace.keys()
