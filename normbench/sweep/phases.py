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

#: Invalid cells that are listed; the others are counted.
LISTED = 20


@dataclass
class SweepResult:
    """The result of a sweep.

    Attributes:
        store: Where the runs are kept.
        plan: The cells of all phases, as they were before each phase began.
        results: The results of the cells that were started, by name.
        record: The record of the sweep; None if there was nothing to train.
        interrupted: The sweep was stopped before its end.
        planned_only: Only the plan was asked for.
        tuned: The cells of a sweep that tunes keys, with their trials and what these chose.
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
        """The names of the runs that answer the sweep's question: all cells but trials."""
        trials = {trial.run for cell in self.tuned for trial in cell.trials}
        return [cell.name for cell in self.plan.cells if cell.name not in trials]

    @property
    def exit_code(self) -> int:
        """1 if a cell failed, now or in an earlier sweep, was not started for lack of disk, or has
        no value that its trials chose."""
        if self.planned_only:
            return 0
        failed_before = any(not c.todo for c in self.plan.of_state("failed", "unreadable"))
        not_started = {cell.name for cell in self.plan.todo} - set(self.results)
        return 1 if self.failed or failed_before or not_started or self.undecided else 0


class Phases:
    """Trains the cells of a sweep, all at once or in phases, on one executor with one record.

    A phase is planned by :meth:`plan`, checked by :meth:`check`, recorded by :meth:`record` and
    trained by :meth:`train`. A cell is planned in one phase only, and so tried once in a sweep. Use
    an instance as a context.

    Args:
        store: Where the runs are kept.
        command: Command line that the records name.
        options: The executor, as :func:`~normbench.sweep.executors.base.choose` returns it.
        view: Shows the sweep to the user.
        config_dir: Further folder with config groups.
        retry_failed, skip_invalid, again: As for :func:`sweep`.

    Attributes:
        result: The result so far.
        slots: Names of the slots of the executor, which stay the same in all phases, and with them
            the number of cores that a cell has.
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
        """Look the cells up in the store, and say where complete ones differ from today's code."""
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
        """Lay out slots for up to ``count`` cells at a time, once for all phases."""
        if count and not self.slots:
            self.slots = self._executor.allocate(count)

    def check(self, planned: SweepPlan) -> SweepPlan:
        """Build the networks of a plan; cells that cannot be trained become ``invalid``.

        A network is built once, however many phases ask for it.
        """
        if not planned.todo:
            return planned
        with self.view.checking(len(planned.todo)):
            found = problems(planned.todo, self.store, self._executor.check, self._checked)
        return planned.without(found)

    def refuse_invalid(self, planned: SweepPlan) -> None:
        """List the cells that cannot be trained, and refuse the plan unless they are skipped.

        Where no cell can be trained, for one reason, that reason is the error.
        """
        invalid = planned.of_state("invalid")
        cells = counted(len(invalid), "cell")
        reasons = {cell.reason for cell in invalid}
        if len(reasons) == 1 and not planned.todo and not self._skip_invalid:
            raise UserError(f"{cells} cannot be trained: {reasons.pop()}")
        for cell in invalid[:LISTED]:
            self.view.line(f"invalid      {planned.described(cell.name)}  {cell.reason}")
        if len(invalid) > LISTED:
            self.view.line(f"invalid      and {len(invalid) - LISTED} more")
        if invalid and not self._skip_invalid:
            raise UserError(f"{cells} cannot be trained: --skip-invalid trains the others")

    def record(self, planned: SweepPlan) -> Record:
        """Write the cells of a phase into the record, which is begun with the first phase."""
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
        """Count the cells of a phase in which there is nothing to train."""
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
        """Train the cells of a phase that is recorded, and write each end into result and record.

        Args:
            planned: The cells of the phase.
            title: Name of the phase; empty if there is only one.
            metric: The metric that chooses, if the cells are trials.
            tuned: For a run's ``meta.json``, by name of a final run: the trials that chose its
                values.
        """
        record = self.result.record
        assert record is not None
        prefix = f"{title}: " if title else ""
        estimate = planned.estimate(len(self.slots))
        where = ", ".join(self.slots)
        self.view.phase(f"{prefix}{planned.counted()}; {estimate}, on {where}", metric)
        context = SweepContext(
            self.store, self.command, record.path, self.retry_failed, tuned or {}
        )
        if self._stop is None:
            self._stop = Stop()
        with self.view.training(planned, len(self.slots), self.store), self._stop as stop:
            if self.again:
                _set_aside(planned.todo, context, self.view)
            # Cells that another process trains come last: by then that process may have gone.
            cells = sorted(planned.todo, key=lambda cell: cell.state == "running")
            recorder = _Recorder(self.view, record, self.result.results)
            self._executor.run(cells, context, recorder, stop)
            self.result.interrupted = bool(stop.requests)

    def close(self) -> None:
        """Write into the record how the sweep has ended."""
        record, result = self.result.record, self.result
        if record is None:
            return
        failed = result.failed or result.undecided
        outcome = "interrupted" if result.interrupted else "failed" if failed else "complete"
        try_to_record(lambda: record.close(outcome), self.view)


class _Recorder(ForwardingObserver):
    """Writes the ends of cells into the record, and passes everything on to the view."""

    def __init__(self, view: SweepView, record: Record, results: dict[str, CellResult]) -> None:
        super().__init__(view)
        self._record = record
        self._results = results

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._results[cell.name] = result
        super().ended(cell, result)
        try_to_record(lambda: self._record.ended(cell.name, result), self._view)


def try_to_record(write: Callable[[], None], view: SweepObserver) -> None:
    """Write to the record; a full disk must not end the cells that still train."""
    try:
        write()
    except NormbenchError as error:
        view.note(f"the sweep's record is incomplete: {error}")


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
