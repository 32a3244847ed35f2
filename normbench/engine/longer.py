"""More epochs for a finished run: :func:`shorter_run` finds it, :func:`take_over` continues it.

A run with more epochs is a different run, because its config differs. If its first epochs are
bit-identical to those of a finished run, it does not train them again but starts from a copy of
that run's rows and checkpoints. This requires that the configs and conditions differ only in the
number of epochs, and that the learning rates of these epochs do not depend on that number.
:func:`hindrance` reports any other difference.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np

from normbench.config import Config
from normbench.engine.observer import Probe, due_probes
from normbench.engine.setup import learning_rates
from normbench.errors import NormbenchError
from normbench.store.store import Run, Store

_FREE = ("epochs", "store", "label", "logger", "stream", "signature", "schema")
"""Keys of a recorded config in which the two runs may differ."""


def shorter_run(config: Config, store: Store) -> Run | None:
    """Return the finished run of a store that differs from a config only in having fewer epochs.

    If there are several, return the one with the most epochs; if there are none, return None.
    """
    settings = _compared(config.to_dict())
    beginning = config.run_name.removesuffix(config.signature)
    candidates: list[tuple[int, Run]] = []
    # Filter by name first: a store may have many runs, and each cell of a sweep searches it.
    for path in store.root.glob(f"{glob.escape(beginning)}????????"):
        run = Run(path)
        with suppress(NormbenchError):  # commands that read a damaged run report it
            old_config = run.config or {}
            epochs = old_config.get("epochs", 0)
            is_shorter = epochs < config.epochs and _compared(old_config) == settings
            if is_shorter and run.status == "finished":
                candidates.append((epochs, run))
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def hindrance(
    shorter: Run, config: Config, rates: np.ndarray, meta: Mapping[str, Any]
) -> str | None:
    """Return why continuing a shorter run would not be bit-identical to full training, or None.

    Args:
        shorter: The shorter run.
        config: Config of the run.
        rates: Learning rate of each step of the run.
        meta: ``meta.json`` of the run at its start.
    """
    epochs = (shorter.config or {})["epochs"]
    steps = len(rates) // config.epochs
    shorter_rates = learning_rates(replace(config, epochs=epochs), steps)
    if not np.array_equal(shorter_rates, rates[: len(shorter_rates)]):
        name, warmup = config.schedule["name"], config.schedule.get("warmup")
        if name == "constant" and warmup:
            return "the warm-up of schedule=constant depends on the total number of epochs"
        return f"the learning rates of schedule={name} depend on the total number of epochs"
    if not (meta.get("engine") or {}).get("deterministic"):
        return "this device computes in no fixed order"
    old_meta = shorter.meta or {}
    for name, old_value, new_value in _conditions(old_meta, meta, config.backend):
        if old_value != new_value:
            return f"it was trained under different conditions: {name} {old_value}, now {new_value}"
    if shorter.checkpoint_info() is None:
        return "it keeps no weights (no checkpoint/last.npz)"
    return None


def take_over(shorter: Run, run: Run, probes: Sequence[Probe], epochs: int) -> None:
    """Start a run with the rows and checkpoints of a shorter one; the caller holds the run's lock.

    If the process is killed in between, the run has no last checkpoint and starts over.

    Args:
        shorter: A run without a :func:`hindrance`.
        run: The run, which has no checkpoint.
        probes: Probes of the run.
        epochs: Number of epochs of the run.
    """
    run.truncate_metrics(0)
    for row in shorter.metrics():
        # The shorter run measured all probes after its last epoch.
        probe_names = {probe.name for probe in due_probes(list(probes), row["epoch"], epochs)}
        run.append_metrics(
            {
                key: value
                for key, value in row.items()
                if not key.startswith("probe/") or key.split("/")[1] in probe_names
            }
        )
    for best in (True, False):  # the last checkpoint comes last, because it marks the run as begun
        checkpoint = shorter.load_checkpoint(best=best)
        if checkpoint is not None:
            arrays, info = checkpoint
            info = {**info, "metrics_sha256": run.metrics_checksum()}
            run.save_checkpoint(arrays, info, best=best)


def _compared(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that must be equal; keys that old configs lack get defaults."""
    defaults = {f.name: f.default for f in fields(Config) if f.default is not MISSING}
    complete = {**defaults, **tree}
    return {key: value for key, value in complete.items() if key not in _FREE}


def _conditions(
    old_meta: Mapping[str, Any], meta: Mapping[str, Any], backend: str
) -> list[tuple[str, Any, Any]]:
    """Return the conditions that determine a run's bits, as (name, then, now)."""
    names = ("processor", "devices", "own", "micro_batches", "init")
    pairs = [(name, old_meta.get(name), meta.get(name)) for name in names]
    for group in ("git", "engine", "versions"):
        old_group, new_group = old_meta.get(group) or {}, meta.get(group) or {}
        exclusions = {"jax"} if group == "versions" and backend != "jax" else set()
        keys = sorted({*old_group, *new_group} - exclusions)
        pairs += [(key, old_group.get(key), new_group.get(key)) for key in keys]
    return pairs
