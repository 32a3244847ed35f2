"""What the command line calls: a sweep from its overrides to its outcome, and a sweep's status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normbench.cli.sweep_screen import RESULTS, SweepScreen, checking
from normbench.config import Config
from normbench.engine.diagnose import trained_without
from normbench.errors import NormbenchError, UserError
from normbench.formats import duration
from normbench.store.provenance import collect
from normbench.store.store import RunLocked, Store
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Job, Stop, SweepContext, SweepObserver, choose, make
from normbench.sweep.grid import expand
from normbench.sweep.plan import SweepPlan, own_mix, plan, provenance_mix
from normbench.sweep.preflight import problems
from normbench.sweep.record import Record, find

Say = Callable[[str], None]

#: Invalid cells that are told one by one; the rest is counted.
TOLD = 20


@dataclass
class SweepResult:
    """What became of a sweep.

    Attributes:
        store: Where its runs are.
        plan: Before it began.
        endings: By the names of the cells, of those that were begun.
        record: Its folder; None where nothing was to be done.
        interrupted: Whether it was stopped before its end.
        planned_only: Whether nothing more than the plan was asked for.
    """

    store: Store
    plan: SweepPlan
    endings: dict[str, CellResult] = field(default_factory=dict)
    record: Record | None = None
    interrupted: bool = False
    planned_only: bool = False

    @property
    def failed(self) -> dict[str, CellResult]:
        return {name: each for name, each in self.endings.items() if each.result == "failed"}

    @property
    def exit_code(self) -> int:
        """1 if a cell failed, now or in an earlier sweep, or was not begun for lack of disk."""
        if self.planned_only:
            return 0
        left = {c.name for c in self.plan.of_state("failed", "unreadable") if not c.todo}
        undone = {c.name for c in self.plan.todo} - set(self.endings)
        return 1 if self.failed or left or undone else 0


def sweep(
    overrides: Sequence[str],
    command: Sequence[str],
    *,
    config_dir: str | Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    skip_invalid: bool = False,
    again: bool = False,
    say: Say = print,
    console: Console | None = None,
) -> SweepResult:
    """Train every cell of a grid that is not complete.

    Args:
        overrides: Of the runs, and ``executor=…``.
        command: What the records name as the command.
        config_dir: A further folder with config groups.
        dry_run: Show the plan, and stop.
        retry_failed: Train cells that failed before, too; damaged ones begin anew.
        skip_invalid: Leave out the cells that cannot be trained, instead of refusing the sweep.
        again: Set the folders of all cells aside and train the cells from their first step.
        say: Takes each line meant for the user.
        console: Where the screen is drawn; standard output where None.

    Raises:
        UserError: Something asked for does not exist, or a cell cannot be trained.
        StoreError: The store cannot be read or written.
    """
    options, rest = choose(overrides, config_dir)
    configs = expand(rest, config_dir)
    store = _store_of(configs)
    planned = plan(configs, store, retry_failed, again)
    provenance = collect(command)
    mixtures = provenance_mix(planned.cells, store, provenance)
    for line in [*mixtures, *own_mix(planned.cells, store)]:
        say(f"mixed: {line}")
    complete = [] if again else planned.of_state("finished", "diverged")
    asked = [(cell.config, store.run(cell.name)) for cell in complete]
    for line in trained_without(asked, config_dir):
        say(f"note: {line}")
    with make(options) as executor:
        slots = executor.place(len(planned.todo)) if planned.todo else []
        if planned.todo:
            with checking(len(planned.todo), console):
                found = problems(planned.todo, store, executor.check)
            planned = planned.without(found)
        if dry_run:
            _show_plan(planned, len(slots), console)
            return SweepResult(store, planned, planned_only=True)
        _refuse_invalid(planned, skip_invalid, say)
        if not planned.todo:
            say(_counted(planned, {}))
            return SweepResult(store, planned)
        record = Record.begin(store, planned, command, options, provenance)
        outcome = SweepResult(store, planned, record=record)
        seconds, unknown = planned.seconds(len(slots))
        say(f"{_counted(planned, {})}; {_estimate(seconds, unknown)}, on {', '.join(slots)}")
        with ExitStack() as stack:
            stack.enter_context(record.held(command))
            screen = stack.enter_context(SweepScreen(planned, len(slots), store, console))
            stop = stack.enter_context(Stop())
            watch = _Recording(screen, record, outcome)
            if again:
                _set_aside(planned, store, command, say)
            jobs = _jobs(planned, retry_failed)
            executor.run(jobs, SweepContext(store, command, record.path), watch, stop)
            outcome.interrupted = bool(stop.requests)
        result = (
            "interrupted" if outcome.interrupted else "failed" if outcome.failed else "complete"
        )
        _keep(lambda: record.close(result), say)
    say(_counted(planned, outcome.endings))
    _show_failures(outcome, console)
    return outcome


class _Recording(SweepObserver):
    """Writes how cells end into the record, and passes everything on to the screen."""

    def __init__(self, screen: SweepScreen, record: Record, outcome: SweepResult) -> None:
        self._screen = screen
        self._record = record
        self._outcome = outcome
        self.started = screen.started
        self.progress = screen.progress
        self.again = screen.again
        self.note = screen.note

    def ended(self, job: Job, ending: CellResult) -> None:
        self._outcome.endings[job.name] = ending
        self._screen.ended(job, ending)
        _keep(lambda: self._record.ended(job.name, ending), self.note)


def _keep(write: Callable[[], None], say: Say) -> None:
    """Write to the record; a disk that takes no more must not end the sweep's other runs."""
    try:
        write()
    except NormbenchError as error:
        say(f"the sweep's record is incomplete: {error}")


def _store_of(configs: Sequence[Config]) -> Store:
    stores = {config.store for config in configs}
    if len(stores) > 1:
        raise UserError(f"a sweep has one store, not {', '.join(sorted(stores))}")
    return Store(stores.pop())


def _jobs(planned: SweepPlan, retry_failed: bool) -> list[Job]:
    """The jobs of a plan; what another process trains now comes last.

    A half-done run may be damaged, too, where the disk was too full to record that it failed.
    """
    cells = sorted(planned.todo, key=lambda cell: cell.state == "running")
    return [Job(cell.config, cell.name, replace_damaged=retry_failed) for cell in cells]


def _set_aside(planned: SweepPlan, store: Store, command: Sequence[str], say: Say) -> None:
    """Move the folders of the cells to train out of the way; what others train now stays."""
    moved = []
    for cell in planned.todo:
        with suppress(RunLocked):
            moved.append(store.run(cell.name).set_aside("replaced", command))
    count = sum(path is not None for path in moved)
    if count:
        runs = "1 run is" if count == 1 else f"{count} runs are"
        say(f"{runs} set aside in {store.root}, as .NAME.replaced-TIME")


def _refuse_invalid(planned: SweepPlan, skip: bool, say: Say) -> None:
    invalid = planned.of_state("invalid")
    differs = {cell.name: more for cell, more in zip(planned.cells, planned.differs, strict=True)}
    for cell in invalid[:TOLD]:
        name = f"{cell.name}  {differs[cell.name]}".rstrip()
        say(f"invalid      {name}  {cell.reason}")
    if len(invalid) > TOLD:
        say(f"invalid      and {len(invalid) - TOLD} more")
    if invalid and not skip:
        what = "1 cell cannot" if len(invalid) == 1 else f"{len(invalid)} cells cannot"
        raise UserError(f"{what} be trained: --skip-invalid trains the others")


def _counted(planned: SweepPlan, endings: dict[str, CellResult]) -> str:
    """The cells in one line: how they ended, and those that were not begun by their states."""
    results = Counter(ending.result for ending in endings.values())
    states = Counter(cell.state for cell in planned.cells if cell.name not in endings)
    words = {"finished": "skipped", "missing": "to train", "interrupted": "to resume"}
    complete = states.pop("finished", 0) + states.pop("diverged", 0)
    results["skipped"] += complete
    parts = [f"{results[each]} {each}" for each in RESULTS if results[each]]
    parts += [f"{number} {words.get(state, state)}" for state, number in states.items()]
    return f"{len(planned.cells)} cells: " + ", ".join(parts)


def _estimate(seconds: float, unknown: int) -> str:
    if not seconds:
        return "duration unknown (no similar run in the store)"
    rest = f", and {unknown} of unknown length" if unknown else ""
    return f"about {duration(seconds)}{rest}"


def _show_plan(planned: SweepPlan, slots: int, console: Console | None) -> None:
    console = Console() if console is None else console
    for cell, differs in zip(planned.cells, planned.differs, strict=True):
        line = Text(f"{cell.state:<12} {cell.name}  {differs}".rstrip())
        if cell.state in ("interrupted", "running"):
            line.append(f"  after epoch {cell.epochs} of {cell.config.epochs}", "dim")
        if cell.seconds is not None:
            line.append(f"  about {duration(cell.seconds)}", "dim")
        if cell.reason:
            line.append(f"  {cell.reason}", "dim")
        console.print(line, soft_wrap=True, highlight=False)
    seconds, unknown = planned.seconds(slots)
    text = Text(f"{_counted(planned, {})}; {_estimate(seconds, unknown)}")
    console.print(text, soft_wrap=True, highlight=False)


def _show_failures(outcome: SweepResult, console: Console | None) -> None:
    """Say in a table what failed and why, with the last lines of the log."""
    if not outcome.failed:
        return
    console = Console() if console is None else console
    table = Table(title="failed", title_justify="left", show_lines=True)
    table.add_column("run", overflow="fold")
    table.add_column("reason, and last lines of its log", overflow="fold")
    planned = outcome.plan
    differs = {cell.name: more for cell, more in zip(planned.cells, planned.differs, strict=True)}
    for name, ending in outcome.failed.items():
        why = Text(ending.error, "red")
        for line in ending.log:
            why.append(f"\n{line}", "dim")
        table.add_row(Text("\n".join(filter(None, [name, differs[name]]))), why)
    console.print(table)
    if outcome.record is not None:
        console.print(
            Text(
                f"--retry-failed trains them again; the workers' logs are in {outcome.record.path}"
            ),
            soft_wrap=True,
            highlight=False,
        )


def status(store: Store, name: str | None = None, console: Console | None = None) -> int:
    """Show how a sweep of a store stands; the last one if ``name`` is None.

    Returns:
        The exit code: 1 if a cell of it failed.

    Raises:
        UserError: There is no such sweep.
        StoreError: Its record cannot be read.
    """
    from normbench.cli.sweep_status import render, status_of

    stands = status_of(find(store, name), store)
    console = Console() if console is None else console
    console.print(render(stands, console.width))
    return 1 if stands.counts["failed"] or stands.counts["unreadable"] else 0
