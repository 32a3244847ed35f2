"""Trained weights of a finished run, read from its last checkpoint: :func:`final_weights`.

:func:`start_from` initializes another run's network with them.
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
"""Prefix of the names of a model's variables in a checkpoint."""


def final_weights(run: Run) -> dict[str, np.ndarray]:
    """Return the weights that a finished run was tested with.

    Returns:
        The values of the model's variables, trainable or not, by their names in the checkpoint and
        in the order of ``model.variables``.

    Raises:
        UserError: The run is not finished, or its folder has no checkpoint.
        StoreError: A file of the run is damaged.
    """
    _refuse_unfinished(run)
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        raise UserError(
            f"run {run.name} keeps no weights: its folder has no checkpoint/last.npz (an archive "
            "of normbench pack has it with --checkpoints); the command of the run with --again "
            "trains it again"
        )
    weights = {name: array for name, array in checkpoint[0].items() if name.startswith(_VARIABLE)}
    sha256 = (run.summary or {}).get("weights_sha256")
    if sha256 is not None and weights_hash(weights) != sha256:  # older runs record no hash
        raise StoreError(
            f"{run.path / 'checkpoint' / 'last.npz'} does not have the weights that the run was "
            "tested with (weights_sha256 in summary.json)"
        )
    return weights


def start_from(model: keras.Model, config: Config, *, assign: bool = True) -> dict[str, str]:
    """Assign the final weights of the run that ``config.init`` names to a network.

    Weights and state (moving averages) are matched by the names of their layers. The state of
    random numbers is not copied. Weights that the network does not have, such as the moving
    averages of a normalization that was replaced, are ignored.

    Args:
        model: Network of the run.
        config: Config of the run. With ``init_head=new`` the last layers keep their weights.
        assign: If False, only check the shapes; the network may then have no values.

    Returns:
        For the record, the ``run`` and the ``weights_sha256`` of its weights.

    Raises:
        UserError: There is no such run, it has no final weights, or shapes differ.
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
    """Yield the variables of a network, each with its array from another run's weights.

    Raises:
        UserError: A variable has no array, or one of a different shape; the message names the
            layer.
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
        candidates = arrays.get(variable.path)
        if not candidates:
            raise UserError(
                f"init={config.init}: the layer {layer} has a {name} of "
                f"{_shape(variable)} here, but none in that run"
            )
        array = candidates.pop(0)
        if array.shape != tuple(variable.shape):
            hint = "; init_head=new reinitializes this layer" if in_head else ""
            raise UserError(
                f"init={config.init}: the {name} of the layer {layer} is {_shape(variable)} here "
                f"and {_shape(array)} in that run{hint}"
            )
        yield variable, array


def _shape(array: Any) -> str:
    return "×".join(map(str, array.shape)) or "a number"


def weights_hash(state: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of a model's variables, which is equal only for bit-identical weights."""
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
