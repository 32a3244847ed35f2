"""The screen of a sweep, :class:`SweepScreen`: a live table on a terminal, else plain lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from normbench.cli.terminal import Column, LiveRegion, can_redraw, fitted_table, wrapping
from normbench.formats import clock, count, counted, duration, percent, small
from normbench.store.differences import short_names
from normbench.store.store import Store, StoreError
from normbench.sweep.cell import RESULTS, CellResult
from normbench.sweep.observer import SweepView
from normbench.sweep.phases import SweepResult
from normbench.sweep.plan import PlannedCell, SweepPlan
from normbench.sweep.tune import TuneMetric

STYLE = {
    "trained": "green",
    "diverged": "magenta",
    "skipped": "dim",
    "locked": "cyan",
    "interrupted": "yellow",
    "failed": "red",
}

#: Seconds of silence after which a progress line is written to an output without a live table.
MINUTE = 60.0


@dataclass
class Running:
    """A cell that is training.

    Attributes:
        where: The name of its slot.
        began: Start time, from ``time.monotonic``.
        facts: Its progress; see :meth:`.SweepObserver.progress`.
        first_epoch: Number of epochs completed before it was started; None until known.
    """

    where: str
    began: float
    facts: dict[str, Any] = field(default_factory=dict)
    first_epoch: int | None = None


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

    If the table is too wide, the columns "where", "loss" and "images/s" are left out in this order;
    then names are wrapped.

    Args:
        rows: One row for each run with ``where`` and ``name``, and if known ``epoch``, ``epochs``,
            ``loss``, ``val_acc``, ``images_per_s`` and ``seconds`` (since the start of the run).
        width: Width of the terminal in characters.
    """
    table = fitted_table(_RUNNING_COLUMNS, rows, width)
    table.header_style = "dim"
    return table


class SweepScreen(SweepView):
    """Show a sweep as it runs.

    Args:
        console: Console to write to; standard output by default.
        live: Keep a live table while cells train; by default only if the console can redraw.
            Without a table, a progress line is printed every minute.
    """

    def __init__(self, console: Console | None = None, live: bool | None = None) -> None:
        self.console = Console() if console is None else console
        self._wants_live = can_redraw(self.console) if live is None else live
        self._live: LiveRegion | None = None
        self._metric: TuneMetric | None = None

    # --- before and after the training -----------------------------------------------------------

    def line(self, text: str) -> None:
        self._write(Text(text))

    def checking(self, cells: int) -> AbstractContextManager[object]:
        """Show on a terminal that networks are being built; print nothing elsewhere."""
        if not can_redraw(self.console):
            return nullcontext()
        return self.console.status(Text(f"checking {counted(cells, 'run')} …", "dim"))

    def phase(self, text: str, metric: TuneMetric | None = None) -> None:
        self._metric = metric
        self.line(text)

    def plan(self, plan: SweepPlan, slots: int) -> None:
        for cell in plan.cells:
            line = Text(f"{cell.state:<12} {plan.described(cell.name)}")
            if cell.state in ("interrupted", "running"):
                line.append(f"  after epoch {cell.epochs} of {cell.config.epochs}", "dim")
            if cell.seconds is not None:
                line.append(f"  about {duration(cell.seconds)}", "dim")
            if cell.reason:
                line.append(f"  {cell.reason}", "dim")
            self._write(line)
        self._write(Text(f"{plan.counted()}; {plan.estimate(slots)}"))

    def failures(self, result: SweepResult) -> None:
        """Show a table of the cells that failed, with the last lines of their logs."""
        table = Table(title="failed", title_justify="left", show_lines=True)
        table.add_column("run", overflow="fold")
        table.add_column("reason, and last lines of its log", overflow="fold")
        for name, failure in result.failed.items():
            reason = Text(failure.error, "red")
            for line in failure.log:
                reason.append(f"\n{line}", "dim")
            table.add_row(Text(result.plan.described(name).replace("  ", "\n", 1)), reason)
        self.console.print(table)
        if result.record is not None:
            logs = result.record.path
            hint = f"--retry-failed trains them again; the workers' logs are in {logs}"
            self._write(Text(hint))

    @contextmanager
    def training(self, plan: SweepPlan, slots: int, store: Store) -> Iterator[None]:
        self.begin(plan, slots, store)
        if self._wants_live:
            self._live = LiveRegion(self, self.console, transient=True)
            self._live.start()
        try:
            yield
        finally:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def begin(self, plan: SweepPlan, slots: int, store: Store) -> None:
        """Start counting the cells of a plan; see :meth:`training`."""
        self._plan, self._slots, self._store = plan, max(slots, 1), store
        names = [cell.name for cell in plan.cells]
        self._short = dict(zip(names, short_names(names, plan.differs), strict=True))
        self._began = self._written = time.monotonic()
        self._estimates = {cell.name: cell.seconds for cell in plan.todo}
        self._waiting = set(self._estimates)
        self._total = len(self._estimates)
        self._running: dict[str, Running] = {}
        self._results: Counter[str] = Counter()
        self._seconds: list[float] = []  # of the cells that were trained

    # --- reports of the executor -----------------------------------------------------------------

    def started(self, cell: PlannedCell, where: str) -> None:
        self._waiting.discard(cell.name)
        self._running[cell.name] = Running(where, time.monotonic())

    def progress(self, cell: PlannedCell, facts: Mapping[str, Any]) -> None:
        if run := self._running.get(cell.name):
            run.facts.update(facts)
            if run.first_epoch is None:
                run.first_epoch = run.facts.get("epoch")
        self.idle()

    def idle(self) -> None:
        if self._live is None and time.monotonic() - self._written >= MINUTE:
            self._write(Text(self._progress_line(), "dim"))

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._count(cell, result)
        digits = len(str(self._total))
        line = Text(f"[{sum(self._results.values()):>{digits}}/{self._total}] ", "dim")
        line.append(f"{result.result:<11} ", STYLE[result.result])
        line.append(self._plan.described(cell.name), "default")
        line.append(self._detail(cell, result), "dim")
        self._write(line)

    def _count(self, cell: PlannedCell, result: CellResult) -> None:
        self._running.pop(cell.name, None)
        self._waiting.discard(cell.name)
        self._results[result.result] += 1
        if result.result in ("trained", "diverged"):
            self._seconds.append(result.seconds)

    def note(self, text: str) -> None:
        self._write(Text(text, "yellow"))

    def retrying(self, cell: PlannedCell, reason: str) -> None:
        self._running.pop(cell.name, None)
        self._waiting.add(cell.name)
        super().retrying(cell, reason)

    # --- writing ---------------------------------------------------------------------------------

    def _write(self, text: Text) -> None:
        if self._live is not None:
            self._live.print(text)
        else:  # not wrapped, so that each log entry stays on one line
            self.console.print(text, soft_wrap=True, highlight=False)
        self._written = time.monotonic()

    def _progress_line(self) -> str:
        """Return a progress line, for an output without a live table."""
        progress = f"{sum(self._results.values())} of {self._total} runs done"
        parts = [f"{clock(time.monotonic() - self._began)} elapsed", progress, self._time_left()]
        for name, run in sorted(self._running.items(), key=lambda item: item[1].where):
            val = run.facts.get("val_acc")
            accuracy = f", val acc {percent(val)}" if val is not None else ""
            epoch = _epoch(run.facts)
            state = epoch if epoch == "starting" else f"epoch {epoch}"
            parts.append(f"{self._short[name]} ({state}{accuracy})")
        return "; ".join(parts)

    def _time_left(self) -> str:
        seconds = self.left()
        return "time left unknown" if seconds is None else f"{clock(seconds)} left"

    def _detail(self, cell: PlannedCell, result: CellResult) -> str:
        if result.error:
            return f"  {result.error}"
        if result.result not in ("trained", "diverged"):
            return ""
        try:
            summary = self._store.run(cell.name).summary or {}
        except StoreError as error:
            return f"  {error}"
        if result.result == "diverged":
            detail = f"in epoch {summary.get('diverged_epoch')}"
        elif self._metric is not None:
            value = self._metric.value(summary)
            text = "unknown" if value is None else self._metric.show(value)
            detail = f"{self._metric.label} {text}"
        else:
            detail = f"test accuracy {percent(summary.get('test_acc'))}"
        if (count := summary.get("micro_batches", 1)) > 1:
            detail += f", batch in {count} micro-batches"
        return f"  {detail}  {duration(result.seconds)}"

    def counts(self) -> str:
        """Return the numbers of cells by result, and of those that are training and waiting."""
        parts = [f"{self._results[result]} {result}" for result in RESULTS if self._results[result]]
        parts.append(f"{len(self._running)} running")
        parts.append(f"{len(self._waiting)} waiting")
        return ", ".join(parts)

    def left(self) -> float | None:
        """Estimate the seconds until the end of the sweep; None if too little is known."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else None
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
                expected = self._estimates.get(name) or mean
                if expected is None:
                    return None
                guess = max(0.0, expected - (now - run.began))
            total += guess
        return total / min(self._slots, max(1, len(self._running) + len(self._waiting)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table of the cells that are training, and below it a bar with the counts."""
        now = time.monotonic()
        rows = [
            {"where": run.where, "name": self._short[name], "seconds": now - run.began, **run.facts}
            for name, run in sorted(self._running.items(), key=lambda item: item[1].where)
        ]
        done_runs = sum(self._results.values())
        texts = [
            Text(f"{done_runs}/{self._total}", "bold"),
            Text(self.counts(), "dim"),
            Text(self._time_left(), "dim"),
        ]
        foot = Table.grid(padding=(0, 2, 0, 0))
        room = options.max_width - sum(text.cell_len + 2 for text in texts) - 4
        if room >= 4:  # the numbers matter more than the bar
            bar = ProgressBar(total=max(self._total, 1), completed=done_runs, width=min(20, room))
            foot.add_row(texts[0], bar, *texts[1:])
        else:
            foot.add_row(*texts)
        yield Group(running_table(rows, options.max_width), foot) if rows else foot


class VerifyScreen(SweepScreen):
    """Show the runs that ``normbench verify`` trains again; the line of each is its verdict."""

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._count(cell, result)


def _left_of(run: Running, now: float) -> float | None:
    """Estimate the remaining seconds of a cell, once it has completed an epoch."""
    epochs, epoch = run.facts.get("epochs"), run.facts.get("epoch") or 0
    epochs_done = epoch - (run.first_epoch or 0)
    if not epochs or epochs_done <= 0:
        return None
    return (now - run.began) * (epochs - epoch) / epochs_done
