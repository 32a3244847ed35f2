"""Several stores read as one set of runs: :func:`load_stores`.

A store has at most one run per config and seed. Several stores may each have one: copies of the
same run, or runs of the same config on two machines or at two commits. :func:`load_stores` keeps
all of them if the report distinguishes stores or commits (``--by store``, ``--by commit``);
otherwise only one of them counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normbench.errors import UserError
from normbench.formats import counted
from normbench.report.frames import (
    Frames,
    LeftOut,
    StoreFolder,
    StoreRows,
    as_store,
    assemble,
    load,
    read_store,
)
from normbench.store.store import Store
from normbench.store.tuning import StoreTuning, TunedCell, Tuning, combined, tunings

Stores = Store | Path | str | Sequence[Store | Path | str]
"""One store or several, each as an object or a folder."""

_COMPLETE = ("finished", "diverged")
_RESULTS = ("train_loss", "val_loss", "test_loss", "test_acc", "diverged_step")
_NAMED = 3  # maximum number of runs named in a note

_Name = tuple[str, str]  # the printed name of a store, and the name of a run's folder in it


def load_stores(
    stores: Stores, by: Sequence[str] = (), *, epochs: bool = True
) -> tuple[Frames, list[str]]:
    """Read stores into data frames of all their runs.

    The column ``store`` has the printed name of each run's store. Runs of the same name in several
    stores are named ``STORE/NAME`` if more than one of them is kept.

    Args:
        stores: The stores; a single one is read as by :func:`normbench.report.frames.load`.
        by: The factors of the report. Without ``store`` or ``commit`` among them, runs with the
            same config and seed count once (:func:`_without_copies`).
        epochs: If False, leave the curves frame empty.

    Returns:
        The frames, and a note on the runs that are in more than one store, if there are any.

    Raises:
        UserError: A folder does not exist, has no reportable run, or is named twice.
        NormbenchError: The record of a tuned sweep is damaged.
    """
    store_list = _listed(stores)
    if len(store_list) == 1:
        return load(store_list[0], epochs=epochs), []
    _refuse_repeated(store_list)
    names = store_names([store.root for store in store_list])
    parts = [
        _named(read_store(store, epochs), name, store)
        for store, name in zip(store_list, names, strict=True)
    ]
    folders = tuple(
        StoreFolder(name, store.root, len(part.rows))
        for name, store, part in zip(names, store_list, parts, strict=True)
    )
    new_names, notes = _without_copies(parts, by)
    records = [
        [_renamed(tuning, name, new_names) for tuning in tunings(store)]
        for store, name in zip(store_list, names, strict=True)
    ]
    frames = assemble(store_list[0].root, _joined(parts), _tuning(records, by))
    return replace(frames, stores=folders), notes


def _listed(stores: Stores) -> list[Store]:
    store_list = [stores] if isinstance(stores, Store | Path | str) else stores
    if not store_list:
        raise UserError("no store is named: name a folder of runs")
    return [as_store(store) for store in store_list]


def _refuse_repeated(stores: Sequence[Store]) -> None:
    """Refuse a folder that is named twice: each of its runs would count twice."""
    roots_by_path: dict[Path, Path] = {}
    for store in stores:
        path = store.root.resolve()
        if path in roots_by_path:
            root = roots_by_path[path]
            clause = "" if root == store.root else f", as {str(root)!r} and as {str(store.root)!r}"
            raise UserError(f"the store {str(store.root)!r} is named twice{clause}")
        roots_by_path[path] = store.root


def store_names(roots: Sequence[Path]) -> list[str]:
    """Return a printed name for each store: its folder's name, or as much of its path as needed.

    ``a/runs`` and ``b/runs`` share the name of their folder, so each is named by its path from the
    first folder in which the two differ.
    """
    paths = [root.resolve().parts for root in roots]
    lengths = [1] * len(paths)
    while True:
        names = [str(Path(*path[-n:])) for path, n in zip(paths, lengths, strict=True)]
        counts = Counter(names)
        if max(counts.values()) == 1:
            return names
        lengths = [length + (counts[name] > 1) for name, length in zip(names, lengths, strict=True)]


def _named(part: StoreRows, name: str, store: Store) -> StoreRows:
    """Add the store's printed name to each row; refuse a store without runs."""
    if not part.rows:
        reason = f" (left out: {part.left_out[0]})" if part.left_out else ""
        raise UserError(f"there are no runs in {str(store.root)!r} that can be reported{reason}")
    for row in part.rows:
        row["store"] = name
    part.left_out = [LeftOut(item.path, item.reason, name) for item in part.left_out]
    return part


def _joined(parts: Sequence[StoreRows]) -> StoreRows:
    """Return the runs of all stores, sorted by name like those of a single store."""
    rows = [row for part in parts for row in part.rows]
    pieces = [piece for part in parts for piece in part.pieces]
    order = sorted(range(len(rows)), key=lambda place: rows[place]["name"])
    return StoreRows(
        [rows[place] for place in order],
        [pieces[place] for place in order] if pieces else [],
        [item for part in parts for item in part.left_out],
        {name: display for part in parts for name, display in part.described.items()},
    )


# --- runs that more than one store has ------------------------------------------------------------


def _without_copies(
    parts: Sequence[StoreRows], by: Sequence[str]
) -> tuple[dict[_Name, str], list[str]]:
    """Keep one of the runs with the same config and seed that the report cannot distinguish.

    Two runs with the same config and seed are not two samples: with equal weights they are copies,
    and with different weights they differ by rounding or code, not by chance. Averaging them would
    give that seed twice the weight and make intervals too narrow. So only one of them counts: a
    complete one if there is one, then the one from the store named first. The rule ignores results,
    so it cannot prefer the better one. If the weights differ, a note says so, since the choice then
    affects numbers.

    Returns:
        The new name of each run by its store and former name (for a removed run, the name of the
        one that counts), and notes.
    """
    groups: dict[tuple[Any, ...], dict[int, list[dict[str, Any]]]] = {}
    for place, part in enumerate(parts):
        for row in part.rows:
            key: tuple[Any, ...] = (row.get("signature") or row["name"],)
            key += (place,) if "store" in by else ()
            key += (row.get("commit"), row.get("dirty")) if "commit" in by else ()
            groups.setdefault(key, {}).setdefault(place, []).append(row)
    replacements: dict[int, dict[str, Any]] = {}  # by the id of a row, the row that counts instead
    equal_runs: list[str] = []
    different_runs: list[str] = []
    incomplete_runs: list[str] = []
    for group in groups.values():
        if len(group) == 1:  # runs of one store: a folder copied by hand is kept
            continue
        candidates = {place: rows[0] for place, rows in group.items()}
        best = min(
            candidates, key=lambda place: (candidates[place]["status"] not in _COMPLETE, place)
        )
        replacements |= {
            id(row): candidates[best]
            for place, rows in group.items()
            if place != best
            for row in rows
        }
        complete_rows = [row for row in candidates.values() if row["status"] in _COMPLETE]
        if any(not is_same(complete_rows[0], row) for row in complete_rows[1:]):
            different_runs.append(candidates[best]["name"])
        else:
            (incomplete_runs if 0 < len(complete_rows) < len(candidates) else equal_runs).append(
                candidates[best]["name"]
            )
    old_names = {id(row): (row["store"], row["name"]) for part in parts for row in part.rows}
    remaining_rows = [row for part in parts for row in part.rows if id(row) not in replacements]
    name_counts = Counter(row["name"] for row in remaining_rows)
    for row in remaining_rows:
        if name_counts[row["name"]] > 1:
            row["name"] = f"{row['store']}/{row['name']}"
    new_names = {
        old_names[id(row)]: replacements.get(id(row), row)["name"]
        for part in parts
        for row in part.rows
    }
    for part in parts:
        _keep(part, replacements)
    return new_names, _notes(equal_runs, different_runs, incomplete_runs)


def _keep(part: StoreRows, replacements: Mapping[int, Any]) -> None:
    """Remove rows, by id, and their epochs; give the remaining epochs the name of their row."""
    pieces = part.pieces
    part.pieces = [
        {**piece, "run": np.full(len(piece["run"]), row["name"], object)}
        for row, piece in zip(part.rows, pieces, strict=bool(pieces))
        if id(row) not in replacements
    ]
    part.rows = [row for row in part.rows if id(row) not in replacements]


def is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two complete runs have the same final weights.

    Diverged runs, which have no final weights, are compared by their results.

    Args:
        first, second: Their rows of the runs frame.
    """
    weights = [row.get("weights_sha256") for row in (first, second)]
    if any(isinstance(digest, str) and digest for digest in weights):
        return weights[0] == weights[1]
    pairs = [(first.get(key), second.get(key)) for key in ("status", *_RESULTS)]
    return all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in pairs)


def _notes(
    equal_runs: Sequence[str], different_runs: Sequence[str], incomplete_runs: Sequence[str]
) -> list[str]:
    notes = []
    if equal_runs:
        verbs = "is in several stores and counts" if len(equal_runs) == 1 else (
            "are in several stores and count")  # fmt: skip
        notes.append(f"{counted(len(equal_runs), 'run')} {verbs} once")
    if incomplete_runs:
        verb = "is" if len(incomplete_runs) == 1 else "are"
        notes.append(
            f"{counted(len(incomplete_runs), 'run')} {verb} complete in one store and not in "
            "another: the complete one counts"
        )
    if different_runs:
        verb = "has" if len(different_runs) == 1 else "have"
        rest = f" and {len(different_runs) - _NAMED} more" if len(different_runs) > _NAMED else ""
        notes.append(
            f"{counted(len(different_runs), 'run')} {verb} different weights in different stores "
            f"({', '.join(different_runs[:_NAMED])}{rest}): only the one in the store named "
            "first on the command line counts; --by store shows all, normbench diff compares two "
            "stores"
        )
    return notes


# --- tuning ---------------------------------------------------------------------------------------


def _renamed(tuning: Tuning, store: str, names: Mapping[_Name, str]) -> Tuning:
    """Return a tuning record with the names that its runs have in the frames."""

    def now(name: str) -> str:
        return names.get((store, name), name)

    def cell(old: TunedCell) -> TunedCell:
        trials = tuple(replace(trial, run=now(trial.run)) for trial in old.trials)
        return replace(old, trials=trials, final=tuple(map(now, old.final)))

    return replace(tuning, cells=tuple(map(cell, tuning.cells)))


def _tuning(records: Sequence[Sequence[Tuning]], by: Iterable[str]) -> StoreTuning:
    """Combine the tuning records of the stores.

    Reported as one set of runs, the stores are one history of sweeps: the last choice counts,
    whichever store it was made in. Reported separately, each store keeps its own choices.
    """
    if not {"store", "commit"}.intersection(by):
        all_records = [tuning for store_records in records for tuning in store_records]
        return combined(sorted(all_records, key=lambda tuning: tuning.sweep))
    parts = [combined(store_records) for store_records in records]
    final_runs = frozenset(name for part in parts for cell in part.cells for name in cell.final)
    trials = frozenset[str]().union(*(part.trials for part in parts)) - final_runs
    superseded_runs = (
        frozenset[str]().union(*(part.superseded for part in parts)) - final_runs - trials
    )
    return StoreTuning(
        tuple(cell for part in parts for cell in part.cells), trials, superseded_runs
    )
