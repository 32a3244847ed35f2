"""Whether configs can be trained, found out by building their networks and training nothing."""

from __future__ import annotations

import json
from typing import Any

from normbench.config import Config
from normbench.engine.reuse import Kept
from normbench.errors import NormbenchError
from normbench.sweep.ending import one_line


def refusal(config: Config, kept: Kept, built: dict[str, str]) -> str:
    """Say why a config cannot be trained; an empty text where it can.

    Args:
        config: Of the run.
        kept: Takes the last data set, for a run that comes next.
        built: What was found out before of networks, with their normalization, images and batch
            size; added to, so that each is built once.
    """
    from normbench.engine import backend, bench

    try:
        backend.start(config.backend, config.precision)
        dataset = bench.check(config, kept)
    except NormbenchError as error:
        return str(error)
    tree = config.to_dict()
    keys = ("arch", "norm", "dataset", "precision")
    key = json.dumps([config.micro_batch, {key: tree[key] for key in keys}], sort_keys=True)
    if key not in built:
        try:
            _build(config, dataset)
            built[key] = ""
        except Exception as error:
            built[key] = one_line(error)
    return built[key]


def _build(config: Config, dataset: Any) -> None:
    """Build the network on symbols and call it on a mini-batch's shape.

    No weight is drawn. What a layer does while it is built may need them, so a failure counts
    only if the network cannot be built with its weights either.
    """
    import keras

    from normbench.engine.model import build_model

    def build() -> None:
        model = build_model(config, dataset.shape, dataset.classes)
        # Of a fixed size: some normalizations take no mini-batch of just any size.
        model(keras.KerasTensor((config.micro_batch, *dataset.shape), "float32"), training=True)

    try:
        with keras.StatelessScope():
            build()
    except Exception:
        keras.backend.clear_session()
        build()


def memory(config: Config, kept: Kept) -> int:
    """Estimate the bytes that training a run takes on a GPU.

    Rough: the driver's and the libraries' own, the images, four copies of the weights (weights,
    gradients, two slots), and three times the outputs of all layers for one mini-batch.
    """
    import keras
    import numpy as np

    from normbench.engine import backend, bench
    from normbench.engine.model import build_model

    backend.start(config.backend, config.precision)
    dataset = bench.check(config, kept)
    with keras.StatelessScope():
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
