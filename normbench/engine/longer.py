"""More epochs for a finished run: :func:`shorter_run` finds it, :func:`take_over` goes on from it.

A run of more epochs is another run, because its config is another. Where its first epochs are those
of a finished run bit for bit, it need not train them again: it begins with a copy of that run's
rows and checkpoints. They are equal if nothing but the number of epochs differs, in the config and
in the conditions, and the learning rates of these epochs do not depend on that number.
:func:`hindrance` says what differs.
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
    """Return the finished run of a store that differs from a config in having fewer epochs.

    Of several, the one with the most epochs is returned; None if there is none.
    """
    wanted = _compared(config.to_dict())
    beginning = config.run_name.removesuffix(config.signature)
    found: list[tuple[int, Run]] = []
    # By name first: a store may have many runs, and each cell of a sweep asks.
    for path in store.root.glob(f"{glob.escape(beginning)}????????"):
        run = Run(path)
        with suppress(NormbenchError):  # a damaged run is named by the commands that read it
            recorded = run.config or {}
            epochs = recorded.get("epochs", 0)
            fits = epochs < config.epochs and _compared(recorded) == wanted
            if fits and run.status == "finished":
                found.append((epochs, run))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def hindrance(
    shorter: Run, config: Config, rates: np.ndarray, meta: Mapping[str, Any]
) -> str | None:
    """Return why a run cannot go on from a shorter one to the bits of training at once, or None.

    Args:
        shorter: The shorter run.
        config: Config of the run.
        rates: Learning rate of each step of the run.
        meta: ``meta.json`` of the run, as it begins here.
    """
    epochs = (shorter.config or {})["epochs"]
    steps = len(rates) // config.epochs
    before = learning_rates(replace(config, epochs=epochs), steps)
    if not np.array_equal(before, rates[: len(before)]):
        name, warmup = config.schedule["name"], config.schedule.get("warmup")
        if name == "constant" and warmup:
            return "the warm-up of schedule=constant depends on the number of all epochs"
        return f"the learning rates of schedule={name} depend on the number of all epochs"
    if not (meta.get("engine") or {}).get("deterministic"):
        return "this device computes in no fixed order"
    recorded = shorter.meta or {}
    for name, then, now in _conditions(recorded, meta, config.backend):
        if then != now:
            return f"it was trained under other conditions: {name} {then}, now {now}"
    if shorter.checkpoint_info() is None:
        return "it keeps no weights (no checkpoint/last.npz)"
    return None


def take_over(shorter: Run, run: Run, probes: Sequence[Probe], epochs: int) -> None:
    """Begin a run with the rows and checkpoints of a shorter one; the caller holds the run's lock.

    A process that is killed in between leaves a run without its last checkpoint, which begins anew.

    Args:
        shorter: A run without a :func:`hindrance`.
        run: The run, which has no checkpoint.
        probes: Probes of the run.
        epochs: Number of epochs of the run.
    """
    run.truncate_metrics(0)
    for row in shorter.metrics():
        # The shorter run measured all probes after its last epoch.
        due = {probe.name for probe in due_probes(list(probes), row["epoch"], epochs)}
        run.append_metrics(
            {
                key: value
                for key, value in row.items()
                if not key.startswith("probe/") or key.split("/")[1] in due
            }
        )
    for best in (True, False):  # the last checkpoint last: with it the run is begun
        loaded = shorter.load_checkpoint(best=best)
        if loaded is not None:
            arrays, info = loaded
            info = {**info, "metrics_sha256": run.metrics_checksum()}
            run.save_checkpoint(arrays, info, best=best)


def _compared(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that must be equal; newer keys that it lacks have defaults."""
    defaults = {each.name: each.default for each in fields(Config) if each.default is not MISSING}
    whole = {**defaults, **recorded}
    return {key: value for key, value in whole.items() if key not in _FREE}


def _conditions(
    recorded: Mapping[str, Any], meta: Mapping[str, Any], backend: str
) -> list[tuple[str, Any, Any]]:
    """Return the conditions that decide a run's bits, each with its name, then and now."""
    names = ("processor", "devices", "own", "micro_batches", "init")
    pairs = [(name, recorded.get(name), meta.get(name)) for name in names]
    for group in ("git", "engine", "versions"):
        then, now = recorded.get(group) or {}, meta.get(group) or {}
        unused = {"jax"} if group == "versions" and backend != "jax" else set()
        keys = sorted({*then, *now} - unused)
        pairs += [(key, then.get(key), now.get(key)) for key in keys]
    return pairs
