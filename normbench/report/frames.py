"""A store as data frames: :func:`load` returns one of runs and one of epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from normbench.components import NEWER_DATASET_KEYS, is_by_content
from normbench.config import init_signature, norm_name
from normbench.errors import NormbenchError, UserError
from normbench.report.metrics import METRICS, Metric, find_metric, known_metrics, over_epochs
from normbench.report.sequential import declared
from normbench.store import annotations
from normbench.store.store import Store
from normbench.store.tuning import StoreTuning, TunedCell, tuning_of

if TYPE_CHECKING:
    from normbench.store.store import Run


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not reported: it is not a run, or one of its files is damaged."""

    path: Path
    reason: str
    store: str = ""
    """The printed name of the folder's store, if several are reported together."""

    def __str__(self) -> str:
        name = f"{self.store}/{self.path.name}" if self.store else self.path.name
        return f"{name}: {self.reason}"


@dataclass(frozen=True)
class StoreFolder:
    """One of several stores that are reported together.

    Attributes:
        name: Its printed name, unique among them.
        root: Its folder.
        runs: Number of its runs that can be read.
    """

    name: str
    root: Path
    runs: int


@dataclass(frozen=True)
class Frames:
    """The runs of a store; unpacks as ``runs, curves = load(store)``.

    Attributes:
        root: The store's folder; that of the first if there are several stores.
        runs: A row for each run, sorted by name: ``name``, ``status``, the config (``norm`` for the
            choice of a group, ``norm.groups`` for its options), the final metrics (accuracies are
            fractions, times in seconds), the provenance; in a store with tuned keys also
            ``trial``, true for tuning trials, and ``superseded``, true for final runs at values
            that were chosen earlier. ``attrs["config"]`` and ``attrs["provenance"]`` list the
            columns of each kind.
        curves: A row for each epoch, ordered by run and epoch: ``run`` and the keys of
            ``metrics.jsonl``.
        left_out: Foreign and unreadable folders, each with its reason.
        unfiltered: The runs frame that these runs were selected from; None if it is ``runs``.
        tuned: The cells with tuned keys, of the entire store.
        metrics: All metrics by name: METRICS, and a metric of epochs for each value that a probe
            measured in any run of the store.
        stores: The stores in the order given, if there are several
            (:func:`normbench.report.stores.load_stores`); else empty.
    """

    root: Path
    runs: pd.DataFrame
    curves: pd.DataFrame
    left_out: tuple[LeftOut, ...] = field(default=())
    unfiltered: pd.DataFrame | None = None
    tuned: tuple[TunedCell, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    stores: tuple[StoreFolder, ...] = ()

    @property
    def roots(self) -> list[Path]:
        """The folders of the stores."""
        return [store.root for store in self.stores] or [self.root]

    @property
    def folders(self) -> str:
        """The folders of the stores, joined for a sentence."""
        *others, last = map(str, self.roots)
        return f"{', '.join(others)} and {last}" if others else last

    @property
    def whole(self) -> pd.DataFrame:
        """The runs frame of the store, before any :meth:`select`."""
        return self.runs if self.unfiltered is None else self.unfiltered

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return iter((self.runs, self.curves))

    def select(self, mask: pd.Series) -> Frames:
        """Return the frames of the runs where ``mask``, a boolean per row of ``runs``, is true."""
        runs = self.runs[mask].reset_index(drop=True)
        curves = self.curves[self.curves["run"].isin(runs["name"])].reset_index(drop=True)
        return replace(self, runs=runs, curves=curves, unfiltered=self.whole)

    def with_metric(self, name: str) -> tuple[Frames, Metric]:
        """Return the metric with this name, and frames whose runs have a column for it.

        Raises:
            UserError: There is no such metric (:func:`normbench.report.metrics.find_metric`).
        """
        metric = find_metric(name, self.metrics, {*self.runs.columns, *self.curves.columns})
        if not metric.over:
            return self, metric
        values = over_epochs(metric, self.curves)

        def extended(runs: pd.DataFrame) -> pd.DataFrame:
            column = runs["name"].map(values).astype(float)
            return runs.assign(**{metric.name: column})

        unfiltered = None if self.unfiltered is None else extended(self.unfiltered)
        return replace(self, runs=extended(self.runs), unfiltered=unfiltered), metric

    def moved(self, root: Path) -> Frames:
        """Return the frames of the same runs with ``root`` as the store's folder.

        The folders in :attr:`left_out` are dropped.
        """
        runs = self.runs.assign(path=[str(root / name) for name in self.runs["name"]])
        runs.attrs.update(self.runs.attrs)
        return replace(self, root=root, runs=runs, left_out=())

    def write(self, folder: Path) -> list[Path]:
        """Write both frames to ``folder`` as Parquet and as CSV; return the four files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, frame in (("runs", self.runs), ("curves", self.curves)):
            for suffix in ("parquet", "csv"):
                path = folder / f"{name}.{suffix}"
                if suffix == "parquet":
                    frame.to_parquet(path, index=False)
                else:
                    # Arrow's CSV writer is ten times as fast as pandas'.
                    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), path)
                files.append(path)
        return files


def load(store: Store | Path | str, *, epochs: bool = True) -> Frames:
    """Read a store into data frames.

    Args:
        store: The store, or its folder.
        epochs: If False, leave the curves frame empty, which takes less time and memory.

    Raises:
        UserError: The folder does not exist.
        NormbenchError: The record of a tuned sweep is damaged, so trials cannot be identified.
    """
    store = as_store(store)
    store_rows = read_store(store, epochs)
    return assemble(store.root, store_rows, tuning_of(store))


@dataclass
class StoreRows:
    """The runs of one store before conversion to data frames.

    Attributes:
        rows: A row of the runs frame for each run.
        pieces: The epochs of each run as columns, in the order of ``rows``; empty if epochs were
            not requested.
        left_out: Foreign and unreadable folders, each with its reason.
        described: How the values of the runs' probes are displayed.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    described: dict[str, Any] = field(default_factory=dict)


def read_store(store: Store, epochs: bool = True) -> StoreRows:
    """Read the runs of a store.

    Raises:
        UserError: The folder does not exist.
        NormbenchError: The record of a sweep is damaged.
    """
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    store_rows = StoreRows(left_out=[LeftOut(path, reason) for path, reason in store.foreign()])
    for run in store.runs():
        row, lines, problem = read(run)
        if row is None:
            store_rows.left_out.append(LeftOut(run.path, problem or "it cannot be read"))
            continue
        store_rows.rows.append(row)
        if not epochs:
            continue
        store_rows.pieces.append(columns(run.name, lines))
        if any(column.startswith("probe/") for column in store_rows.pieces[-1]):
            store_rows.described |= _described(run)
    if looks := declared(store.root):
        for row in store_rows.rows:
            row["looks"] = " ".join(map(str, looks.get(row["name"], ())))
    return store_rows


def assemble(root: Path, found: StoreRows, tuned: StoreTuning) -> Frames:
    """Build the frames of runs that were read.

    Args:
        root: The folder of the store, or of the first one.
        found: The runs.
        tuned: The tuning records of their sweeps.
    """
    runs, curves = _typed(*_frames(found.rows, found.pieces))
    if tuned.cells:
        runs["trial"] = runs["name"].isin(tuned.trials)
        runs["superseded"] = runs["name"].isin(tuned.superseded)
    runs.attrs["config"] = [column for column in runs.columns if is_config(column)]
    runs.attrs["provenance"] = [column for column in runs.columns if is_provenance(column)]
    probe_columns = [str(column) for column in curves.columns if str(column).startswith("probe/")]
    metrics = (
        known_metrics(probe_columns, shipped_probe_values() | found.described)
        if probe_columns
        else METRICS
    )
    return Frames(root, runs, curves, tuple(found.left_out), tuned=tuned.cells, metrics=metrics)


def planned(configs: Iterable[Mapping[str, Any]]) -> Frames:
    """Return the frames of runs that have not been trained yet.

    Args:
        configs: Their resolved configs.
    """
    rows = [
        {"name": str(place), "status": "missing", "classes": None, **config_columns(tree)}
        for place, tree in enumerate(configs)
    ]
    return Frames(Path(), *_typed(*_frames(rows, [])))


def as_store(store: Store | Path | str) -> Store:
    """Return the store itself, or open the one in that folder."""
    return store if isinstance(store, Store) else Store(Path(store))


def _frames(
    rows: list[dict[str, Any]], pieces: list[dict[str, np.ndarray]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = pd.DataFrame(rows)
    for column in ("name", "status", "norm", "batch", "seed", "dataset", "classes", *FINAL):
        if column not in runs:
            runs[column] = None
    keys: dict[str, None] = dict.fromkeys(("run", *CURVE_NUMBERS))
    for piece in pieces:
        keys.update(dict.fromkeys(piece))
    return runs, pd.DataFrame({key: _joined(key, pieces) for key in keys})


def _joined(key: str, pieces: list[dict[str, np.ndarray]]) -> np.ndarray:
    if not pieces:
        return np.array([], object if key == "run" else float)
    return np.concatenate(
        [piece[key] if key in piece else np.full(len(piece["run"]), np.nan) for piece in pieces]
    )


def _typed(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Set the column types of both frames, and the column order of the runs frame."""
    runs = runs[sorted(runs.columns, key=_order)]
    for column in RESULTS:
        if column in runs:
            runs[column] = pd.to_numeric(runs[column], errors="coerce").astype(float)
    for frame in (runs, curves):
        for column in frame.columns:
            if frame[column].dtype == object:
                frame[column] = _one_type(frame[column])
    return runs, curves


def _one_type(column: pd.Series) -> pd.Series:
    """Convert a column of mixed values to one type, as Parquet requires."""
    values = [None if _missing(value) else value for value in column]
    present_values = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present_values):
        return pd.Series(values, index=column.index, dtype="boolean")
    if present_values and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in present_values
    ):
        return pd.Series([np.nan if v is None else v for v in values], index=column.index).astype(
            float
        )
    texts = [None if value is None else str(value) for value in values]
    return pd.Series(texts, index=column.index, dtype="str")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _order(column: str) -> tuple[int, int, str]:
    """Return the sort key of a column: name, status, config by group, results, others."""
    if column in LEADING:
        return 0, LEADING.index(column), ""
    if is_config(column):
        group = column.partition(".")[0]
        return 1, GROUPS.index(group) if group in GROUPS else len(GROUPS), column
    if column in RESULTS:
        return 2, RESULTS.index(column), ""
    return 3, is_provenance(column), column


# --- one run: its row of the runs frame, and its epochs as columns -------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GROUPS = ("dataset", "arch", "norm", "optimizer", "schedule")
"""Config groups: each becomes a column with its choice and a column for each option."""

STATUSES = ("finished", "diverged", "running", "interrupted", "failed")

CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
"""Number of classes of the data sets that ship with normbench, for chance level in older runs."""

_NOT_CONFIG = ("signature", "schema", "probe", "logger", "stream")
_VERSIONS = ("python", "normbench", "tensorflow", "keras", "jax", "numpy")
FINAL = (
    *(metric.name for metric in METRICS.values() if metric.summary),
    *("steps", "images_seen", "diverged_epoch", "diverged_step", "micro_batches"),
)
"""Keys of ``summary.json`` that become columns of the runs frame."""

CURVE_NUMBERS = (
    *("epoch", "step", "images_seen"),
    *(metric.name for metric in METRICS.values() if metric.epoch),
)
"""Columns that the curves frame always has."""

_PROVENANCE = ("commit", "dirty", "host", "processor", "hardware")
RESULTS = (
    *FINAL,
    *(metric.name for metric in METRICS.values() if metric.formula),
    *("epochs_done", "classes"),
)
LEADING = ("name", "status", "dataset", "arch", "norm", "batch", "seed", "epochs")
_NOT_FROM_CONFIG = frozenset(
    _names(
        "name status signature path command started ended sessions error_type error_message "
        "weights_sha256 row column trial superseded looks"
    )
).union(RESULTS, _PROVENANCE, METRICS)


def is_config(column: str) -> bool:
    """Return whether a column of the runs frame comes from the config."""
    return (
        column not in _NOT_FROM_CONFIG
        and ":" not in column  # a metric taken over the epochs, as grad_norm:max
        and not column.startswith(("version.", "engine.", "tag."))
    )


def is_provenance(column: str) -> bool:
    """Return whether a column records the code, versions or machine of the run."""
    return column in _PROVENANCE or column.startswith(("version.", "engine."))


def is_origin(column: str) -> bool:
    """Return whether a column records code or versions; cells with several are marked mixed."""
    return column in ("commit", "dirty") or column.startswith("version.")


def chance(dataset: str, classes: float | None = None) -> float:
    """Return chance level, 1/classes; 0 if the number of classes is unknown."""
    if classes is not None and classes == classes and classes >= 1:
        return 1.0 / classes
    return 1.0 / CLASSES[dataset] if dataset in CLASSES else 0.0


def config_columns(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a resolved config: ``norm`` is its full name (``gn_ws``), options are dotted."""
    row: dict[str, Any] = {}
    for key, value in tree.items():
        if key in _NOT_CONFIG:
            continue
        if isinstance(value, Mapping) and "name" in value:
            row[key] = norm_name(value) if key == "norm" else str(value["name"])
            if key == "dataset" and is_by_content(value):
                row[key] = str(value.get("title") or row[key])
                value = {k: v for k, v in value.items() if k not in ("path", "title")}
            _flatten(f"{key}.", value, row)
        elif isinstance(value, Mapping):
            _flatten(f"{key}.", value, row)
        else:
            row[key] = _cell(value)
    return row


def _flatten(prefix: str, group: Mapping[str, Any], row: dict[str, Any]) -> None:
    for key, value in group.items():
        if key == "_target_" or (key == "name" and prefix.count(".") == 1):
            continue
        if isinstance(value, Mapping):
            _flatten(f"{prefix}{key}.", value, row)
        else:
            row[f"{prefix}{key}"] = _cell(value)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple) else value


def read(run: Run) -> tuple[dict[str, Any] | None, list[dict[str, Any]], str | None]:
    """Return a run's row and epochs; if a file is damaged, None, an empty list, and the reason.

    A run with any damaged file is left out: its other numbers cannot be trusted either.
    """
    try:
        config, meta, status = run.config, run.meta, run.status
        summary, epochs = run.summary, run.metrics()
        epochs = diagnosed(epochs, run.diagnoses())
        tags = annotations.read(run).tags
    except NormbenchError as error:
        return None, [], _reason(error, run)
    if config is None or meta is None:
        return None, [], "config.yaml or meta.json is missing"
    row: dict[str, Any] = {"name": run.name, "status": status, **config_columns(config)}
    for key in ("accumulate", "devices"):
        row.setdefault(key, 1)  # older runs do not record these
    for key, value in NEWER_DATASET_KEYS.items():
        row.setdefault(f"dataset.{key}", value)
    # The path may differ between runs that start from the same weights.
    row["init"] = init_signature(str(row.get("init", "")))
    row.setdefault("init_head", "trained")
    row["signature"] = meta.get("signature") or config.get("signature")
    row["epochs_done"] = _last(epochs, "epoch", summary)
    row.update(_final(summary))
    row["classes"] = (summary or {}).get("classes")
    row.update(_provenance(meta))
    row["path"] = str(run.path)
    row |= {f"tag.{tag}": True for tag in tags}
    return row, epochs, None


def diagnosed(
    epochs: list[dict[str, Any]], diagnoses: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Add values that ``normbench diagnose`` measured in checkpoints to the rows of their epochs.

    Values measured by the run itself take precedence; of several diagnoses of an epoch the last
    counts. A diagnosis of a mid-epoch checkpoint matches no row and is left out.
    """
    probes: dict[tuple[Any, Any], dict[str, Mapping[str, Any]]] = {}
    for line in diagnoses:
        probes.setdefault((line["epoch"], line["step"]), {})[line["probe"]] = line["values"]
    measurements = [
        {
            f"probe/{probe}/{key}": value
            for probe, values in probes.get((row.get("epoch"), row.get("step")), {}).items()
            for key, value in values.items()
        }
        for row in epochs
    ]
    return [
        {**row, **{k: v for k, v in measurement.items() if k not in row}}
        for row, measurement in zip(epochs, measurements, strict=True)
    ]


def shipped_probe_values() -> dict[str, Any]:
    """Return how values of normbench's own probes are displayed.

    Used for runs of earlier versions, which do not record it.
    """
    from normbench.components import target, targets_in
    from normbench.engine.observer import described_values

    return described_values([target(path) for path in sorted(targets_in("probe"))])


def _described(run: Run) -> dict[str, Any]:
    """Return how the values of a run's probes are displayed, as recorded by the run."""
    displays = dict((run.meta or {}).get("probe_values") or {})
    for line in run.diagnoses():
        displays |= line.get("probe_values") or {}
    return displays


def _reason(error: NormbenchError, run: Run) -> str:
    text = " ".join(str(error).split())
    return text.replace(f"{run.path}/", "").replace(str(run.path), run.name)


def _last(epochs: list[dict[str, Any]], key: str, summary: Mapping[str, Any] | None) -> Any:
    if summary and summary.get("epochs") is not None:
        return summary["epochs"]
    return epochs[-1].get(key, 0) if epochs else 0


def _final(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    values = {key: (summary or {}).get(key) for key in FINAL}
    values |= {m.name: m.derive(values) for m in METRICS.values() if m.formula}
    values["weights_sha256"] = (summary or {}).get("weights_sha256")
    return values


def _provenance(meta: Mapping[str, Any]) -> dict[str, Any]:
    git, engine = meta.get("git") or {}, meta.get("engine") or {}
    versions, error = meta.get("versions") or {}, meta.get("error") or {}
    return {
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        **{f"version.{name}": versions.get(name) for name in _VERSIONS},
        **_user_versions(meta.get("own")),
        "host": meta.get("host"),
        "processor": meta.get("processor"),
        "hardware": ", ".join(map(str, meta.get("devices") or [])),
        **{f"engine.{key}": _cell(value) for key, value in engine.items()},
        "command": json.dumps(meta.get("command") or []),
        "started": meta.get("started"),
        "ended": meta.get("ended"),
        "sessions": len(meta.get("sessions") or []),
        "error_type": error.get("type"),
        "error_message": error.get("message"),
    }


def _user_versions(record: Any) -> dict[str, str]:
    """Return the versions of the user's own code and data used in a run, by name."""
    if not isinstance(record, Mapping):
        return {}
    return {
        f"version.{name}": " then ".join(str(version)[:10] for version in versions)
        for name, versions in record.items()
        if isinstance(versions, list)
    }


def columns(name: str, epochs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return a run's epochs as typed columns, which take less memory than dicts."""
    keys: dict[str, None] = dict.fromkeys(CURVE_NUMBERS)
    for epoch in epochs:
        keys.update(dict.fromkeys(epoch))
    return {"run": np.full(len(epochs), name, object)} | {
        key: _array([epoch.get(key) for epoch in epochs]) for key in keys
    }


def _array(values: list[Any]) -> np.ndarray:
    """Return numbers as float64, with NaN for null; other values as strings."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return np.array([None if value is None else str(value) for value in values], object)
