"""The phases of a sweep: :class:`Phases` trains cells on one executor, with one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from normbench.config import Config
from normbench.engine.diagnose import trained_without
from normbench.errors import NormbenchError, UserError
from normbench.formats import counted
from normbench.store.provenance import collect
from normbench.store.store import RunLocked, Store
from normbench.store.tuning import TunedCell
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Stop, SweepContext, make
from normbench.sweep.observer import ForwardingObserver, SweepObserver, SweepView
from normbench.sweep.plan import PlannedCell, SweepPlan, changed_components, other_versions, plan
from normbench.sweep.preflight import problems
from normbench.sweep.record import Record
from normbench.sweep.tune import TuneMetric

#: Largest number of invalid cells that are listed; the others are only counted.
LISTED = 20


@dataclass
class SweepResult:
    """The result of a sweep.

    Attributes:
        store: The store with the runs.
        plan: The cells of all phases, as they were before each phase began.
        results: The results of the cells that were started, by name.
        record: The record of the sweep; None if there was nothing to train.
        interrupted: True if the sweep was stopped before its end.
        planned_only: True if only the plan was requested.
        tuned: The cells of a sweep that tunes keys, with their trials and chosen values.
    """

    store: Store
    plan: SweepPlan
    results: dict[str, CellResult] = field(default_factory=dict)
    record: Record | None = None
    interrupted: bool = False
    planned_only: bool = False
    tuned: tuple[TunedCell, ...] = ()

    @property
    def failed(self) -> dict[str, CellResult]:
        return {name: cell for name, cell in self.results.items() if cell.result == "failed"}

    @property
    def undecided(self) -> list[TunedCell]:
        """The cells whose trials have not chosen a value."""
        return [cell for cell in self.tuned if cell.chosen is None]

    @property
    def final_names(self) -> list[str]:
        """The names of the runs that answer the sweep's question: all except trials."""
        trials = {trial.run for cell in self.tuned for trial in cell.trials}
        return [cell.name for cell in self.plan.cells if cell.name not in trials]

    @property
    def exit_code(self) -> int:
        """1 if a cell failed, now or in an earlier sweep, was not started for lack of disk space,
        or has no chosen value; else 0."""
        if self.planned_only:
            return 0
        failed_before = any(not c.todo for c in self.plan.of_state("failed", "unreadable"))
        not_started = {cell.name for cell in self.plan.todo} - set(self.results)
        return 1 if self.failed or failed_before or not_started or self.undecided else 0


class Phases:
    """Trains the cells of a sweep, all at once or in phases, on one executor with one record.

    A phase is planned by :meth:`plan`, checked by :meth:`check`, recorded by :meth:`record` and
    trained by :meth:`train`. A cell is planned in only one phase, and therefore tried only once in
    a sweep. Instances are context managers.

    Args:
        store: The store with the runs.
        command: Command line for the records.
        options: The executor, as :func:`~normbench.sweep.executors.base.choose` returns it.
        view: Shows the sweep to the user.
        config_dir: Second folder of config groups.
        retry_failed, skip_invalid, again: As for :func:`sweep`.

    Attributes:
        result: The result so far.
        slots: Names of the executor's slots. They are the same in all phases, and so is the number
            of cores per cell.
    """

    def __init__(
        self,
        store: Store,
        command: Sequence[str],
        options: Mapping[str, Any],
        view: SweepView,
        config_dir: str | Path | None = None,
        retry_failed: bool = False,
        skip_invalid: bool = False,
        again: bool = False,
    ) -> None:
        self.store, self.command, self.view = store, command, view
        self.again, self.retry_failed = again, retry_failed
        self._options, self._config_dir, self._skip_invalid = options, config_dir, skip_invalid
        self._provenance = collect(command)
        self.result = SweepResult(store, SweepPlan(()))
        self.slots: list[str] = []
        self._noted: set[str] = set()
        self._checked: dict[str, str] = {}
        self._stack = ExitStack()
        self._stop: Stop | None = None

    def __enter__(self) -> Self:
        self._executor = self._stack.enter_context(make(self._options))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def sweep(self, configs: Sequence[Config], dry_run: bool) -> None:
        """Train all cells in one phase, or show what would be trained."""
        planned = self.plan(configs)
        self.allocate(len(planned.todo))
        planned = self.check(planned)
        if dry_run:
            self.view.plan(planned, len(self.slots))
            self.result.plan, self.result.planned_only = planned, True
            return
        self.refuse_invalid(planned)
        if not planned.todo:
            self.view.line(planned.counted())
            self.result.plan = planned
            return
        self.record(planned)
        self.train(planned)
        self.close()
        self.view.line(planned.counted(self.result.results))
        if self.result.failed:
            self.view.failures(self.result)

    def plan(self, configs: Sequence[Config]) -> SweepPlan:
        """Look up the cells in the store, and report complete ones that other code has trained."""
        planned = plan(configs, self.store, self.retry_failed, self.again)
        versions = other_versions(planned.cells, self.store, self._provenance)
        for line in [*versions, *changed_components(planned.cells, self.store)]:
            self._note(f"mixed: {line}")
        complete = [] if self.again else planned.of_state("finished", "diverged")
        runs = [(cell.config, self.store.run(cell.name)) for cell in complete]
        for line in trained_without(runs, self._config_dir):
            self._note(f"note: {line}")
        return planned

    def _note(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self.view.line(line)

    def allocate(self, count: int) -> None:
        """Allocate slots for up to ``count`` cells at a time, once for all phases."""
        if count and not self.slots:
            self.slots = self._executor.allocate(count)

    def check(self, planned: SweepPlan) -> SweepPlan:
        """Build the networks of a plan; cells that cannot be trained become ``invalid``.

        Each network is built only once, even if several phases need it.
        """
        if not planned.todo:
            return planned
        with self.view.checking(len(planned.todo)):
            reasons = problems(planned.todo, self.store, self._executor.check, self._checked)
        return planned.without(reasons)

    def refuse_invalid(self, planned: SweepPlan) -> None:
        """List the cells that cannot be trained, and refuse the plan unless they are skipped.

        If no cell can be trained, all for the same reason, that reason is the error.
        """
        invalid_cells = planned.of_state("invalid")
        runs = counted(len(invalid_cells), "run")
        reasons = {cell.reason for cell in invalid_cells}
        if len(reasons) == 1 and not planned.todo and not self._skip_invalid:
            raise UserError(f"{runs} cannot be trained: {reasons.pop()}")
        for cell in invalid_cells[:LISTED]:
            self.view.line(f"invalid      {planned.described(cell.name)}  {cell.reason}")
        if len(invalid_cells) > LISTED:
            self.view.line(f"invalid      and {len(invalid_cells) - LISTED} more")
        if invalid_cells and not self._skip_invalid:
            raise UserError(f"{runs} cannot be trained: --skip-invalid trains the others")

    def record(self, planned: SweepPlan) -> Record:
        """Write the cells of a phase to the record, which the first phase creates."""
        record = self.result.record
        self.result.plan = SweepPlan((*self.result.plan.cells, *planned.cells))
        if record is not None:
            record.add(planned)
            return record
        record = Record.begin(
            self.store, self.result.plan, self.command, self._options, self._provenance
        )
        self.result.record = record
        self._stack.enter_context(record.held(self.command))
        return record

    def skip(self, planned: SweepPlan) -> None:
        """Add the cells of a phase in which there is nothing to train."""
        if self.result.record is not None:
            self.record(planned)
        else:
            self.result.plan = SweepPlan((*self.result.plan.cells, *planned.cells))

    def train(
        self,
        planned: SweepPlan,
        title: str = "",
        metric: TuneMetric | None = None,
        tuned: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Train the cells of a recorded phase, and write their results to the result and record.

        Args:
            planned: The cells of the phase.
            title: Name of the phase; empty if there is only one.
            metric: The metric that decides, if the cells are trials.
            tuned: The trials that chose a run's values, for its ``meta.json``, by name of the final
                run.
        """
        record = self.result.record
        assert record is not None
        prefix = f"{title}: " if title else ""
        estimate = planned.estimate(len(self.slots))
        slot_names = ", ".join(self.slots)
        self.view.phase(f"{prefix}{planned.counted()}; {estimate}, on {slot_names}", metric)
        context = SweepContext(
            self.store, self.command, record.path, self.retry_failed, tuned or {}
        )
        if self._stop is None:
            self._stop = Stop()
        with self.view.training(planned, len(self.slots), self.store), self._stop as stop:
            if self.again:
                _set_aside(planned.todo, context, self.view)
            # Cells that another process is training come last: by then it may have ended.
            cells = sorted(planned.todo, key=lambda cell: cell.state == "running")
            recorder = _Recorder(self.view, record, self.result.results)
            self._executor.run(cells, context, recorder, stop)
            self.result.interrupted = bool(stop.requests)

    def close(self) -> None:
        """Write to the record how the sweep ended."""
        record, result = self.result.record, self.result
        if record is None:
            return
        has_failed = result.failed or result.undecided
        outcome = "interrupted" if result.interrupted else "failed" if has_failed else "complete"
        try_to_record(lambda: record.close(outcome), self.view)


class _Recorder(ForwardingObserver):
    """Writes the results of cells to the record, and forwards all calls to the view."""

    def __init__(self, view: SweepView, record: Record, results: dict[str, CellResult]) -> None:
        super().__init__(view)
        self._record = record
        self._results = results

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._results[cell.name] = result
        super().ended(cell, result)
        try_to_record(lambda: self._record.ended(cell.name, result), self._view)


def try_to_record(write: Callable[[], None], view: SweepObserver) -> None:
    """Write to the record; a failure, as on a full disk, must not end cells still in training."""
    try:
        write()
    except NormbenchError as error:
        view.note(f"the sweep's record is incomplete: {error}")


def _set_aside(cells: Sequence[PlannedCell], context: SweepContext, view: SweepView) -> None:
    """Rename the folders of cells, except those that another process is training."""
    count = 0
    for cell in cells:
        with suppress(RunLocked):
            run = context.store.run(cell.name)
            count += run.set_aside("replaced", context.command) is not None
    if count:
        runs = "1 run is" if count == 1 else f"{count} runs are"
        view.line(f"{runs} set aside in {context.store.root}, as .NAME.replaced-TIME")
