"""Exported graphs hold plain operations, which TensorFlow Lite converts and computes equally."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from normbench import norms
from normbench.archs import resnet_small
from normbench.config import compose
from normbench.norms.convolution import Conv2D, DepthwiseConv2D
from normbench.norms.norm import make_norm
from tests.marks import slow_except
from tests.norms.test_every_layer import BACKEND, NAMES, make

if BACKEND != "tensorflow":
    pytest.skip("TensorFlow Lite converts graphs of TensorFlow", allow_module_level=True)

import tensorflow as tf

SHAPE = (4, 4, 16)
CONVOLUTIONS = {
    "conv_1x1": lambda: Conv2D(8, 1),
    "depthwise": lambda: DepthwiseConv2D(3),
    "ws": lambda: norms.WSConv2D(8, 3),
    "wn": lambda: norms.WNConv2D(8, 3),
    "cwn": lambda: norms.CWNConv2D(8, 3),
    "sn": lambda: norms.SNConv2D(8, 3),
    "scaled_ws": lambda: norms.ScaledWSConv2D(8, 3),
    "ws_depthwise": lambda: norms.WSDepthwiseConv2D(3),
}


def to_tflite(model: Any) -> Any:
    """Convert a model to TensorFlow Lite, without TensorFlow's own operations in it."""
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def run_tflite(content: Any, x: np.ndarray) -> np.ndarray:
    interpreter = tf.lite.Interpreter(model_content=content)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(target["index"])


def assert_converts(model: Any) -> None:
    x = (5 + np.random.default_rng(0).standard_normal((3, *SHAPE))).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    largest = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(run_tflite(to_tflite(model), x), expected, atol=2e-5 * largest)


@pytest.mark.parametrize(
    "name", slow_except(("bn", "gn", "evonorm_s0", "conv_1x1", "ws"), [*NAMES, *CONVOLUTIONS])
)
def test_layers_convert_to_tensorflow_lite(name):
    layer = CONVOLUTIONS[name]() if name in CONVOLUTIONS else make(name)
    inputs = keras.Input(SHAPE, batch_size=3 if name.endswith("_tfa") else None)
    assert_converts(keras.Sequential([inputs, layer]))


@pytest.mark.parametrize("name", slow_except(["gn"], ["gn", "bn", "conv_1x1"]))
def test_layers_with_known_batch_size_convert_to_tensorflow_lite(name):
    layer = CONVOLUTIONS[name]() if name in CONVOLUTIONS else make(name)
    assert_converts(keras.Sequential([keras.Input(SHAPE, batch_size=3), layer]))


@pytest.mark.slow
def test_network_converts_to_tensorflow_lite():
    norm = make_norm(compose(["norm=gn_ws", "norm.groups=4"]).norm)
    assert_converts(resnet_small.build(norm, SHAPE, 10, depth=8, width=4))


def test_exported_model_has_no_machine_specific_operations(tmp_path):
    model = keras.Sequential([keras.Input((64, 64, 16), batch_size=8), make("gn")])
    model.export(tmp_path / "model", verbose=False)
    exported = tf.saved_model.load(tmp_path / "model")
    graph = exported.serve.concrete_functions[0].graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    assert not {"BitwiseAnd", "EuclideanNorm"} & {node.op for node in nodes}
    functions = graph.library.function
    assert not any(f.attr["_XlaMustCompile"].b for f in functions if "_XlaMustCompile" in f.attr)
    assert not any(
        node.attr["_XlaMustCompile"].b for node in nodes if "_XlaMustCompile" in node.attr
    )


def test_training_graph_keeps_special_operations():
    layer = make("gn")
    layer.build((8, *SHAPE))
    step = tf.function(layer, autograph=False)
    graph = step.get_concrete_function(tf.TensorSpec((8, *SHAPE))).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    assert {"BitwiseAnd", "EuclideanNorm"} <= {node.op for node in nodes}
