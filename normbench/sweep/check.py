"""Whether configs can be trained, found out by building their networks and training nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from normbench.config import Config
from normbench.engine.memory import TooLarge, is_out_of_memory, refuse_too_large
from normbench.engine.reuse import Kept
from normbench.errors import NormbenchError, reason


def refusal(config: Config, kept: Kept, built: dict[str, str], here: bool = True) -> str:
    """Say why a config cannot be trained; an empty text where it can.

    Args:
        config: Of the run.
        kept: Takes the last data set, for a run that comes next.
        built: What was found out before of networks, with their normalization, images and batch
            size; added to, so that each is built once.
        here: Whether it is to be trained on this machine, with its memory.
    """
    from normbench.engine import backend, bench

    try:
        backend.start(config.backend, config.precision)
        dataset = bench.check(config, kept)
    except NormbenchError as error:
        return str(error)
    tree = config.to_dict()
    keys = ("arch", "norm", "dataset", "precision", "batch", "accumulate")
    key = json.dumps({key: tree[key] for key in keys}, sort_keys=True)
    if key not in built:
        try:
            _build(config, dataset, here)
            built[key] = ""
        except Exception as error:
            built[key] = reason(error)
    return built[key]


def _build(config: Config, dataset: Any, here: bool) -> None:
    """Build the network on symbols, and trace its layers in training mode on a mini-batch's shape.

    No weight is drawn. What a layer does while it is built may need them, so a failure counts
    only if the network cannot be built with its weights either.
    """
    import keras

    from normbench.engine import backend
    from normbench.engine.bench import refused_in_training
    from normbench.engine.model import build_model, trace_layers

    def build() -> None:
        model = build_model(config, dataset.shape, dataset.classes)
        if here:
            refuse_too_large(config, model, backend.on_cpu())
        try:
            # The whole network first, for one that is not made of layers called on symbols.
            model(keras.KerasTensor((config.micro_batch, *dataset.shape), "float32"), training=True)
            trace_layers(model, config.micro_batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise refused_in_training(config, config.batch // config.micro_batch, error) from error

    try:
        with _weightless():
            build()
    except TooLarge:
        raise
    except Exception:
        build()


@contextmanager
def _weightless() -> Iterator[None]:
    """Have networks built whose weights are never drawn."""
    import keras

    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:  # Keras would draw them at the end of the next scope
        keras.backend.clear_session(free_memory=False)


def memory(config: Config, kept: Kept) -> int:
    """Estimate the bytes that training a run takes on a GPU.

    Rough: the driver's and the libraries' own, the images, four copies of the weights (weights,
    gradients, two slots), and three times the outputs of all layers for one mini-batch.
    """
    import numpy as np

    from normbench.engine import backend, bench
    from normbench.engine.model import build_model

    backend.start(config.backend, config.precision)
    dataset = bench.check(config, kept)
    with _weightless():
        model = build_model(config, dataset.shape, dataset.classes)
    splits = (dataset.train, dataset.validation, dataset.test)
    images = sum(split.images.nbytes for split in splits)
    weights = sum(int(np.prod(variable.shape)) for variable in model.variables)
    outputs = sum(
        int(np.prod(tensor.shape[1:]))
        for node in (n for layer in model.layers for n in layer._inbound_nodes)
        for tensor in node.output_tensors
    )
    itemsize = 4 if config.precision == "float32" else 2
    return OWN + 2 * images + 4 * 4 * weights + 3 * itemsize * config.micro_batch * outputs


OWN = 3 << 29
"""Bytes that CUDA's context and the libraries' workspaces take besides (1.5 GiB)."""
