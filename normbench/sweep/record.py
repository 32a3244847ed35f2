"""The record of a sweep, :class:`Record`: its command, its plan and the results of its cells.

    runs/sweeps/<name>/
      sweep.json      command, executor, provenance, the planned cells, start and end
      outcome.jsonl   one line for each cell, appended when the cell ends
      tuning.json     if the sweep tunes keys: the trials and the chosen values
                      (:mod:`normbench.store.tuning`)
      worker-*.log    output of the worker processes that is not in the runs' own logs
      lock            held while the sweep is in progress

The evidence is in the runs' folders; a record only says which runs belong together.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normbench.errors import UserError, nearest
from normbench.store import files, sweeps
from normbench.store import lock as runlock
from normbench.store.provenance import utc_now
from normbench.store.schema import integer, number, record, sequence, text
from normbench.store.store import SWEEPS, Store
from normbench.sweep.cell import CellResult
from normbench.sweep.plan import PlannedCell, SweepPlan

_ENDING = record(
    {
        **dict.fromkeys(("name", "result", "cause", "error"), text()),
        "log": sequence(text()),
        "seconds": number(0),
        "tries": integer(0),
    }
)


class Record:
    """The folder of one sweep. The object has no state: every property reads the current files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @classmethod
    def begin(
        cls,
        store: Store,
        plan: SweepPlan,
        command: Sequence[str],
        executor: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Record:
        """Write the record of a sweep that is about to start.

        Raises:
            StoreError: The record cannot be written.
        """
        sweep_record = cls(_fresh_folder(store.root / SWEEPS, command))
        sweep_record._write(
            {
                "schema": sweeps.SCHEMA,
                "started": utc_now(),
                "ended": None,
                "result": None,
                "executor": dict(executor),
                **provenance,
                "command": list(command),
                "cells": _planned_cells(plan),
            }
        )
        return sweep_record

    def add(self, plan: SweepPlan) -> None:
        """Add the cells of another phase of the sweep.

        Raises:
            StoreError: The record cannot be read or written.
        """
        head = self.head
        old_names = {cell["name"] for cell in head["cells"]}
        new_cells = [cell for cell in _planned_cells(plan) if cell["name"] not in old_names]
        self._write({**head, "cells": [*head["cells"], *new_cells]})

    @contextlib.contextmanager
    def held(self, command: Sequence[str]) -> Iterator[None]:
        """Hold the record's lock, which shows that the sweep is in progress."""
        with runlock.locked(self.path / "lock", f"sweep {self.name} is being trained", command):
            yield

    @property
    def goes_on(self) -> bool:
        return runlock.is_held(self.path / "lock")

    def ended(self, name: str, result: CellResult) -> None:
        """Append the result of a cell.

        Raises:
            StoreError: The line cannot be written.
        """
        line = {"name": name, **result.to_dict(), "time": utc_now()}
        files.append_line(self.path / "outcome.jsonl", files.printable(files.jsonable(line)))

    def close(self, result: str) -> None:
        """Record the end of the sweep: ``complete``, ``failed`` or ``interrupted``.

        Raises:
            StoreError: The record cannot be written.
        """
        self._write({**self.head, "ended": utc_now(), "result": result})

    def annotate(self, **facts: Any) -> None:
        """Add keys to ``sweep.json``.

        Raises:
            StoreError: The record cannot be written.
        """
        self._write({**self.head, **facts})

    @property
    def head(self) -> dict[str, Any]:
        """The content of ``sweep.json``, as :func:`normbench.store.sweeps.read` returns it.

        Raises:
            StoreError: The file is missing, damaged, or cannot be read.
        """
        head = sweeps.read(self.path)
        if head is None:
            raise files.StoreError(f"{self.path} is not a record of a sweep: no {sweeps.FILE}")
        return head

    @property
    def results(self) -> dict[str, CellResult]:
        """The results of the cells that have ended, by name.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = [row for _, row in files.read_lines(self.path / "outcome.jsonl", _ENDING)]
        return {
            row["name"]: CellResult.from_dict({k: row[k] for k in CellResult.__dataclass_fields__})
            for row in rows
        }

    def _write(self, head: Mapping[str, Any]) -> None:
        content = files.dumps(files.printable(files.jsonable(dict(head))), indent=1)
        files.write_text(self.path / sweeps.FILE, content + "\n")


def records(store: Store) -> list[Record]:
    """Return the records of a store's sweeps, oldest first."""
    return [Record(folder) for folder in sweeps.folders(store.root)]


def find(store: Store, name: str | None) -> Record:
    """Return the record of a sweep.

    Args:
        store: The store with the runs.
        name: Name of the record or a prefix of it; None for the last sweep.

    Raises:
        UserError: There is no such record, or there are several.
    """
    all_records = records(store)
    if not all_records:
        raise UserError(f"the store {store.root} has no record of a sweep")
    if name is None:
        return all_records[-1]
    names = [record.name for record in all_records]
    matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
    if len(matches) == 1:
        return all_records[names.index(matches[0])]
    if matches:
        raise UserError(f"sweep {name!r} could be any of {', '.join(matches)}")
    close = nearest(name, names)
    hint = f": did you mean {close!r}?" if close else ""
    raise UserError(f"unknown sweep {name!r}{hint} (the store {store.root} has {len(all_records)})")


def _planned_cells(plan: SweepPlan) -> list[dict[str, Any]]:
    return [_planned(cell, text) for cell, text in zip(plan.cells, plan.differs, strict=True)]


def _planned(cell: PlannedCell, differs: str) -> dict[str, Any]:
    return {
        "name": cell.name,
        "differs": differs,
        "state": cell.state,
        "todo": cell.todo,
        "reason": cell.reason,
        "seconds": cell.seconds,
    }


def _fresh_folder(parent: Path, command: Sequence[str]) -> Path:
    """Create a folder named after the current time, so that names sort, and a hash of the command.

    Another process may do the same for the same command in the same second. ``mkdir`` succeeds for
    only one of them, whereas both could pass a check that the folder does not exist yet.

    Raises:
        StoreError: The folder cannot be created.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    digest = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:4]
    path = parent / f"{stamp}-{digest}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(2):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                break
            path = parent / f"{stamp}-{digest}-{count}"
    except OSError as error:
        raise files.store_error("make", path, error) from error
    return path
