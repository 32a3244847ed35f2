"""The network of a run: :func:`build_model` builds it, :func:`layer_costs` returns its cost.

:func:`layers_within`, :func:`calls_of` and :func:`layer_of` inspect a built model. They use Keras's
private ``_flatten_layers``, ``_inbound_nodes`` and ``_keras_history``, checked against Keras 3.15.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from normbench.components import configured
from normbench.config import Config
from normbench.errors import NormbenchError, TooLarge, UserError, is_out_of_memory, why
from normbench.formats import count, size
from normbench.initializers import seeded
from normbench.machine import machine_memory

COPIES = 4
"""Minimum number of copies of the weights in memory: the weights, their gradients, the optimizer's
state and the arrays of a checkpoint."""


def build_model(config: Config, input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Build the network of ``config.arch`` with the normalization of ``config.norm``.

    The initial weights depend only on ``config.seed``, not on the backend.

    Args:
        config: Config of the run.
        input_shape: (H, W, C) of the images.
        classes: Number of logits.

    Raises:
        UserError: The combination is impossible, for example groups do not divide the channels.
    """
    from normbench.norms.norm import make_norm

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


def parameter_count(model: keras.Model) -> int:
    """Return the number of a model's trainable parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


# --- cost of each layer, read from the Keras layers without running them --------------------------

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_NEEDS_NEITHER = (
    "Add",
    "AveragePooling2D",
    "Concatenate",
    "Cropping2D",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "Identity",
    "Permute",
    "Reshape",
    "UpSampling2D",
    "ZeroPadding2D",
)
"""Kinds of layers whose backward pass needs neither their input nor their output."""
_NEEDS_OUTPUT = ("Activation", "Dropout", "MaxPooling2D", "ReLU", "Softmax")
"""Kinds of layers whose backward pass needs their output: a ReLU its sign, a dropout its mask."""
_NEEDS_NO_INPUT = (*_NEEDS_NEITHER, "Activation", "ReLU", "Softmax")


@dataclass(frozen=True)
class LayerCost:
    """Description and cost of one layer of a network.

    Attributes:
        name: Name of the layer.
        kind: Name of the layer's class.
        about: Main options of the layer, such as ``3×3 /2``; may be empty.
        inputs: Names of the layers whose outputs are the layer's inputs.
        output_shape: Shape of the output without the batch axis.
        parameters: Number of trainable parameters.
        multiply_adds: Multiply-adds of one image's forward pass. As in the papers, convolutions
            and linear layers count; biases, normalizations, activations and pooling do not.
        activation_bytes: Bytes of one image's output, in the layer's compute dtype.
        kept_bytes: The same, but 0 if the backward pass does not need the output. In float32, the
            sum over layers equals TensorFlow's memory for activations within 2 %; in half
            precision, a normalization may store float32 copies as well.
        place: A normalization's position in a block; None for other layers, and for a
            normalization loaded from a file.
        parametrization: Class of the kernel's weight parametrization; None if there is none.
    """

    name: str
    kind: str
    about: str
    inputs: tuple[str, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    kept_bytes: int
    place: str | None = None
    parametrization: str | None = None


def layer_costs(model: keras.Model) -> list[LayerCost]:
    """Return the cost of each layer of a network, from the images to the logits.

    The layers of a branch are listed together, and branches in the order of the inputs of the layer
    that joins them. A layer that is used twice is listed twice, with its parameters at the first
    use.

    Args:
        model: A built network for images of known size.

    Raises:
        ValueError: The size of the images is unknown.
    """
    nodes = list(_from_images_to_logits(model))
    kept_keys = _kept(nodes)
    seen_operations: set[int] = set()
    costs = []
    for node in nodes:
        costs.append(_cost(node, kept_keys, first=id(node.operation) not in seen_operations))
        seen_operations.add(id(node.operation))
    return costs


def multiply_adds(model: keras.Model) -> int:
    """Return the multiply-adds of one image's forward pass (see :class:`LayerCost`).

    Raises:
        ValueError: The size of the images is unknown.
    """
    return sum(cost.multiply_adds for cost in layer_costs(model))


def layers_within(model: keras.Model) -> list[Any]:
    """Return the layers of a model, including nested ones, without the model itself."""
    return list(model._flatten_layers(include_self=False))


def calls_of(layer: Any) -> list[Any]:
    """Return a Keras ``Node`` for each call of a layer on symbolic tensors, in order."""
    return layer._inbound_nodes


def layer_of(output: Any) -> Any:
    """Return the layer that computes an output of a model."""
    return output._keras_history.operation


def _from_images_to_logits(model: keras.Model) -> Iterator[Any]:
    """Yield each use of each layer (a Keras ``Node``) in topological order."""
    visited_keys: set[tuple[int, int]] = set()
    stack = [tensor._keras_history for tensor in reversed(model.outputs)]
    while stack:
        history = stack[-1]
        node = calls_of(history.operation)[history.node_index]
        inputs = [tensor._keras_history for tensor in node.input_tensors]
        missing = [source for source in inputs if _key(source) not in visited_keys]
        if _key(history) in visited_keys:
            stack.pop()
        elif missing:
            stack.extend(reversed(missing))
        else:
            visited_keys.add(_key(stack.pop()))
            yield node


def _key(history: Any) -> tuple[int, int]:
    return id(history.operation), history.node_index


def _kept(nodes: Iterable[Any]) -> set[tuple[int, int]]:
    """Return the keys of the uses whose output the backward pass needs."""
    kept_keys = set()
    for node in nodes:
        kind = type(node.operation).__name__
        if kind in _NEEDS_OUTPUT:
            kept_keys.update(_key(tensor._keras_history) for tensor in node.outputs)
        if kind not in _NEEDS_NO_INPUT:
            kept_keys.update(_key(tensor._keras_history) for tensor in node.input_tensors)
    return kept_keys


def _cost(node: Any, kept_keys: set[tuple[int, int]], first: bool) -> LayerCost:
    layer = node.operation
    output = node.outputs[0]
    shape = _image(layer, output)
    size = sum(math.prod(_image(layer, tensor)) * _bytes(tensor.dtype) for tensor in node.outputs)
    variables = getattr(layer, "trainable_variables", ()) if first else ()
    parametrization = getattr(layer, "parametrization", None)
    return LayerCost(
        name=layer.name,
        kind=type(layer).__name__,
        about=_about(layer),
        inputs=tuple(tensor._keras_history.operation.name for tensor in node.input_tensors),
        output_shape=shape,
        parameters=sum(math.prod(variable.shape) for variable in variables),
        multiply_adds=_multiply_adds(layer, node, shape),
        activation_bytes=size,
        kept_bytes=size if _key(output._keras_history) in kept_keys else 0,
        place=getattr(layer, "place", None),
        parametrization=None if parametrization is None else type(parametrization).__name__,
    )


def _image(layer: Any, tensor: Any) -> tuple[int, ...]:
    """Return a tensor's shape without the batch axis."""
    shape = tuple(tensor.shape[1:])
    if None in shape:
        raise ValueError(f"{layer.name} has an output of unknown size, {shape}: build the network "
                         "for images of a known size")  # fmt: skip
    return shape


def _bytes(dtype: str) -> int:
    bits = re.search(r"\d+$", dtype)
    return int(bits[0]) // 8 if bits else 1  # bool


def _multiply_adds(layer: Any, node: Any, shape: tuple[int, ...]) -> int:
    if isinstance(layer, keras.Model):
        return multiply_adds(layer)
    if isinstance(layer, keras.layers.Dense):
        return math.prod(layer.kernel.shape) * math.prod(shape[:-1])
    if isinstance(layer, _SEPARABLE):
        weights = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        return weights * _positions(layer, shape)
    if isinstance(layer, _TRANSPOSED):
        # The kernel is applied at every spatial position of the input.
        inputs = _image(layer, node.input_tensors[0])
        return math.prod(layer.kernel.shape) * _positions(layer, inputs)
    if isinstance(layer, _CONVOLUTIONS):  # the kernel's input channels are those of one group
        return math.prod(layer.kernel.shape) * _positions(layer, shape)
    return 0


def _positions(layer: Any, shape: tuple[int, ...]) -> int:
    """Return the number of spatial positions of a shape without batch axis."""
    return math.prod(shape[1:] if layer.data_format == "channels_first" else shape[:-1])


def _about(layer: Any) -> str:
    """Describe the main options of a layer."""
    words = []
    window = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if window:
        words.append("×".join(map(str, window)))
        strides = set(layer.strides)
        if strides != {1}:
            words.append("/" + "×".join(map(str, sorted(strides))))
    groups = getattr(layer, "groups", None)
    if isinstance(groups, int) and (groups > 1 or not window):
        words.append(f"{groups} groups")
    if getattr(layer, "channels_per_group", None):
        words.append(f"{layer.channels_per_group} channels per group")
    if getattr(layer, "max_value", None):
        words.append(f"at most {layer.max_value:g}")
    if isinstance(layer, keras.layers.Activation):
        words.append(layer.activation.__name__)
    if isinstance(layer, keras.layers.Dropout):
        words.append(f"rate {layer.rate:g}")
    return " ".join(words)


def refuse_too_large(config: Config, model: keras.Model, on_cpu: bool) -> None:
    """Refuse a network that needs more memory for training than this machine has.

    The estimate is a lower bound: copies of the weights and, on a CPU, the activations of one
    mini-batch that the backward pass needs. Activations are left out on a GPU, which reports itself
    that its memory is full, and with ``accumulate=auto``, which can split the batch.

    Args:
        config: Config of the run.
        model: Network of the run, possibly built without weights.
        on_cpu: Whether the run computes on a CPU.

    Raises:
        TooLarge: The network needs more memory than there is.
    """
    available = machine_memory()
    network = f"norm={config.norm_name} in arch={config.arch['name']}"
    weights = sum(math.prod(variable.shape) for variable in model.variables)
    need = 4 * COPIES * weights
    if need > available:
        raise TooLarge(
            f"{network} has {count(weights)} weights, which take at least {size(need)} in "
            f"training: this machine has {size(available)} of memory"
        )
    if not on_cpu or config.accumulate == "auto":
        return
    try:
        image_bytes = sum(layer.kept_bytes for layer in layer_costs(model))
    except ValueError:  # an output of unknown size: nothing can be estimated
        return
    need += image_bytes * config.micro_batch
    if need > available:
        raise TooLarge(
            f"{network} takes at least {size(need)} in training with batch={config.batch} "
            f"({size(image_bytes)} per image): this machine has {size(available)} of memory; use a "
            "smaller batch, or accumulate=N to split it into N micro-batches"
        )
