"""The screen of a sweep: a live table of what runs, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from normbench.cli.terminal import Column, LiveRegion, can_redraw, fitted_table, wrapping
from normbench.formats import clock, count, duration, percent, small
from normbench.store.differences import short_names
from normbench.store.store import Store, StoreError
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Job, SweepObserver
from normbench.sweep.plan import SweepPlan

STYLE = {
    "trained": "green",
    "diverged": "magenta",
    "skipped": "dim",
    "locked": "cyan",
    "interrupted": "yellow",
    "failed": "red",
}

#: The order in which results are counted.
RESULTS = tuple(STYLE)

#: Seconds of silence after which an output without a live table is told how far the sweep is.
MINUTE = 60.0


@dataclass
class Running:
    """A run that goes on.

    Attributes:
        where: Its slot.
        began: In seconds of ``time.monotonic``.
        facts: What is known of it: see :meth:`SweepObserver.progress`.
    """

    where: str
    began: float
    facts: dict[str, Any] = field(default_factory=dict)


_RUNNING_COLUMNS = (
    Column("where", lambda row: row["where"], right=False, spare=3),
    wrapping("run", lambda row: row["name"]),
    Column("epoch", lambda row: _epoch(row)),
    Column("loss", lambda row: small(row.get("loss")), spare=2),
    Column("val acc", lambda row: percent(row.get("val_acc"))),
    Column("images/s", lambda row: count(row.get("images_per_s")), spare=1),
    Column("elapsed", lambda row: clock(row.get("seconds"))),
)


def _epoch(row: Mapping[str, Any]) -> str:
    epochs = row.get("epochs")
    return "starting" if epochs is None else f"{row.get('epoch', 0)}/{epochs}"


def running_table(rows: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Return a table of runs in progress that fits ``width`` columns.

    Where room is short, columns go in the order where, loss, images/s; then names are wrapped.

    Args:
        rows: With ``where`` and ``name``, and what is known of ``epoch``, ``epochs``, ``loss``,
            ``val_acc``, ``images_per_s`` and ``seconds`` (since the run was started).
    """
    table = fitted_table(_RUNNING_COLUMNS, rows, width)
    table.header_style = "dim"
    return table


@contextmanager
def checking(cells: int, console: Console | None = None) -> Iterator[None]:
    """Show on a terminal that the networks of so many cells are being built, which takes a while.

    A log gets nothing: what comes of it is said when the sweep begins.
    """
    console = Console() if console is None else console
    if not can_redraw(console):
        yield
        return
    cell = "cell" if cells == 1 else "cells"
    with console.status(Text(f"checking {cells:,} {cell} …", "dim")):
        yield


class SweepScreen(SweepObserver):
    """Shows a sweep as it goes. A context manager, so that the terminal is given back.

    Args:
        plan: Of the sweep.
        slots: Places where runs go on at the same time.
        store: Where results are read from.
        console: Where to write; standard output where None.
        live: Whether to keep a live table; where None, if the console is a terminal that can. Else
            a line a minute says how far the sweep is.
    """

    def __init__(
        self,
        plan: SweepPlan,
        slots: int,
        store: Store,
        console: Console | None = None,
        live: bool | None = None,
    ) -> None:
        self.console = Console() if console is None else console
        self._wants_live = can_redraw(self.console) if live is None else live
        self._live: LiveRegion | None = None
        self._began = self._told = time.monotonic()
        names = [cell.name for cell in plan.cells]
        differs = plan.differs
        self._differs = dict(zip(names, differs, strict=True))
        self._short = dict(zip(names, short_names(names, differs), strict=True))
        self._slots = max(slots, 1)
        self._store = store
        self._estimates = {cell.name: cell.seconds for cell in plan.todo}
        self._waiting = set(self._estimates)
        self._total = len(self._estimates)
        self._running: dict[str, Running] = {}
        self._results: Counter[str] = Counter()
        self._taken: list[float] = []

    def __enter__(self) -> SweepScreen:
        if self._wants_live:
            self._live = LiveRegion(self, self.console, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    # --- what the executor reports ---------------------------------------------------------------

    def started(self, job: Job, where: str) -> None:
        self._waiting.discard(job.name)
        self._running[job.name] = Running(where, time.monotonic())

    def progress(self, job: Job, facts: Mapping[str, Any]) -> None:
        if job.name in self._running:
            self._running[job.name].facts.update(facts)
        self.idle()

    def idle(self) -> None:
        if self._live is None and time.monotonic() - self._told >= MINUTE:
            self._write(Text(self._in_a_line(), "dim"))

    def ended(self, job: Job, ending: CellResult) -> None:
        self._running.pop(job.name, None)
        self._waiting.discard(job.name)
        self._results[ending.result] += 1
        if ending.result in ("trained", "diverged"):
            self._taken.append(ending.seconds)
        of = len(str(self._total))
        line = Text(f"[{sum(self._results.values()):>{of}}/{self._total}] ", "dim")
        line.append(f"{ending.result:<11} ", STYLE[ending.result]).append(job.name, "default")
        if differs := self._differs[job.name]:
            line.append(f"  {differs}", "default")
        line.append(self._detail(job, ending), "dim")
        self._write(line)

    def note(self, text: str) -> None:
        self._write(Text(text, "yellow"))

    def again(self, job: Job, reason: str) -> None:
        self._running.pop(job.name, None)
        self._waiting.add(job.name)
        self.note(f"{job.name}: {reason}; trying again")

    # --- how it is written -----------------------------------------------------------------------

    def _write(self, text: Text) -> None:
        if self._live is not None:
            self._live.print(text)
        else:  # never wrapped, either: a line of a log stays one
            self.console.print(text, soft_wrap=True, highlight=False)
        self._told = time.monotonic()

    def _in_a_line(self) -> str:
        """Return how far the sweep is, for an output without a live table."""
        done = f"{sum(self._results.values())} of {self._total} cells done"
        parts = [f"{clock(time.monotonic() - self._began)} elapsed", done, self._time_left()]
        for name, run in sorted(self._running.items(), key=lambda item: item[1].where):
            val = run.facts.get("val_acc")
            accuracy = f", val acc {percent(val)}" if val is not None else ""
            epoch = _epoch(run.facts)
            state = epoch if epoch == "starting" else f"epoch {epoch}"
            parts.append(f"{self._short[name]} ({state}{accuracy})")
        return "; ".join(parts)

    def _time_left(self) -> str:
        left = self.left()
        return "time left unknown" if left is None else f"{clock(left)} left"

    def _detail(self, job: Job, ending: CellResult) -> str:
        if ending.error:
            return f"  {ending.error}"
        if ending.result not in ("trained", "diverged"):
            return ""
        try:
            summary = self._store.run(job.name).summary or {}
        except StoreError as error:
            return f"  {error}"
        if ending.result == "diverged":
            what = f"in epoch {summary.get('diverged_epoch')}"
        else:
            what = f"test accuracy {percent(summary.get('test_acc'))}"
        if (parts := summary.get("micro_batches", 1)) > 1:
            what += f", batch in {parts} parts"
        return f"  {what}  {duration(ending.seconds)}"

    def counts(self) -> str:
        """How many cells ended how, run and wait."""
        parts = [f"{self._results[each]} {each}" for each in RESULTS if self._results[each]]
        parts.append(f"{len(self._running)} running")
        parts.append(f"{len(self._waiting)} waiting")
        return ", ".join(parts)

    def left(self) -> float | None:
        """Seconds until all is done; None while nothing is known."""
        mean = sum(self._taken) / len(self._taken) if self._taken else None
        now = time.monotonic()
        total = 0.0
        for name in self._waiting:
            guess = self._estimates.get(name) or mean
            if guess is None:
                return None
            total += guess
        for name, run in self._running.items():
            guess = _left_of(run, now)
            if guess is None:
                whole = self._estimates.get(name) or mean
                if whole is None:
                    return None
                guess = max(0.0, whole - (now - run.began))
            total += guess
        return total / min(self._slots, max(1, len(self._running) + len(self._waiting)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the live region: the table of what runs, and under it a bar with the counts."""
        now = time.monotonic()
        rows = [
            {"where": run.where, "name": self._short[name], "seconds": now - run.began, **run.facts}
            for name, run in sorted(self._running.items(), key=lambda item: item[1].where)
        ]
        done = sum(self._results.values())
        texts = [
            Text(f"{done}/{self._total}", "bold"),
            Text(self.counts(), "dim"),
            Text(self._time_left(), "dim"),
        ]
        foot = Table.grid(padding=(0, 2, 0, 0))
        room = options.max_width - sum(text.cell_len + 2 for text in texts) - 4
        if room >= 4:  # else the numbers are what matters
            bar = ProgressBar(total=max(self._total, 1), completed=done, width=min(20, room))
            foot.add_row(texts[0], bar, *texts[1:])
        else:
            foot.add_row(*texts)
        yield Group(running_table(rows, options.max_width), foot) if rows else foot


def _left_of(run: Running, now: float) -> float | None:
    """Seconds that a run still takes at the speed it had so far, once it completed an epoch."""
    epochs, epoch = run.facts.get("epochs"), run.facts.get("epoch") or 0
    first = run.facts.get("first_epoch", 0)
    if not epochs or epoch <= first:
        return None
    return (now - run.began) * (epochs - epoch) / (epoch - first)
