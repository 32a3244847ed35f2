"""A run folder as one row of results and the columns of its epochs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from normbench.errors import NormbenchError

if TYPE_CHECKING:
    from normbench.store import Run


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GROUPS = ("dataset", "arch", "norm", "optimizer", "schedule")
"""Groups of a config: each becomes a column with its name and one column an option."""

STATUSES = ("finished", "diverged", "running", "interrupted", "failed")

CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
"""Classes of the data sets that ship with normbench, for the accuracy of guessing."""

_NOT_CONFIG = ("signature", "schema", "probe", "logger")
_VERSIONS = ("python", "normbench", "tensorflow", "keras", "jax", "numpy")
FINAL = _names(
    "train_loss train_acc val_loss val_acc test_loss test_acc best_val_epoch best_val_acc "
    "best_val_test_acc best_val_test_loss steps images_seen parameters train_seconds "
    "wall_seconds images_per_s diverged_epoch diverged_step micro_batches"
)
CURVE_NUMBERS = _names(
    "epoch step images_seen train_loss train_acc val_loss val_acc lr grad_norm grad_norm_max "
    "images_per_s train_seconds eval_seconds"
)
_PROVENANCE = ("commit", "dirty", "host", "processor", "devices")
RESULTS = (*FINAL, "test_err", "val_err", "best_val_test_err", "gap", "epochs_done", "classes")
LEADING = ("name", "status", "dataset", "arch", "norm", "batch", "seed", "epochs")
_NOT_FROM_CONFIG = frozenset(
    _names(
        "name status signature path command started ended sessions error_type error_message "
        "weights_sha256 steps_to_target epochs_to_target seconds_to_target row column"
    )
).union(RESULTS, _PROVENANCE)


def is_config(column: str) -> bool:
    """Whether a column of the runs frame comes from the config."""
    return column not in _NOT_FROM_CONFIG and not column.startswith(("version.", "engine."))


def is_provenance(column: str) -> bool:
    """Whether a column of the runs frame says by what code and on what machine the run was made."""
    return column in _PROVENANCE or column.startswith(("version.", "engine."))


def is_origin(column: str) -> bool:
    """Return whether a column says which code made the run: cells of several are marked mixed."""
    return column in ("commit", "dirty") or column.startswith("version.")


def chance(dataset: str, classes: float | None = None) -> float:
    """Return the accuracy of guessing, 1/classes; 0 where the number of classes is unknown."""
    if classes is not None and classes == classes and classes >= 1:
        return 1.0 / classes
    return 1.0 / CLASSES[dataset] if dataset in CLASSES else 0.0


def config_columns(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a resolved config: ``norm`` is its whole name (``gn_ws``), options are dotted."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key in _NOT_CONFIG:
            continue
        if isinstance(value, Mapping) and "name" in value:
            flat[key] = _group_name(key, value)
            _flatten(f"{key}.", value, flat)
        elif isinstance(value, Mapping):
            _flatten(f"{key}.", value, flat)
        else:
            flat[key] = _cell(value)
    return flat


def _group_name(key: str, group: Mapping[str, Any]) -> str:
    name = str(group["name"])
    weight = group.get("weight")
    if key == "norm" and isinstance(weight, Mapping) and weight.get("name", "none") != "none":
        return f"{name}_{weight['name']}"
    return name


def _flatten(prefix: str, group: Mapping[str, Any], flat: dict[str, Any]) -> None:
    for key, value in group.items():
        if key == "_target_" or (key == "name" and prefix.count(".") == 1):
            continue
        if isinstance(value, Mapping):
            _flatten(f"{prefix}{key}.", value, flat)
        else:
            flat[f"{prefix}{key}"] = _cell(value)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple) else value


def read(run: Run) -> tuple[dict[str, Any] | None, list[dict[str, Any]], str | None]:
    """Return a run's row and its epochs, or None, nothing, and the reason where a file is damaged.

    A run of which any file cannot be what was written is left out whole: a report that keeps its
    other numbers would stand on a folder that nobody can vouch for.
    """
    try:
        config, meta, status = run.config, run.meta, run.status
        summary, epochs = run.summary, run.metrics()
        epochs = diagnosed(epochs, run.diagnoses())
    except NormbenchError as error:
        return None, [], _reason(error, run)
    if config is None or meta is None:
        return None, [], "config.yaml or meta.json is missing"
    row: dict[str, Any] = {"name": run.name, "status": status, **config_columns(config)}
    row.setdefault("accumulate", 1)  # which older runs do not name
    row["signature"] = meta.get("signature") or config.get("signature")
    row["epochs_done"] = _last(epochs, "epoch", summary)
    row.update(_final(summary))
    row["classes"] = (summary or {}).get("classes")
    row.update(_provenance(meta))
    row["path"] = str(run.path)
    return row, epochs, None


def diagnosed(
    epochs: list[dict[str, Any]], diagnoses: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Add what was measured in checkpoints to the rows of their epochs.

    What the run measured itself stays; of several diagnoses of one epoch the last counts. One of a
    checkpoint in the middle of an epoch belongs to no row.
    """
    found: dict[tuple[Any, Any], dict[str, Mapping[str, Any]]] = {}
    for line in diagnoses:
        found.setdefault((line["epoch"], line["step"]), {})[line["probe"]] = line["values"]
    added = [
        {
            f"probe/{probe}/{key}": value
            for probe, values in found.get((row.get("epoch"), row.get("step")), {}).items()
            for key, value in values.items()
        }
        for row in epochs
    ]
    return [
        {**row, **{k: v for k, v in more.items() if k not in row}}
        for row, more in zip(epochs, added, strict=True)
    ]


def _reason(error: NormbenchError, run: Run) -> str:
    text = " ".join(str(error).split())
    return text.replace(f"{run.path}/", "").replace(str(run.path), run.name)


def _last(epochs: list[dict[str, Any]], key: str, summary: Mapping[str, Any] | None) -> Any:
    if summary and summary.get("epochs") is not None:
        return summary["epochs"]
    return epochs[-1].get(key, 0) if epochs else 0


def _final(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    values = {key: (summary or {}).get(key) for key in FINAL}
    for name in ("test", "val", "best_val_test"):
        accuracy = values[f"{name}_acc"]
        values[f"{name}_err"] = None if accuracy is None else 1.0 - accuracy
    train, test = values["train_acc"], values["test_acc"]
    values["gap"] = None if train is None or test is None else train - test
    values["weights_sha256"] = (summary or {}).get("weights_sha256")
    return values


def _provenance(meta: Mapping[str, Any]) -> dict[str, Any]:
    git, engine = meta.get("git") or {}, meta.get("engine") or {}
    versions, error = meta.get("versions") or {}, meta.get("error") or {}
    return {
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        **{f"version.{name}": versions.get(name) for name in _VERSIONS},
        **_own_versions(meta.get("own")),
        "host": meta.get("host"),
        "processor": meta.get("processor"),
        "devices": ", ".join(map(str, meta.get("devices") or [])),
        **{f"engine.{key}": _cell(value) for key, value in engine.items()},
        "command": json.dumps(meta.get("command") or []),
        "started": meta.get("started"),
        "ended": meta.get("ended"),
        "sessions": len(meta.get("sessions") or []),
        "error_type": error.get("type"),
        "error_message": error.get("message"),
    }


def _own_versions(own: Any) -> dict[str, str]:
    """Return the versions of code and data of one's own that trained a run, by what they are of."""
    if not isinstance(own, Mapping):
        return {}
    return {
        f"version.{name}": " then ".join(str(each)[:10] for each in versions)
        for name, versions in own.items()
        if isinstance(versions, list)
    }


def columns(name: str, epochs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return a run's epochs as typed columns, so that their dicts need not be kept."""
    keys: dict[str, None] = dict.fromkeys(CURVE_NUMBERS)
    for epoch in epochs:
        keys.update(dict.fromkeys(epoch))
    return {"run": np.full(len(epochs), name, object)} | {
        key: _array([epoch.get(key) for epoch in epochs]) for key in keys
    }


def _array(values: list[Any]) -> np.ndarray:
    """Return numbers as float64, null as NaN; anything else as texts."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return np.array([None if value is None else str(value) for value in values], object)
