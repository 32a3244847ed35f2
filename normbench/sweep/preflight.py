"""Whether configs can be trained, found out by building their networks and training nothing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from normbench.components import make_source
from normbench.config import Config
from normbench.engine.reuse import WarmState
from normbench.errors import NormbenchError, TooLarge, is_out_of_memory, reason
from normbench.store.provenance import own_code
from normbench.store.store import Store
from normbench.sweep.plan import PlannedCell

if TYPE_CHECKING:
    import keras


def refusal(config: Config, warm: WarmState, built: dict[str, str], here: bool = True) -> str:
    """Say why a config cannot be trained; an empty text where it can.

    Args:
        config: Of the run.
        warm: Takes the last data set, for a run that comes next.
        built: What was found out before of networks, with their normalization, images and batch
            size; added to, so that each is built once.
        here: Whether it is to be trained on this machine, with its memory.
    """
    from normbench.engine import backend
    from normbench.engine import setup as bench

    try:
        backend.start(config.backend, config.precision)
        dataset = bench.check_config(config, warm)
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
    from normbench.engine.setup import training_refusal
    from normbench.network import build_model, refuse_too_large

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
            raise training_refusal(config, config.batch // config.micro_batch, error) from error

    try:
        with _weightless():
            build()
    except TooLarge:
        raise
    except Exception:
        build()


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
    import keras

    from normbench.engine import backend

    calls: dict[Any, tuple[Any, Any]] = {}
    for layer in model._flatten_layers(include_self=False):
        own = type(layer).__module__.partition(".")[0] in ("keras", "normbench")
        if own and getattr(layer, "per_example", not hasattr(layer, "computed_over")):
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


@contextmanager
def _weightless() -> Iterator[None]:
    """Have networks built whose weights are never drawn."""
    import keras

    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:  # Keras would draw them at the end of the next scope
        keras.backend.clear_session(free_memory=False)


def memory(config: Config, warm: WarmState) -> int:
    """Estimate the bytes that training a run takes on a GPU.

    Rough: the driver's and the libraries' own, the images, four copies of the weights (weights,
    gradients, two slots), and three times the outputs of all layers for one mini-batch.
    """
    import numpy as np

    from normbench.engine import backend
    from normbench.engine import setup as bench
    from normbench.network import build_model

    backend.start(config.backend, config.precision)
    dataset = bench.check_config(config, warm)
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


# --- which cells cannot be trained, found out before any is begun ---------------------------------

Check = Callable[[Sequence[Config]], list[str]]
"""Says of each config why it cannot be trained, an empty text where it can."""


def problems(cells: Sequence[PlannedCell], store: Store, check: Check) -> dict[str, str]:
    """Find the cells that cannot be trained.

    What needs no framework is looked at first. Of the rest, one config for each combination of
    network, normalization, images, batch size and the like is handed to ``check``; a combination
    that a run in the store was begun with needs no check.

    Args:
        cells: Those that are to be trained.
        store: Where earlier runs are.
        check: Builds the networks.

    Returns:
        By the names of the cells, why they cannot be trained.
    """
    found: dict[str, str] = {}
    states: dict[str, str] = {}
    for cell in cells:
        problem = _data_problem(cell.config, states)
        if problem:
            found[cell.name] = problem
    rest = [cell for cell in cells if cell.name not in found]
    # A run proves nothing of code that may have been edited since.
    own = {_combination(cell.config) for cell in rest if own_code(vars(cell.config))}
    begun = {_combination(cell.config) for cell in rest if cell.state != "missing"}
    proven = begun - own
    asked: dict[str, Config] = {}
    for cell in rest:
        key = _combination(cell.config)
        if key not in proven:
            asked.setdefault(key, cell.config)
    if asked:
        proven = _proven(store, asked) - own
        asked = {key: config for key, config in asked.items() if key not in proven}
    answers = dict(zip(asked, check(list(asked.values())), strict=True)) if asked else {}
    for cell in rest:
        problem = answers.get(_combination(cell.config))
        if problem:
            found[cell.name] = problem
    return found


def _combination(config: Config) -> str:
    """What decides whether a run can be built: its config but for what takes any value."""
    tree = config.to_dict()
    for key in ("seed", "store", "label", "eval_batch", "label_smoothing", "max_loss"):
        tree.pop(key, None)
    return json.dumps(tree, sort_keys=True)


def _proven(store: Store, asked: Mapping[str, Config]) -> set[str]:
    """The combinations among ``asked`` that a run of the store was begun with."""
    wanted: dict[str, set[str]] = {}
    for key, config in asked.items():
        wanted.setdefault(_without_seed(config.run_name), set()).add(key)
    found: set[str] = set()
    for run in store.runs():
        if not wanted.get(_without_seed(run.name), set()) - found:
            continue  # spares the reading of most configs
        try:
            tree = dict(run.config or {})
            for key in ("signature", "schema"):
                tree.pop(key, None)
            found.add(_combination(Config.from_dict(tree)))
        except NormbenchError:  # an older or a damaged config proves nothing
            continue
    return found


def _without_seed(run_name: str) -> str:
    return run_name.rpartition("-s")[0]


def _data_problem(config: Config, states: dict[str, str]) -> str:
    """Why the data set cannot serve the run, from what its source says of itself; or nothing.

    Args:
        config: Of the run.
        states: What was found out of the sources before, by their options; added to.
    """
    dataset = config.dataset
    try:
        source = make_source(dataset)
        # The options of a source may decide which file it reads.
        key = json.dumps(dataset, sort_keys=True)
        if key not in states:
            states[key] = _state(source)
    except NormbenchError as error:
        return str(error)
    if states[key]:
        return states[key]
    count = dataset["train_size"]
    if count is None:
        count = source.train_count - dataset["validation"]
    if config.batch > count:
        return (
            f"batch={config.batch} is larger than the training set of {source.name} "
            f"({count} images after validation is held out)"
        )
    return ""


def _state(source: Any) -> str:
    """What is wrong with a data set; an empty text where nothing is."""
    state = source.state()
    if state == "missing":
        try:
            source.arrays()  # raises, and says how to get them
        except Exception as error:  # own code may raise anything
            return reason(error)
    return state if state.startswith("damaged") else ""
