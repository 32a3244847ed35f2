"""A batch divided into shards, and a network called on them: :class:`Shards`, :func:`forward`.

A shard is a number of consecutive images of a batch. TensorFlow computes shards in parallel on a
CPU, with a few threads each. Layers are not aware of shards. The layers that can be called shard by
shard are those listed in :data:`_EACH_IMAGE_ALONE` and :data:`_OVER_SHARDS`, and those with an
attribute ``per_example = True``. Every other layer is called with the full batch.

This module uses Keras's private ``_run_through_graph``, ``_nodes_by_depth``, ``_keras_mask`` and
``_call_has_training_arg``, checked against Keras 3.15.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import layers, ops

from normbench.kernels.batch_cpu import standardize_shards
from normbench.kernels.conv import conv2d_shards, copies_for_shards
from normbench.kernels.relu import is_rectifier, rectified
from normbench.norms.batch import BatchNormalization
from normbench.norms.convolution import Conv2D, DepthwiseConv2D
from normbench.norms.weights import (
    ParametrizedConv2D,
    ParametrizedDense,
    ParametrizedDepthwiseConv2D,
)

_EACH_IMAGE_ALONE = frozenset(
    {
        layers.Activation,
        layers.Add,
        layers.AveragePooling2D,
        layers.Concatenate,
        layers.Conv2D,
        layers.Dense,
        layers.DepthwiseConv2D,
        layers.Flatten,
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        layers.Identity,
        layers.LeakyReLU,
        layers.MaxPooling2D,
        layers.Multiply,
        layers.ReLU,
        layers.Rescaling,
        layers.Reshape,
        layers.SeparableConv2D,
        layers.ZeroPadding2D,
        DepthwiseConv2D,
    }
)
"""Layers (subclasses excluded) that process each image independently and have no state."""


class Shards:
    """A batched tensor as an ordered list of shards; a leaf in Keras's trees.

    Attributes:
        parts: The shards.
        addends: For each shard, the tensors whose sum it is, if the sum is used only once.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.addends: list[list[Any]] | None = None

    def taken(self) -> Shards:
        """Return the shards for a single use."""
        return self

    @classmethod
    def of(cls, batch: Any, count: int) -> Shards:
        """Divide a batch, (N, ...), into at most ``count`` shards of nearly equal size.

        If N is only known at run time, it must be at least ``count``.
        """
        images = batch.shape[0]
        if images is None:
            images = tf.shape(batch)[0]
        else:
            count = min(count, images)
        edges = [images * index // count for index in range(count + 1)]
        sizes = [stop - start for start, stop in pairwise(edges)]
        return cls([batch] if count == 1 else tf.split(batch, sizes, num=count))

    def joined(self) -> Any:
        """Return the batch as a single tensor."""
        return self.parts[0] if len(self.parts) == 1 else tf.concat(self.parts, 0)


class _Forked(Shards):
    """Shards that give each use its own copies, so that their gradients arrive separately."""

    def __init__(self, copies: list[list[Any]]) -> None:
        super().__init__(copies[0])
        self._left = copies[1:]

    def taken(self) -> Shards:
        return Shards(self._left.pop() if self._left else self.parts)


def forward(model: keras.Model, images: Any, count: int, *, training: bool) -> Any:
    """Return the outputs of a model for a batch that goes through it in shards.

    They equal ``model(images, training=training)`` up to rounding, because sums are computed in a
    different order.

    Args:
        model: A functional model without masks; any other model is called with the full batch.
        images: float32 (N, H, W, C), or shards of them.
        count: Number of shards.
        training: As for the model.
    """
    shards = images if isinstance(images, Shards) else Shards.of(images, count)
    walk = getattr(model, "_run_through_graph", None)
    # Half precision gains from the walk even with one shard. Shards do not support masks.
    is_single = count == 1 and model.compute_dtype == "float32"
    if walk is None or is_single or _has_masks(model):
        return model(shards.joined(), training=training)
    uses = _uses(model)
    outputs = walk(
        [shards],
        lambda layer: _over_shards(layer, count, training, uses.get(layer, 0)),
    )
    return keras.tree.map_structure(lambda output: output.taken().joined(), outputs)


def _over_shards(layer: Any, count: int, training: bool, uses: int) -> Callable[..., Any]:
    """Return a layer as a function of nested :class:`Shards`.

    Args:
        layer: A layer of the network.
        count: Number of shards.
        training: As for the layer.
        uses: Number of uses of the layer's output; 0 if unknown.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(
            lambda value: value.taken() if isinstance(value, Shards) else value, (args, kwargs)
        )
        if getattr(layer, "_call_has_training_arg", False):
            kwargs["training"] = training
        inputs = [
            value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, Shards)
        ]

        def call_with(tensor_of: Callable[[Shards], Any]) -> Any:
            """Call the layer with each :class:`Shards` replaced by a tensor."""
            tensors = keras.tree.map_structure(
                lambda value: tensor_of(value) if isinstance(value, Shards) else value,
                (args, kwargs),
            )
            return layer(*tensors[0], **tensors[1])

        if function := shard_function(layer):
            with keras.name_scope(layer.name):
                return Shards(function(layer, inputs[0].parts, training))
        if not _is_per_example(layer):
            outputs = call_with(Shards.joined)
            return keras.tree.map_structure(lambda batch: Shards.of(batch, count), outputs)
        if is_rectifier(layer):
            addends = inputs[0].addends or [None] * len(inputs[0].parts)
            copies = [
                rectified(layer, x, summands, max(1, uses))
                for x, summands in zip(inputs[0].parts, addends, strict=True)
            ]
            return _Forked([list(shards) for shards in zip(*copies, strict=True)])
        by_shard = [
            call_with(lambda shards, i=i: shards.parts[i]) for i in range(len(inputs[0].parts))
        ]
        outputs = keras.tree.map_structure(lambda *parts: Shards(list(parts)), *by_shard)
        same_shape = len({shards.parts[0].shape for shards in inputs}) == 1
        if type(layer) is layers.Add and uses == 1 and same_shape:
            # If a ReLU follows, it adds and rectifies in one pass.
            summands = zip(*(shards.parts for shards in inputs), strict=True)
            outputs.addends = [list(tensors) for tensors in summands]
        return outputs

    return call


# --- layers that get all shards of a batch at once ------------------------------------------------


def _batch_normalization(layer: Any, shards: list[Any], training: bool) -> list[Any]:
    """Normalize with the statistics of all shards, and update the layer's state once."""
    xs = [layer.flatten(x) for x in shards]
    if layer.takes_batch(xs[0], training):
        gamma, beta = layer.affine()
        ys, mean, variance, count = standardize_shards(xs, gamma, beta, layer.epsilon)
        layer.update(mean, variance, count)
    else:
        ys = [layer.normalize(x, training) for x in xs]
    return [layer.restore(y, x) for y, x in zip(ys, shards, strict=True)]


def _convolution(layer: Any, shards: list[Any], training: bool) -> list[Any]:
    """Convolve each shard; map, round and transform the kernel only once."""
    xs = [ops.cast(x, layer.compute_dtype) for x in shards]
    kernel = layer.effective_kernel(training)
    return [layer.finish(y) for y in conv2d_shards(xs, kernel, **layer.conv_options())]


def _kernel_layer(layer: Any, shards: list[Any], training: bool) -> list[Any]:
    """Call a layer with each shard; map and round the kernel only once."""
    xs = [ops.cast(x, layer.compute_dtype) for x in shards]
    kernels = copies_for_shards(layer.effective_kernel(training), len(xs), layer.compute_dtype)
    ys = [layer.apply_kernel(x, kernel) for x, kernel in zip(xs, kernels, strict=True)]
    return [layer.finish(y) for y in ys]


class _OverShards(NamedTuple):
    """How a layer is called with all shards of a batch.

    Attributes:
        function: Maps the layer, its input's shards and ``training`` to its output's shards.
        replaced: Methods that the function replaces. A subclass that overrides one of them computes
            something else, and is called with the full batch.
    """

    function: Callable[[Any, list[Any], bool], list[Any]]
    replaced: tuple[str, ...]


_BATCH_STEPS = ("call", "normalize", "standardize")
_KERNEL_STEPS = ("call", "apply_kernel")
_OVER_SHARDS: dict[type, _OverShards] = {
    BatchNormalization: _OverShards(_batch_normalization, _BATCH_STEPS),
    Conv2D: _OverShards(_convolution, _KERNEL_STEPS),
    ParametrizedConv2D: _OverShards(_convolution, _KERNEL_STEPS),
    ParametrizedDepthwiseConv2D: _OverShards(_kernel_layer, _KERNEL_STEPS),
    ParametrizedDense: _OverShards(_kernel_layer, _KERNEL_STEPS),
}


def shard_function(layer: Any) -> Callable[[Any, list[Any], bool], list[Any]] | None:
    """Return the function in :data:`_OVER_SHARDS` for a layer or the base class it equals."""
    for kind in type(layer).__mro__:
        if kind in _OVER_SHARDS:
            function, names = _OVER_SHARDS[kind]
            is_unchanged = all(getattr(type(layer), name) is getattr(kind, name) for name in names)
            return function if is_unchanged and _is_plain(layer) else None
    return None


def _is_per_example(layer: Any) -> bool:
    """Return whether calling a layer shard by shard is equivalent to calling it with the batch."""
    is_known = type(layer) in _EACH_IMAGE_ALONE and getattr(layer, "axis", -1) != 0
    return getattr(layer, "per_example", is_known) and _is_plain(layer)


def _is_plain(layer: Any) -> bool:
    """Return whether no user-defined function sees all images of the layer's outputs."""
    function = getattr(layer, "activation", None)
    if function is not None and not function.__module__.startswith("keras."):
        return False
    return getattr(layer, "activity_regularizer", None) is None


# --- the network's graph --------------------------------------------------------------------------


def _has_masks(model: Any) -> bool:
    """Return whether a layer of a functional model, such as ``Masking``, creates a mask."""
    outputs = (tensor for node in _nodes(model) for tensor in node.outputs)
    return any(getattr(tensor, "_keras_mask", None) is not None for tensor in outputs)


def _uses(model: Any) -> dict[Any, int]:
    """Return the number of uses of each layer's output.

    Layers that are called more than once, or do not return a single tensor, are left out.
    """
    nodes = _nodes(model)
    reads = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    reads.update(id(tensor) for tensor in model.outputs)
    calls = Counter(node.operation for node in nodes)
    return {
        node.operation: reads[id(node.outputs[0])]
        for node in nodes
        if calls[node.operation] == 1 and len(node.outputs) == 1
    }


def _nodes(model: Any) -> list[Any]:
    """Return the nodes of a functional model: one for each call of a layer."""
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]
