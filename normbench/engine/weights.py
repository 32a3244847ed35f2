"""Trained weights of a finished run, read from its last checkpoint: :func:`final_weights`.

:func:`start_from` has another run's network start from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from normbench.config import Config
from normbench.errors import UserError
from normbench.store.store import Run, StoreError, find_run

if TYPE_CHECKING:
    import keras

_VARIABLE = "model/"
"""What the names of a model's variables begin with in a checkpoint."""


def final_weights(run: Run) -> dict[str, np.ndarray]:
    """Return the weights that a finished run was tested with.

    Returns:
        The values of the model's variables, trained or not, by their names in the checkpoint and
        in the order of ``model.variables``.

    Raises:
        UserError: The run is not finished, or its folder holds no checkpoint.
        StoreError: A file of the run is damaged.
    """
    _refuse_unfinished(run)
    loaded = run.load_checkpoint()
    if loaded is None:
        raise UserError(
            f"run {run.name} keeps no weights: its folder has no checkpoint/last.npz (an archive "
            "of normbench pack has it with --checkpoints); the command of the run with --again "
            "trains it anew"
        )
    weights = {name: array for name, array in loaded[0].items() if name.startswith(_VARIABLE)}
    recorded = (run.summary or {}).get("weights_sha256")
    if recorded is not None and weights_hash(weights) != recorded:  # older runs record no hash
        raise StoreError(
            f"{run.path / 'checkpoint' / 'last.npz'} does not hold the weights that the run was "
            "tested with (weights_sha256 in summary.json)"
        )
    return weights


def start_from(model: keras.Model, config: Config, *, assign: bool = True) -> dict[str, str]:
    """Give a network the final weights of the run that ``config.init`` names.

    Weights and state (moving averages) are taken over by the names of their layers. The state of
    random numbers is not. Weights of the other run for which the network has no place, such as the
    moving averages of a normalization that was replaced, are left out.

    Args:
        model: Network of the run.
        config: Config of the run. With ``init_head=new`` the last layers keep their weights.
        assign: False checks the shapes alone, of a network that may have no values.

    Returns:
        For the record, the ``run`` and the ``weights_sha256`` of its weights.

    Raises:
        UserError: There is no such run, it has no final weights, or the network has other shapes.
        StoreError: A file of that run is damaged.
    """
    run = find_run(config.init, config.store)
    weights = final_weights(run)
    for variable, array in _matched(model, weights, config):
        if assign:
            variable.assign(array)
    return {"run": run.name, "weights_sha256": weights_hash(weights)}


def _matched(
    model: keras.Model, weights: Mapping[str, np.ndarray], config: Config
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the variables of a network, each with the array of another run's weights.

    Raises:
        UserError: A variable has no array, or one of another shape; the message names its layer.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    for name, array in weights.items():  # a name is model/INDEX/PATH; a path may occur twice
        arrays.setdefault(name.split("/", 2)[2], []).append(array)
    from normbench.network import layer_of

    head = {id(variable) for output in model.outputs for variable in layer_of(output).variables}
    for variable in model.variables:
        in_head = id(variable) in head
        if (in_head and config.init_head == "new") or "float" not in str(variable.dtype):
            continue
        layer, _, name = variable.path.rpartition("/")
        found = arrays.get(variable.path)
        if not found:
            raise UserError(
                f"init={config.init}: the layer {layer} has a {name} of "
                f"{_shape(variable)} here, and none in that run"
            )
        array = found.pop(0)
        if array.shape != tuple(variable.shape):
            hint = "; init_head=new starts this layer anew" if in_head else ""
            raise UserError(
                f"init={config.init}: the {name} of the layer {layer} is {_shape(variable)} here "
                f"and {_shape(array)} in that run{hint}"
            )
        yield variable, array


def _shape(array: Any) -> str:
    return "×".join(map(str, array.shape)) or "a number"


def weights_hash(state: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of a model's variables: equal only if two runs ended in the same bits."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith(_VARIABLE)):
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


def _refuse_unfinished(run: Run) -> None:
    """Refuse a run that has no final weights.

    Raises:
        UserError: The run is being trained, or it was interrupted, failed or diverged.
    """
    status = run.verify()
    if status == "finished":
        return
    summary, last = run.summary or {}, run.last_metrics() or {}
    progress = f"epoch {last.get('epoch', 0)} of {(run.config or {}).get('epochs', '?')}"
    reasons = {
        "running": f"it is being trained ({progress} is done)",
        "interrupted": f"it was interrupted after {progress}; its command again finishes it",
        "failed": f"it failed after {progress}; its command again tries to finish it",
        "diverged": f"it diverged in epoch {summary.get('diverged_epoch')}",
    }
    raise UserError(f"run {run.name} has no final weights: {reasons.get(status, status)}")
