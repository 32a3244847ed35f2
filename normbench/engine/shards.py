"""A batch divided into shards, and a network's way through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from normbench.kernels.relu import is_rectifier, rectified

_ALONE = frozenset(
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
    }
)
"""Keras's layers, and no subclass of theirs, that treat each image by itself and keep nothing."""


class Shards:
    """A batched tensor as its parts, in order; to Keras's trees it is one value.

    Attributes:
        parts: The parts.
        addends: What each part is the sum of, where nothing else is computed of the parts.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.addends: list[list[Any]] | None = None

    def taken(self) -> Shards:
        """For one use of it."""
        return self

    @classmethod
    def of(cls, batch: Any, count: int) -> Shards:
        """Divide a batch, (N, ...), into at most ``count`` parts as equal as can be.

        Where N is known only when a graph runs, it must be at least ``count``.
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
        """The batch whole."""
        return self.parts[0] if len(self.parts) == 1 else tf.concat(self.parts, 0)


class _Forked(Shards):
    """One whose every use takes parts of its own, so that their gradients arrive apart."""

    def __init__(self, copies: list[list[Any]]) -> None:
        super().__init__(copies[0])
        self._left = copies[1:]

    def taken(self) -> Shards:
        return Shards(self._left.pop() if self._left else self.parts)


def forward(model: keras.Model, images: Any, count: int, *, training: bool) -> Any:
    """Return what a model gives for a batch that goes through it in shards.

    As ``model(images, training=training)``, whose every layer is called: with each shard if it
    treats each image by itself, with all of them if it ``takes_shards``, else with the batch, put
    together. The results differ by rounding: operations add in another order.

    Args:
        model: Functional, without masks; any other is called with the whole batch.
        images: float32 (N, H, W, C), or shards of them.
        count: Shards.
        training: As for the model.
    """
    shards = images if isinstance(images, Shards) else Shards.of(images, count)
    walk = getattr(model, "_run_through_graph", None)
    # Half precision gains from it even whole. A shard does not carry its mask along.
    whole = count == 1 and model.compute_dtype == "float32"
    if walk is None or whole or _has_masks(model):
        return model(shards.joined(), training=training)
    uses = _uses(model)
    outputs = walk(
        [shards],
        lambda layer: _over_shards(layer, count, training, uses.get(layer, 0)),
    )
    return keras.tree.map_structure(lambda each: each.taken().joined(), outputs)


def _has_masks(model: Any) -> bool:
    """Whether a layer of a functional model, such as ``keras.layers.Masking``, makes a mask."""
    nodes = (node for depth in model._nodes_by_depth.values() for node in depth)
    return any(getattr(each, "_keras_mask", None) is not None for n in nodes for each in n.outputs)


def _uses(model: Any) -> dict[Any, int]:
    """How often what a layer gives is used, of those that a model calls once and for a tensor."""
    nodes = [node for depth in model._nodes_by_depth.values() for node in depth]
    read = Counter(id(each) for node in nodes for each in node.input_tensors)
    read.update(id(each) for each in model.outputs)
    calls = Counter(node.operation for node in nodes)
    return {
        node.operation: read[id(node.outputs[0])]
        for node in nodes
        if calls[node.operation] == 1 and len(node.outputs) == 1
    }


def _over_shards(layer: Any, count: int, training: bool, uses: int) -> Callable[..., Any]:
    """A layer as a function of structures of shards; ``uses`` is 0 where it isn't known."""

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(
            lambda each: each.taken() if isinstance(each, Shards) else each, (args, kwargs)
        )
        if getattr(layer, "_call_has_training_arg", False):
            kwargs["training"] = training
        given = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, Shards)]

        def handed(part: Callable[[Shards], Any]) -> Any:
            chosen = lambda each: part(each) if isinstance(each, Shards) else each  # noqa: E731
            own_args, own_kwargs = keras.tree.map_structure(chosen, (args, kwargs))
            return layer(*own_args, **own_kwargs)

        if _takes_shards(layer):
            with keras.name_scope(layer.name):
                return Shards(layer.call_with_shards(given[0].parts, training))
        if not _per_example(layer):
            outputs = handed(Shards.joined)
            return keras.tree.map_structure(lambda each: Shards.of(each, count), outputs)
        if is_rectifier(layer):
            addends = given[0].addends or [None] * len(given[0].parts)
            copies = [
                rectified(layer, part, sum_of, max(1, uses))
                for part, sum_of in zip(given[0].parts, addends, strict=True)
            ]
            return _Forked([list(parts) for parts in zip(*copies, strict=True)])
        each = [handed(lambda shards, i=i: shards.parts[i]) for i in range(len(given[0].parts))]
        outputs = keras.tree.map_structure(lambda *parts: Shards(list(parts)), *each)
        same_shape = len({each.parts[0].shape for each in given}) == 1
        if type(layer) is layers.Add and uses == 1 and same_shape:
            outputs.addends = [list(each) for each in zip(*(g.parts for g in given), strict=True)]
        return outputs

    return call


def _takes_shards(layer: Any) -> bool:
    """Whether a layer has a way of its own through shards, that of the call it has."""
    if not getattr(layer, "takes_shards", False):
        return False
    # Not one derived from such a layer with a call of its own.
    own = next(vars(kind) for kind in type(layer).__mro__ if "call" in vars(kind))
    return "call_with_shards" in own and _is_plain(layer)


def _per_example(layer: Any) -> bool:
    """Whether calling a layer with each shard is calling it with the batch."""
    of_keras = type(layer) in _ALONE and getattr(layer, "axis", -1) != 0
    return getattr(layer, "per_example", of_keras) and _is_plain(layer)


def _is_plain(layer: Any) -> bool:
    """Whether nobody's own function of a layer's outputs could look at all images."""
    function = getattr(layer, "activation", None)
    if function is not None and not function.__module__.startswith("keras."):
        return False
    return getattr(layer, "activity_regularizer", None) is None
