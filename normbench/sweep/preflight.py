"""Preflight: :func:`problems` finds cells of a sweep that cannot be trained, before it starts."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from normbench.components import make_source
from normbench.config import Config
from normbench.engine.backend import is_installed
from normbench.engine.reuse import WarmState
from normbench.errors import NormbenchError, TooLarge, is_out_of_memory, reason
from normbench.store.provenance import own_code
from normbench.store.store import Store
from normbench.sweep.plan import PlannedCell

if TYPE_CHECKING:
    import keras

Check = Callable[[Sequence[Config]], list[str]]
"""Returns, for each config, the reason why it cannot be trained, or an empty string."""

LIBRARIES = 3 << 29
"""Bytes of GPU memory that CUDA's context and the libraries' workspaces take (1.5 GiB)."""


def problems(
    cells: Sequence[PlannedCell],
    store: Store,
    check: Check,
    known: dict[str, str] | None = None,
) -> dict[str, str]:
    """Find the cells that cannot be trained.

    The data sets are checked first, which needs no framework. For the remaining cells, ``check``
    receives one config for each combination of network, normalization, images, batch size and so
    on, unless the store has a run that was started with this combination.

    Args:
        cells: The cells to be trained.
        store: The store with earlier runs.
        check: Builds the networks of configs.
        known: Cache of the answers of earlier calls, by combination; new answers are added.

    Returns:
        The reasons, by name of the cells that cannot be trained.
    """
    known = {} if known is None else known
    keys = {cell.name: _combination(cell.config) for cell in cells}
    new_cells = [cell for cell in cells if keys[cell.name] not in known]
    reasons = _new_problems(new_cells, store, check)
    known.update({keys[cell.name]: reasons.get(cell.name, "") for cell in new_cells})
    return {cell.name: known[keys[cell.name]] for cell in cells if known[keys[cell.name]]}


def _new_problems(cells: Sequence[PlannedCell], store: Store, check: Check) -> dict[str, str]:
    """Return the reasons, by name of the cells that cannot be trained; nothing is cached yet."""
    reasons: dict[str, str] = {}
    source_problems: dict[str, str] = {}
    for cell in cells:
        problem = _data_problem(cell.config, source_problems)
        if problem:
            reasons[cell.name] = problem
    other_cells = [cell for cell in cells if cell.name not in reasons]
    # A run that was started proves nothing if the user's own code may have been edited since, or if
    # the run was started where other libraries are installed.
    missing_backends = {
        name for name in {cell.config.backend for cell in other_cells} if not is_installed(name)
    }
    doubtful_keys = {
        _combination(cell.config)
        for cell in other_cells
        if cell.config.backend in missing_backends or own_code(vars(cell.config))
    }
    run_keys = {_combination(cell.config) for cell in other_cells if cell.state != "missing"}
    proven_keys = run_keys - doubtful_keys
    unproven_configs: dict[str, Config] = {}
    for cell in other_cells:
        key = _combination(cell.config)
        if key not in proven_keys:
            unproven_configs.setdefault(key, cell.config)
    if unproven_configs:
        proven_keys = _begun_in(store, unproven_configs) - doubtful_keys
        unproven_configs = {
            key: config for key, config in unproven_configs.items() if key not in proven_keys
        }
    configs = list(unproven_configs.values())
    answers = dict(zip(unproven_configs, check(configs), strict=True)) if configs else {}
    for cell in other_cells:
        problem = answers.get(_combination(cell.config))
        if problem:
            reasons[cell.name] = problem
    return reasons


def _combination(config: Config) -> str:
    """Return a key of everything that affects whether a run can be built."""
    tree = config.to_dict()
    for key in ("seed", "store", "label", "eval_batch", "label_smoothing", "max_loss"):
        tree.pop(key, None)
    return json.dumps(tree, sort_keys=True)


def _begun_in(store: Store, combinations: Mapping[str, Config]) -> set[str]:
    """Return those of ``combinations`` with which a run in the store was started."""
    by_name: dict[str, set[str]] = {}
    for key, config in combinations.items():
        by_name.setdefault(_without_seed(config.run_name), set()).add(key)
    keys: set[str] = set()
    for run in store.runs():
        if not by_name.get(_without_seed(run.name), set()) - keys:
            continue  # its config need not be read
        try:
            tree = dict(run.config or {})
            for key in ("signature", "schema"):
                tree.pop(key, None)
            keys.add(_combination(Config.from_dict(tree)))
        except NormbenchError:  # the config is damaged or from an older version
            continue
    return keys


def _without_seed(run_name: str) -> str:
    return run_name.rpartition("-s")[0]


def _data_problem(config: Config, source_problems: dict[str, str]) -> str:
    """Return the reason why a run cannot use its data set, or an empty string.

    Args:
        config: The config of the run.
        source_problems: Cache of reasons, by the options of the data set; new ones are added.
    """
    from normbench.engine.setup import refuse_batch, training_images

    dataset = config.dataset
    try:
        source = make_source(dataset)
        key = json.dumps(dataset, sort_keys=True)  # an option may decide which file is read
        if key not in source_problems:
            source_problems[key] = _source_problem(source)
        if source_problems[key]:
            return source_problems[key]
        refuse_batch(config, source.name, training_images(config, source))
    except NormbenchError as error:
        return str(error)
    return ""


def _source_problem(source: Any) -> str:
    state = source.state()
    if state == "missing":
        try:
            source.arrays()  # raises an error that says how to get the files
        except Exception as error:  # a user's own source may raise anything
            return reason(error)
    return state if state.startswith("damaged") else ""


def refusal(config: Config, warm: WarmState, built: dict[str, str], here: bool = True) -> str:
    """Build the network of a config, and return why it cannot be trained, or an empty string.

    Args:
        config: The config of a run.
        warm: Keeps the data set for the next config.
        built: Cache of answers, by everything that affects how a network is built; new ones are
            added.
        here: True if the run is trained on this machine, so that it must fit in its memory.
    """
    from normbench.engine import backend
    from normbench.engine.setup import check_config

    try:
        backend.start(config.backend, config.precision)
        dataset = check_config(config, warm)
    except NormbenchError as error:
        return str(error)
    tree = config.to_dict()
    keys = ("arch", "norm", "dataset", "precision", "batch", "accumulate", "devices")
    keys += ("init", "init_head")
    key = json.dumps({key: tree[key] for key in keys}, sort_keys=True)
    if key not in built:
        try:
            _build(config, dataset, here)
            built[key] = ""
        except Exception as error:
            built[key] = reason(error)
    return built[key]


def _build(config: Config, dataset: Any, is_local: bool) -> None:
    """Build a network, and trace its layers in training mode with the shape of a mini-batch.

    At first no weights are drawn. Since a layer may need them to be built, the network is built
    again with weights after a failure, and only the second failure counts.
    """
    import keras

    from normbench.engine import backend
    from normbench.engine.setup import refuse_devices, training_refusal
    from normbench.engine.weights import start_from
    from normbench.network import build_model, refuse_too_large

    def build() -> None:
        model = build_model(config, dataset.shape, dataset.classes)
        if is_local:
            refuse_devices(config)
            refuse_too_large(config, model, backend.on_cpu())
        if config.init:
            start_from(model, config, assign=False)
        try:
            # The complete network first: a user's own network need not be a graph of layers.
            model(keras.KerasTensor((config.micro_batch, *dataset.shape), "float32"), training=True)
            trace_layers(model, config.micro_batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            parts = 1 if config.accumulate == "auto" else config.accumulate
            raise training_refusal(config, parts, error) from error

    try:
        with _weightless():
            build()
    except TooLarge:
        raise
    except Exception:
        build()


def trace_layers(model: keras.Model, batch: int) -> None:
    """Trace the layers that depend on the mini-batch, in training mode, one after the other.

    This takes a tenth of the time of tracing the complete network, and needs no weights. Layers
    that differ only in their names are traced once for each input shape. Layers known to process
    each image independently are skipped.

    Args:
        model: The network; may have been built without weights in a ``keras.StatelessScope``.
        batch: Images of a mini-batch.

    Raises:
        Exception: Any error that a layer raises.
    """
    import keras

    from normbench.engine import backend
    from normbench.network import calls_of, layers_within

    calls: dict[Any, tuple[Any, Any]] = {}
    for layer in layers_within(model):
        is_known = type(layer).__module__.partition(".")[0] in ("keras", "normbench")
        if is_known and getattr(layer, "per_example", not hasattr(layer, "computed_over")):
            continue
        options = {key: value for key, value in layer.get_config().items() if key != "name"}
        for node in calls_of(layer):
            inputs = node.arguments.keras_tensors
            shapes = tuple((tensor.dtype, tensor.shape) for tensor in inputs)
            calls.setdefault((type(layer), repr(options), shapes), (layer, node))

    def run(inputs: Any) -> list[Any]:
        outputs = []
        with keras.StatelessScope():
            for (layer, node), tensors in zip(calls.values(), inputs, strict=True):
                values = dict(zip(map(id, node.arguments.keras_tensors), tensors, strict=True))
                args, kwargs = node.arguments.fill_in(values)
                if "training" in inspect.signature(layer.call).parameters:
                    kwargs = {**kwargs, "training": True}
                outputs.append(layer(*args, **kwargs))
        return outputs

    specs = [
        [((batch, *tensor.shape[1:]), tensor.dtype) for tensor in node.arguments.keras_tensors]
        for _, node in calls.values()
    ]
    if calls:
        backend.trace(run, specs)


@contextmanager
def _weightless() -> Iterator[None]:
    """Build networks without drawing their weights."""
    import keras

    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:  # otherwise Keras would draw the weights at the end of the next scope
        keras.backend.clear_session(free_memory=False)


def memory(config: Config, warm: WarmState) -> int:
    """Roughly estimate the bytes of GPU memory for training a run.

    The estimate includes the libraries, the images (two chunks if they are streamed), four copies
    of the weights (weights, gradients, two optimizer slots), and three times the outputs of all
    layers for one mini-batch.
    """
    import numpy as np

    from normbench.engine import backend
    from normbench.engine.loop_stream import CHUNK_BYTES
    from normbench.engine.setup import check_config
    from normbench.network import build_model, calls_of

    backend.start(config.backend, config.precision)
    dataset = check_config(config, warm)
    with _weightless():
        model = build_model(config, dataset.shape, dataset.classes)
    splits = (dataset.train, dataset.validation, dataset.test)
    images = sum(split.images.nbytes for split in splits)
    if dataset.streamed:
        images = min(images, CHUNK_BYTES)
    weights = sum(int(np.prod(variable.shape)) for variable in model.variables)
    outputs = sum(
        int(np.prod(tensor.shape[1:]))
        for node in (n for layer in model.layers for n in calls_of(layer))
        for tensor in node.output_tensors
    )
    itemsize = 4 if config.precision == "float32" else 2
    return LIBRARIES + 2 * images + 4 * 4 * weights + 3 * itemsize * config.micro_batch * outputs
