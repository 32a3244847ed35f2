"""Sweeps: :func:`sweep` trains every cell of a grid of runs that is not complete yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.engine.diagnose import trained_without
from normbench.errors import NormbenchError, UserError
from normbench.formats import counted
from normbench.store.provenance import collect
from normbench.store.store import RunLocked, Store
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Executor, Stop, SweepContext, choose, make
from normbench.sweep.grid import expand
from normbench.sweep.observer import SweepObserver, SweepView
from normbench.sweep.plan import PlannedCell, SweepPlan, changed_components, other_versions, plan
from normbench.sweep.preflight import problems
from normbench.sweep.record import Record

#: Invalid cells that are listed; the others are counted.
LISTED = 20


@dataclass
class SweepResult:
    """The result of a sweep.

    Attributes:
        store: Where the runs are kept.
        plan: The plan before the sweep began.
        results: The results of the cells that were started, by name.
        record: The record of the sweep; None if there was nothing to train.
        interrupted: The sweep was stopped before its end.
        planned_only: Only the plan was asked for.
    """

    store: Store
    plan: SweepPlan
    results: dict[str, CellResult] = field(default_factory=dict)
    record: Record | None = None
    interrupted: bool = False
    planned_only: bool = False

    @property
    def failed(self) -> dict[str, CellResult]:
        return {name: cell for name, cell in self.results.items() if cell.result == "failed"}

    @property
    def exit_code(self) -> int:
        """1 if a cell failed, now or in an earlier sweep, or was not started for lack of disk."""
        if self.planned_only:
            return 0
        failed_before = any(not c.todo for c in self.plan.of_state("failed", "unreadable"))
        not_started = {cell.name for cell in self.plan.todo} - set(self.results)
        return 1 if self.failed or failed_before or not_started else 0


def sweep(
    overrides: Sequence[str],
    command: Sequence[str],
    *,
    config_dir: str | Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    skip_invalid: bool = False,
    again: bool = False,
    view: SweepView | None = None,
) -> SweepResult:
    """Train every cell of a grid that is not complete.

    Args:
        overrides: Overrides of the runs, with several values where the cells differ, and
            ``executor=…``.
        command: Command line that the records name.
        config_dir: Further folder with config groups.
        dry_run: Show the plan and stop.
        retry_failed: Also train the cells that failed before; damaged ones from their first step.
        skip_invalid: Leave out the cells that cannot be trained, instead of refusing the sweep.
        again: Set the folders of all cells aside and train the cells from their first step.
        view: Shows the sweep to the user; plain lines by default.

    Raises:
        UserError: A name does not exist, or a cell cannot be trained.
        StoreError: The store cannot be read or written.
    """
    view = SweepView() if view is None else view

    # Expand the grid.
    options, cell_overrides = choose(overrides, config_dir)
    configs = expand(cell_overrides, config_dir)
    store = _store_of(configs)

    # Plan, and compare the complete cells with what would be trained now.
    planned = plan(configs, store, retry_failed, again)
    provenance = collect(command)
    versions = other_versions(planned.cells, store, provenance)
    for line in [*versions, *changed_components(planned.cells, store)]:
        view.line(f"mixed: {line}")
    complete = [] if again else planned.of_state("finished", "diverged")
    for line in trained_without([(c.config, store.run(c.name)) for c in complete], config_dir):
        view.line(f"note: {line}")

    with make(options) as executor:
        # Preflight: build the networks before anything is trained.
        slots = executor.allocate(len(planned.todo)) if planned.todo else []
        if planned.todo:
            with view.checking(len(planned.todo)):
                planned = planned.without(problems(planned.todo, store, executor.check))
        if dry_run:
            view.plan(planned, len(slots))
            return SweepResult(store, planned, planned_only=True)
        _refuse_invalid(planned, skip_invalid, view)
        if not planned.todo:
            view.line(planned.counted())
            return SweepResult(store, planned)

        # Record the plan, train, record the results.
        record = Record.begin(store, planned, command, options, provenance)
        result = SweepResult(store, planned, record=record)
        view.line(f"{planned.counted()}; {planned.estimate(len(slots))}, on {', '.join(slots)}")
        context = SweepContext(store, command, record.path, replace_damaged=retry_failed)
        _train(result, record, executor, context, len(slots), again, view)
    view.line(planned.counted(result.results))
    if result.failed:
        view.failures(result)
    return result


def _train(
    result: SweepResult,
    record: Record,
    executor: Executor,
    context: SweepContext,
    slots: int,
    again: bool,
    view: SweepView,
) -> None:
    """Train the cells of a plan, and write each end into ``result`` and ``record``."""
    with ExitStack() as stack:
        stack.enter_context(record.held(context.command))
        stack.enter_context(view.training(result.plan, slots, context.store))
        stop = stack.enter_context(Stop())
        if again:
            _set_aside(result.plan.todo, context, view)
        # Cells that another process trains come last: by then that process may have gone.
        cells = sorted(result.plan.todo, key=lambda cell: cell.state == "running")
        executor.run(cells, context, _Recorder(view, record, result.results), stop)
        result.interrupted = bool(stop.requests)
    outcome = "interrupted" if result.interrupted else "failed" if result.failed else "complete"
    _try_to_record(lambda: record.close(outcome), view)


class _Recorder(SweepObserver):
    """Writes the ends of cells into the record, and passes everything on to the view."""

    def __init__(self, view: SweepView, record: Record, results: dict[str, CellResult]) -> None:
        self._view = view
        self._record = record
        self._results = results

    def started(self, cell: PlannedCell, where: str) -> None:
        self._view.started(cell, where)

    def progress(self, cell: PlannedCell, facts: Mapping[str, Any]) -> None:
        self._view.progress(cell, facts)

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._results[cell.name] = result
        self._view.ended(cell, result)
        _try_to_record(lambda: self._record.ended(cell.name, result), self._view)

    def retrying(self, cell: PlannedCell, reason: str) -> None:
        self._view.retrying(cell, reason)

    def note(self, text: str) -> None:
        self._view.note(text)

    def idle(self) -> None:
        self._view.idle()


def _try_to_record(write: Callable[[], None], view: SweepView) -> None:
    """Write to the record; a full disk must not end the cells that still train."""
    try:
        write()
    except NormbenchError as error:
        view.note(f"the sweep's record is incomplete: {error}")


def _store_of(configs: Sequence[Config]) -> Store:
    stores = {config.store for config in configs}
    if len(stores) > 1:
        raise UserError(f"a sweep has one store, not {', '.join(sorted(stores))}")
    return Store(stores.pop())


def _set_aside(cells: Sequence[PlannedCell], context: SweepContext, view: SweepView) -> None:
    """Move the folders of cells out of the way, unless another process trains them now."""
    count = 0
    for cell in cells:
        with suppress(RunLocked):
            run = context.store.run(cell.name)
            count += run.set_aside("replaced", context.command) is not None
    if count:
        runs = "1 run is" if count == 1 else f"{count} runs are"
        view.line(f"{runs} set aside in {context.store.root}, as .NAME.replaced-TIME")


def _refuse_invalid(planned: SweepPlan, skip: bool, view: SweepView) -> None:
    """List the cells that cannot be trained, and refuse the sweep unless they are skipped."""
    invalid = planned.of_state("invalid")
    for cell in invalid[:LISTED]:
        view.line(f"invalid      {planned.described(cell.name)}  {cell.reason}")
    if len(invalid) > LISTED:
        view.line(f"invalid      and {len(invalid) - LISTED} more")
    if invalid and not skip:
        cells = counted(len(invalid), "cell")
        raise UserError(f"{cells} cannot be trained: --skip-invalid trains the others")
