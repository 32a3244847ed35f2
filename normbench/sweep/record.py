"""The record of a sweep: what was asked for, what was planned, what became of it.

    runs/sweeps/<name>/
      sweep.json      command, overrides, executor, provenance, the planned cells, start and end
      outcome.jsonl   a line a cell that ended, appended as it ends
      worker-*.log    what the workers wrote beside the runs' own logs
      lock            held while the sweep goes on

The truth about a run stays in its own folder; a record only says which runs belong together.
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
from normbench.store import files
from normbench.store import lock as runlock
from normbench.store.provenance import utc_now
from normbench.store.schema import boolean, integer, mapping, number, record, sequence, text
from normbench.store.store import Store
from normbench.sweep.cell import CellResult
from normbench.sweep.plan import PlannedCell, SweepPlan

FOLDER = "sweeps"

SCHEMA = 1

_HEAD = record(
    {
        "started": text(),
        **dict.fromkeys(("ended", "result"), text(null=True)),
        "command": sequence(text()),
        "cells": sequence(
            record(
                {
                    **dict.fromkeys(("name", "state", "reason"), text()),
                    "todo": boolean(),
                    "seconds": number(0, null=True),
                }
            )
        ),
    },
    {"host": text(null=True), "executor": mapping()},
)
_ENDING = record(
    {
        **dict.fromkeys(("name", "result", "cause", "error"), text()),
        "log": sequence(text()),
        "seconds": number(0),
        "tries": integer(0),
    }
)


class Record:
    """One sweep's folder. Holds no state: it reads the files as they are now."""

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
        """Write the record of a sweep that is about to run.

        Raises:
            StoreError: It cannot be written.
        """
        made = cls(_fresh_folder(store.root / FOLDER, command))
        made._write(
            {
                "schema": SCHEMA,
                "started": utc_now(),
                "ended": None,
                "result": None,
                "executor": dict(executor),
                **provenance,
                "command": list(command),
                "cells": [
                    _planned(cell, differs)
                    for cell, differs in zip(plan.cells, plan.differs, strict=True)
                ],
            }
        )
        return made

    @contextlib.contextmanager
    def held(self, command: Sequence[str]) -> Iterator[None]:
        """Show that the sweep goes on, until the block or this process ends."""
        with runlock.locked(self.path / "lock", self.name, command):
            yield

    @property
    def goes_on(self) -> bool:
        return runlock.is_held(self.path / "lock")

    def ended(self, name: str, ending: CellResult) -> None:
        """Append what became of a cell.

        Raises:
            StoreError: It cannot be written.
        """
        line = {"name": name, **ending.to_dict(), "time": utc_now()}
        files.append_line(self.path / "outcome.jsonl", files.printable(files.jsonable(line)))

    def close(self, result: str) -> None:
        """Write that the sweep is over: ``complete``, ``failed`` or ``interrupted``.

        Raises:
            StoreError: It cannot be written.
        """
        self._write({**self.head, "ended": utc_now(), "result": result})

    @property
    def head(self) -> dict[str, Any]:
        """What ``sweep.json`` says.

        Raises:
            StoreError: There is none, or it cannot be read.
        """
        head = files.read_json(self.path / "sweep.json", _HEAD)
        if head is None:
            raise files.StoreError(f"{self.path} is no record of a sweep: no sweep.json")
        return head

    @property
    def endings(self) -> dict[str, CellResult]:
        """By the names of the cells, what became of those that ended.

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
        files.write_text(self.path / "sweep.json", content + "\n")


def records(store: Store) -> list[Record]:
    """The records of a store's sweeps, the oldest first."""
    folder = store.root / FOLDER
    if not folder.is_dir():
        return []
    return [Record(path.parent) for path in sorted(folder.glob("*/sweep.json"))]


def find(store: Store, name: str | None) -> Record:
    """The record of a sweep by its name or the start of it; the last sweep's if None.

    Raises:
        UserError: There is none, or there are several.
    """
    known = records(store)
    if not known:
        raise UserError(f"the store {store.root} has no record of a sweep")
    if name is None:
        return known[-1]
    found = [each for each in known if each.name == name] or [
        each for each in known if each.name.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"sweep {name!r} could be any of {', '.join(each.name for each in found)}")
    close = nearest(name, [each.name for each in known])
    hint = f": did you mean {close!r}?" if close else ""
    raise UserError(f"unknown sweep {name!r}{hint} (the store {store.root} has {len(known)})")


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
    """Make a folder named by the time of the start and a hash of the command.

    The names sort by time. Another process may ask in the same second for the same command: the
    making itself tells who was first, for a look beforehand would let both through.

    Raises:
        StoreError: It cannot be made.
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
