"""The model of a run, built from its config."""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
import numpy as np

from normbench.components import configured
from normbench.config import Config
from normbench.engine import backend
from normbench.engine.images import Images
from normbench.engine.memory import COPIES, is_out_of_memory, machine_memory
from normbench.errors import NormbenchError, UserError, why
from normbench.initializers import seeded

SEEN = 5000
"""Training images that a data-dependent initialization is shown."""


def build_model(config: Config, input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Build the network of ``config.arch`` with the normalization of ``config.norm``.

    The initial weights depend on ``config.seed`` alone, on every backend.

    Args:
        config: Of the run.
        input_shape: (H, W, C) of the images.
        classes: Number of logits.

    Raises:
        UserError: A combination that cannot be: groups that do not divide the channels, say.
    """
    from normbench.norms.catalogue import make_norm

    build, options = configured("arch", config.arch, passed=("norm", "input_shape", "classes"))
    try:
        norm = make_norm(config.norm)
        with seeded(config.seed, most=machine_memory() // (4 * COPIES)):
            model = build(norm, input_shape, classes, **options)
        norm.check_used()
    except NormbenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"norm={config.norm_name} cannot be built into arch={config.arch['name']} at "
            f"{'×'.join(map(str, input_shape))}: {why(error)}"
        ) from error
    if len(model.outputs) > 1 and "auxiliary_weight" not in config.arch:
        raise UserError(
            f"arch={config.arch['name']} has auxiliary classifiers and no option auxiliary_weight"
        )
    return model


def initialize_from(model: keras.Model, pixels: np.ndarray, images: Images) -> None:
    """Let the layers whose first weights depend on the data see training images.

    Such a layer has a method ``initialize_from``, called with scaled images, float32 (N, H, W, C).

    Args:
        model: Built, and not trained yet.
        pixels: uint8 (N, H, W, C), the training images; the first ``SEEN`` of them are shown.
        images: How they are scaled.
    """
    layers = [each for each in model.layers if hasattr(each, "initialize_from")]
    if not layers:
        return
    scaled = keras.ops.convert_to_numpy(images.scaled(np.ascontiguousarray(pixels[:SEEN])))
    for layer in layers:
        layer.initialize_from(scaled)


def trace_layers(model: keras.Model, batch: int) -> None:
    """Trace the layers whose work depends on the mini-batch, in training mode, one after another.

    A tenth of the time that tracing the network takes, and no weight is needed: layers that are
    equal but for their names, on inputs of one shape, are traced once, and those that are known to
    treat each image alone are left out.

    Args:
        model: May have been built in a ``keras.StatelessScope``, without weights.
        batch: Images that go through the network at once.

    Raises:
        Exception: Whatever a layer raises.
    """
    calls: dict[Any, tuple[Any, Any]] = {}
    for layer in model._flatten_layers(include_self=False):
        own = type(layer).__module__.partition(".")[0] in ("keras", "normbench")
        if own and getattr(layer, "treats_images_alone", not hasattr(layer, "computed_over")):
            continue
        options = {key: value for key, value in layer.get_config().items() if key != "name"}
        for node in layer._inbound_nodes:
            inputs = node.arguments.keras_tensors
            shapes = tuple((each.dtype, each.shape) for each in inputs)
            calls.setdefault((type(layer), repr(options), shapes), (layer, node))

    def run(inputs: Any) -> list[Any]:
        outputs = []
        with keras.StatelessScope():
            for (layer, node), tensors in zip(calls.values(), inputs, strict=True):
                known = dict(zip(map(id, node.arguments.keras_tensors), tensors, strict=True))
                args, kwargs = node.arguments.fill_in(known)
                if "training" in inspect.signature(layer.call).parameters:
                    kwargs = {**kwargs, "training": True}
                outputs.append(layer(*args, **kwargs))
        return outputs

    specs = [
        [((batch, *each.shape[1:]), each.dtype) for each in node.arguments.keras_tensors]
        for _, node in calls.values()
    ]
    if calls:
        backend.trace(run, specs)


def parameter_count(model: keras.Model) -> int:
    """Count a model's trained parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)
