"""The state of a sweep, read from the store alone; :func:`show_status` prints it."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from normbench.cli.sweep_screen import running_table
from normbench.cli.terminal import (
    STATUS_STYLE,
    Column,
    LiveRegion,
    as_text,
    can_redraw,
    fitted_table,
    wrapping,
)
from normbench.formats import counted, duration, seconds_since
from normbench.report.metrics import METRICS
from normbench.store.differences import as_overrides, short_names
from normbench.store.store import Store, StoreError
from normbench.store.tuning import TunedCell, Tuning, read, space_of, tuning_of
from normbench.sweep.observer import stored_progress
from normbench.sweep.plan import STATES
from normbench.sweep.record import Record, find, records
from normbench.sweep.tuned_phases import superseded_lines
from normbench.sweep.until import described

#: Seconds between updates of a sweep that is watched.
LOOK = 2.0

#: The words for the states of cells, in the order in which the counts are printed.
WORDS: dict[str, str] = {state: state for state in STATES} | {"missing": "waiting"}


@dataclass(frozen=True)
class Status:
    """The state of a sweep.

    Attributes:
        record: The record of the sweep.
        goes_on: True while its process is alive.
        cells: A row for each cell with ``name``, ``state``, and the progress of a running one.
        left: Estimate of the remaining seconds; None if too little is known.
        tuning: The values that a sweep with tuned keys has chosen so far; None for other sweeps.
        superseded: A line for each choice of this sweep that a later one has replaced.
    """

    record: Record
    goes_on: bool
    cells: list[dict[str, Any]]
    left: float | None
    tuning: Tuning | None = None
    superseded: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        return Counter(cell["state"] for cell in self.cells)

    @property
    def counted_states(self) -> list[tuple[str, str]]:
        """The states that occur, each with its count in words, such as ``4 finished``."""
        counts = self.counts
        return [
            (state, f"{counts[state]} {word}") for state, word in WORDS.items() if counts[state]
        ]


def show_status(
    store: Store,
    name: str | None = None,
    console: Console | None = None,
    watch: bool = False,
) -> int:
    """Show the state of a sweep.

    Args:
        store: The store with the sweep's runs.
        name: Name of its record, or a prefix of it; None for the last sweep.
        console: Console to write to; standard output by default.
        watch: Whether to update the state until the sweep has ended. On a console that cannot
            redraw, wait for the end and print once.

    Returns:
        The exit code: 1 if a cell failed.

    Raises:
        UserError: There is no such sweep.
        StoreError: Its record cannot be read.
    """
    record = find(store, name)
    console = Console() if console is None else console
    status = _watched(record, store, console) if watch else status_of(record, store)
    console.print(render(status, console.width))
    return 1 if status.counts["failed"] or status.counts["unreadable"] else 0


def _watched(record: Record, store: Store, console: Console) -> Status:
    """Show a sweep until it has ended; return its final state."""
    view = _View(status_of(record, store))
    region = LiveRegion(view, console, transient=True) if can_redraw(console) else None
    if region:
        region.start()
    try:
        while view.status.goes_on:
            time.sleep(LOOK)
            view.status = status_of(record, store)
    finally:
        if region:
            region.stop()
    return view.status


@dataclass
class _View:
    """Render the last known state of a sweep."""

    status: Status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield render(self.status, options.max_width)


def show_all(store: Store, console: Console | None = None) -> int:
    """List all sweeps of a store, oldest first; return 0.

    Raises:
        StoreError: A record cannot be read.
    """
    statuses = [status_of(record, store) for record in records(store)]
    columns = (
        Column("sweep", lambda status: status.record.name, right=False),
        Column("started", lambda status: status.record.head["started"], right=False, spare=1),
        Column("state", lambda status: _state(status, status.record.head), right=False),
        wrapping("runs", lambda status: ", ".join(text for _, text in status.counted_states)),
    )
    console = Console() if console is None else console
    console.print(fitted_table(columns, statuses, console.width))
    return 0


def status_of(record: Record, store: Store, now: datetime | None = None) -> Status:
    """Read the state of a sweep.

    Raises:
        StoreError: Its record cannot be read.
    """
    now = datetime.now(UTC) if now is None else now
    head = record.head
    cells = [_cell(cell, store, now) for cell in head["cells"]]
    seconds = [cell.seconds for cell in record.results.values() if cell.result == "trained"]
    goes_on = record.goes_on
    running_cells = [cell for cell in cells if cell["state"] == "running"]
    waiting_cells = [cell for cell in cells if cell["todo"] and cell["state"] == "missing"]
    seconds_left = None
    if goes_on and seconds:
        mean = sum(seconds) / len(seconds)
        remainder = sum(max(0.0, mean - (cell.get("seconds") or 0)) for cell in running_cells)
        seconds_left = (mean * len(waiting_cells) + remainder) / max(1, len(running_cells))
    tuning = read(record.path)
    lines = superseded_lines(tuning.cells, tuning_of(store), store) if tuning else []
    return Status(record, goes_on, cells, seconds_left, tuning, tuple(lines))


def _cell(cell: Mapping[str, Any], store: Store, now: datetime) -> dict[str, Any]:
    row = {key: cell[key] for key in ("name", "todo", "reason", "differs")}
    if cell["state"] == "invalid":
        return {**row, "state": "invalid"}
    run = store.run(cell["name"])
    try:
        state = run.status
        if state != "running":
            return {**row, "state": state}
        meta = run.meta or {}
        session = (meta.get("sessions") or [{}])[-1]
        return {
            **row,
            "state": state,
            "where": _where(meta),
            **stored_progress(run, (run.config or {}).get("epochs")),
            "seconds": seconds_since(session.get("started"), now),
        }
    except StoreError as error:
        return {**row, "state": "unreadable", "reason": str(error)}


def _where(meta: Mapping[str, Any]) -> str:
    devices = ", ".join(str(d).removeprefix("/device:") for d in meta.get("devices") or [])
    return f"{meta.get('host')} {devices}".strip()


def render(status: Status, width: int) -> RenderableType:
    """Return the state of a sweep for a terminal of ``width`` columns."""
    head = status.record.head
    parts: list[RenderableType] = [
        Text.assemble(
            as_text(status.record.name, "bold"), "  ", as_text(shlex.join(head["command"]), "dim")
        ),
        as_text(f"{_state(status, head)}, started {head['started']} on {head.get('host')}"),
    ]
    line = Text(f"{counted(len(status.cells), 'run')}: ")
    for index, (state, text) in enumerate(status.counted_states):
        line.append(", " if index else "")
        line.append(text, STATUS_STYLE.get(state))
    if status.left is not None:
        line.append(f", about {duration(status.left)} left")
    parts.append(line)
    if status.tuning is not None:
        parts += _tuned(status.tuning, width)
    parts += [as_text(line) for line in status.superseded]
    if head.get("until"):
        parts.append(as_text(described(head["until"])))
    running_cells = [cell for cell in status.cells if cell["state"] == "running"]
    if running_cells:
        cells = status.cells
        names = [cell["name"] for cell in cells]
        short = dict(
            zip(names, short_names(names, [cell["differs"] for cell in cells]), strict=True)
        )
        rows = [{**cell, "name": short[cell["name"]]} for cell in running_cells]
        parts.append(running_table(rows, width))
    results = status.record.results
    for cell in status.cells:
        if cell["state"] in ("failed", "unreadable", "invalid"):
            result = results.get(cell["name"])
            reason = (result.error if result else "") or cell["reason"]
            text = Text(f"{cell['state']:<11} ", STATUS_STYLE.get(cell["state"], "red"))
            text.append_text(as_text(f"{cell['name']}  {cell['differs']}".rstrip(), "default"))
            parts.append(text.append_text(as_text(f"  {reason}", "dim")))
    return Group(*parts)


def _tuned(tuning: Tuning, width: int) -> list[RenderableType]:
    """Return the values tried and chosen in each cell, with their means."""
    metric = METRICS.get(tuning.metric)

    def shown(value: float) -> str:
        return metric.show(value) if metric else f"{value:g}"

    def mean(cell: TunedCell) -> str:
        if cell.chosen is None:
            return ""
        best = cell.means[cell.values.index(cell.chosen)]
        return "" if best is None else shown(best)

    def tried(cell: TunedCell) -> str:
        is_single = len(tuning.keys) == 1
        texts = []
        pairs = list(zip(cell.values, cell.means, strict=True))
        suffix = ""
        if tuning.sampler is not None and len(pairs) > _SHOWN:
            sign = 1 if tuning.higher_is_better else -1
            pairs.sort(key=lambda pair: -math.inf if pair[1] is None else sign * pair[1])
            suffix = f" and {len(pairs) - _SHOWN} more"
            pairs = pairs[: -_SHOWN - 1 : -1]
        for values, average in pairs:
            statuses = {trial.status for trial in cell.trials if trial.values == values}
            status = next((word for word in _ENDS if word in statuses), "waiting")
            text = status if average is None else shown(average)
            overrides = as_overrides(values)
            texts.append(f"{overrides.partition('=')[2] if is_single else overrides}: {text}")
        return ", ".join(texts) + suffix

    def choice(cell: TunedCell) -> str:
        if cell.chosen is None:
            return f"none: {cell.problem}"
        ends = [
            edge if len(tuning.keys) == 1 else f"{key} {edge}" for key, edge in cell.edges.items()
        ]
        return as_overrides(cell.chosen) + (f" ({', '.join(ends)} tried)" if ends else "")

    label = tuning.metric if metric is None else metric.axis.lower()
    seeds = ", ".join(map(str, tuning.seeds))
    noun = "seed" if len(tuning.seeds) == 1 else "seeds"
    budgets = {(cell.trial_epochs, cell.epochs) for cell in tuning.cells}
    epochs = "; ".join(
        f"{counted(trial, 'epoch')} per trial"
        + (", as in final runs" if trial == final else f", {final} per final run")
        for trial, final in sorted(budgets)
    )
    rule = f"Chosen: {tuning.rule}."
    sampler = ""
    if tuning.sampler is not None:
        name, trials = tuning.sampler["name"], tuning.sampler["trials"]
        sampler = f"; {trials} values per cell by {name} from {space_of(tuning.sampler)}"
    columns = (
        wrapping("tuned cell", lambda cell: cell.described),
        wrapping("chosen", choice),
        Column("mean", mean),
        wrapping("tried", tried),
    )
    return [
        as_text(f"{', '.join(tuning.keys)} by {label}, {noun} {seeds}; {epochs}{sampler}"),
        fitted_table(columns, tuning.cells, width),
        as_text(rule, "dim"),
    ]


_SHOWN = 3  # the best values that a sampler proposed; the others are counted

_ENDS = ("failed", "unreadable", "diverged", "invalid")
"""States of trials that leave a value without a mean; the first that applies is shown."""


def _state(status: Status, head: Mapping[str, Any]) -> str:
    if status.goes_on:
        return "in progress"
    if head["ended"] is None:
        return "interrupted: its process is gone; the same command resumes it"
    return f"{head['result']}, ended {head['ended']}"
