"""A sweep seen from outside, from the store alone: what ran, what runs, what waits."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from normbench.cli.sweep_screen import running_table
from normbench.cli.terminal import STATUS_STYLE, as_text
from normbench.formats import duration
from normbench.store.differences import short_names
from normbench.store.store import Store, StoreError
from normbench.sweep.record import Record

#: States in the order in which they are counted, and what each is called of a cell.
WORDS = {
    "finished": "finished",
    "diverged": "diverged",
    "running": "running",
    "interrupted": "interrupted",
    "failed": "failed",
    "unreadable": "unreadable",
    "invalid": "invalid",
    "missing": "waiting",
}


@dataclass(frozen=True)
class Status:
    """How a sweep stands.

    Attributes:
        record: Of the sweep.
        goes_on: Whether its process lives.
        cells: A row a cell: ``name``, ``state``, and of running ones what is known of them.
        left: Estimate of the seconds that it still takes, by what its cells took; None where
            nothing is known.
    """

    record: Record
    goes_on: bool
    cells: list[dict[str, Any]]
    left: float | None

    @property
    def counts(self) -> Counter[str]:
        return Counter(cell["state"] for cell in self.cells)


def status_of(record: Record, store: Store, now: datetime | None = None) -> Status:
    """Read how a sweep stands.

    Raises:
        StoreError: Its record cannot be read.
    """
    now = datetime.now(UTC) if now is None else now
    head = record.head
    cells = [_cell(planned, store, now) for planned in head["cells"]]
    taken = [each.seconds for each in record.endings.values() if each.result == "trained"]
    goes_on = record.goes_on
    running = [cell for cell in cells if cell["state"] == "running"]
    waiting = [cell for cell in cells if cell["todo"] and cell["state"] == "missing"]
    left = None
    if goes_on and taken:
        mean = sum(taken) / len(taken)
        begun = sum(max(0.0, mean - (cell.get("seconds") or 0)) for cell in running)
        left = (mean * len(waiting) + begun) / max(1, len(running))
    return Status(record, goes_on, cells, left)


def _cell(planned: Mapping[str, Any], store: Store, now: datetime) -> dict[str, Any]:
    row = {key: planned[key] for key in ("name", "todo", "reason")}
    row["differs"] = planned.get("differs", "")  # records of earlier versions have none
    if planned["state"] == "invalid":
        return {**row, "state": "invalid"}
    run = store.run(planned["name"])
    try:
        state = run.status
        if state != "running":
            return {**row, "state": state}
        last, meta = run.last_metrics() or {}, run.meta or {}
        session = (meta.get("sessions") or [{}])[-1]
        return {
            **row,
            "state": state,
            "where": _where(meta),
            "epoch": last.get("epoch", 0),
            "epochs": (run.config or {}).get("epochs"),
            "loss": last.get("train_loss"),
            "val_acc": last.get("val_acc"),
            "images_per_s": last.get("images_per_s"),
            "seconds": _since(session.get("started"), now),
        }
    except StoreError as error:
        return {**row, "state": "unreadable", "reason": str(error)}


def _where(meta: Mapping[str, Any]) -> str:
    devices = ", ".join(str(d).removeprefix("/device:") for d in meta.get("devices") or [])
    return f"{meta.get('host')} {devices}".strip()


def _since(stamp: Any, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(stamp)).total_seconds()
    except (TypeError, ValueError):
        return None


def render(status: Status, width: int) -> RenderableType:
    """Return a sweep's status for a terminal of ``width`` columns."""
    head = status.record.head
    counts = status.counts
    parts: list[RenderableType] = [
        Text.assemble(
            as_text(status.record.name, "bold"), "  ", as_text(shlex.join(head["command"]), "dim")
        ),
        as_text(f"{_state(status, head)}, started {head['started']} on {head.get('host')}"),
    ]
    line = Text(f"{len(status.cells)} cells: ")
    shown = [(state, word) for state, word in WORDS.items() if counts[state]]
    for index, (state, word) in enumerate(shown):
        line.append(", " if index else "")
        line.append(f"{counts[state]} {word}", STATUS_STYLE.get(state))
    if status.left is not None:
        line.append(f", about {duration(status.left)} left")
    parts.append(line)
    running = [cell for cell in status.cells if cell["state"] == "running"]
    if running:
        cells = status.cells
        names = [cell["name"] for cell in cells]
        short = dict(
            zip(names, short_names(names, [cell["differs"] for cell in cells]), strict=True)
        )
        rows = [{**cell, "name": short[cell["name"]]} for cell in running]
        parts.append(running_table(rows, width))
    endings = status.record.endings
    for cell in status.cells:
        if cell["state"] in ("failed", "unreadable", "invalid"):
            ending = endings.get(cell["name"])
            reason = (ending.error if ending else "") or cell["reason"]
            text = Text(f"{cell['state']:<11} ", STATUS_STYLE.get(cell["state"], "red"))
            text.append_text(as_text(f"{cell['name']}  {cell['differs']}".rstrip(), "default"))
            parts.append(text.append_text(as_text(f"  {reason}", "dim")))
    return Group(*parts)


def _state(status: Status, head: Mapping[str, Any]) -> str:
    if status.goes_on:
        return "in progress"
    if head["ended"] is None:
        return "interrupted: its process is gone; the same command resumes it"
    return f"{head['result']}, ended {head['ended']}"
