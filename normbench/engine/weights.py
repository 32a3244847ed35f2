"""Trained weights of a finished run: :func:`final_weights` reads them from its last checkpoint."""

from __future__ import annotations

import hashlib

import numpy as np

from normbench.errors import UserError
from normbench.store.store import Run, StoreError

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
