"""Sweeps: :func:`sweep` trains every cell of a grid of runs that is not complete yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from normbench.config import Config
from normbench.engine.diagnose import trained_without
from normbench.errors import NormbenchError, UserError
from normbench.formats import counted, duration
from normbench.store.differences import as_overrides
from normbench.store.provenance import collect
from normbench.store.store import RunLocked, Store
from normbench.store.tuning import TunedCell, tuned_cells
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Stop, SweepContext, choose, make
from normbench.sweep.experiment import unfold
from normbench.sweep.grid import expand
from normbench.sweep.observer import SweepObserver, SweepView
from normbench.sweep.plan import PlannedCell, SweepPlan, changed_components, other_versions, plan
from normbench.sweep.preflight import problems
from normbench.sweep.record import Record
from normbench.sweep.tune import TuneOptions, Tuner, TuningCell, lists_without

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


def sweep(
    overrides: Sequence[str],
    command: Sequence[str],
    *,
    config_dir: str | Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    skip_invalid: bool = False,
    again: bool = False,
    tune: TuneOptions | None = None,
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
        tune: Keys whose values are chosen for each cell by trials, before the final runs.
        view: Shows the sweep to the user; plain lines by default.

    Raises:
        UserError: A name does not exist, or a cell cannot be trained.
        StoreError: The store cannot be read or written.
    """
    view = SweepView() if view is None else view
    options, cell_overrides = choose(overrides, config_dir)
    if tune is None:
        tuner, configs = None, expand(cell_overrides, config_dir)
    else:
        experiment, lists = unfold(cell_overrides, config_dir)
        tuner = Tuner(lists_without(experiment, lists, tune), tune, config_dir)
        configs = tuner.trials()
    phases = Phases(
        _store_of(configs), command, options, view, config_dir, retry_failed, skip_invalid, again
    )
    with phases:
        if tuner is None:
            phases.sweep(configs, dry_run)
        else:
            TunedPhases(phases, tuner).sweep(dry_run)
        return phases.result


class Phases:
    """Trains the cells of a sweep, all at once or in phases, on one executor with one record.

    A phase is planned by :meth:`plan`, checked by :meth:`check` and trained by :meth:`train`. A
    cell is planned in one phase only, and so tried once in a sweep. Use an instance as a context.

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
        """Build the networks of a plan; cells that cannot be trained become ``invalid``."""
        if not planned.todo:
            return planned
        with self.view.checking(len(planned.todo)):
            found = problems(planned.todo, self.store, self._executor.check)
        return planned.without(found)

    def refuse_invalid(self, planned: SweepPlan) -> None:
        """List the cells that cannot be trained, and refuse the plan unless they are skipped."""
        invalid = planned.of_state("invalid")
        for cell in invalid[:LISTED]:
            self.view.line(f"invalid      {planned.described(cell.name)}  {cell.reason}")
        if len(invalid) > LISTED:
            self.view.line(f"invalid      and {len(invalid) - LISTED} more")
        if invalid and not self._skip_invalid:
            cells = counted(len(invalid), "cell")
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
        trials: bool = False,
        recorded: Callable[[], None] = lambda: None,
    ) -> None:
        """Train the cells of a phase, and write each end into the result and the record.

        Args:
            planned: The cells; those that are not to do are recorded too.
            title: Name of the phase; empty if there is only one.
            trials: True if the cells are trials.
            recorded: Called when the record has the cells, before any is trained.
        """
        record = self.record(planned)
        recorded()
        prefix = f"{title}: " if title else ""
        estimate = planned.estimate(len(self.slots))
        where = ", ".join(self.slots)
        self.view.phase(f"{prefix}{planned.counted()}; {estimate}, on {where}", trials)
        context = SweepContext(self.store, self.command, record.path, self.retry_failed)
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
        _try_to_record(lambda: record.close(outcome), self.view)


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


class TunedPhases:
    """The phases of a sweep that tunes keys: trials, further trials where asked for, final runs.

    Args:
        phases: Trains the runs.
        tuner: Says which trials there are, and what they choose.
    """

    def __init__(self, phases: Phases, tuner: Tuner) -> None:
        self._phases, self._tuner = phases, tuner
        self._store, self._view = phases.store, phases.view
        self._planned: set[str] = set()

    def sweep(self, dry_run: bool) -> None:
        """Train the trials and the final runs, or show what would be trained."""
        phases, tuner = self._phases, self._tuner
        tuner.refuse_other_budget(self._store)
        if not phases.again:
            tuner.settle(self._store)
        trials = phases.plan(self._new(tuner.trials()))
        finals = phases.plan(tuner.finals(chosen=True))
        later = self._undecided_finals()
        phases.allocate(max(len(trials.todo), len(finals.todo) + len(later.cells)))
        # The final runs are checked now too, so that none is refused after hours of trials.
        together = SweepPlan((*trials.cells, *finals.cells, *later.cells))
        trials, finals, later = _split(phases.check(together), trials, finals, later)
        if dry_run:
            self._show(trials, finals, later)
            return
        phases.refuse_invalid(SweepPlan((*trials.cells, *finals.cells, *later.cells)))
        self._train_trials(trials)
        if not phases.result.interrupted:
            self._train_finals()
        self._end()

    def _new(self, configs: Sequence[Config]) -> list[Config]:
        """Return the configs that no phase has had yet."""
        new = [config for config in configs if config.run_name not in self._planned]
        self._planned |= {config.run_name for config in new}
        return new

    def _undecided_finals(self) -> SweepPlan:
        """Return a stand-in for each final run whose value the trials have still to choose."""
        planned = plan(self._tuner.finals(chosen=False), self._store)
        return SweepPlan(
            tuple(
                replace(cell, state="missing", todo=True, epochs=0, reason="")
                for cell in planned.cells
            )
        )

    def _train_trials(self, trials: SweepPlan) -> None:
        phases, tuner = self._phases, self._tuner
        title = "trials"
        while True:
            self._mark_invalid(trials)
            self._train(trials, title, is_trial=True)
            tuner.assess(self._store)
            self._write()
            if phases.result.interrupted or not tuner.extend(self._view.note):
                return
            trials = phases.check(phases.plan(self._new(tuner.trials())))
            title = "further trials"

    def _train(self, planned: SweepPlan, title: str, is_trial: bool = False) -> None:
        if planned.todo:
            self._phases.allocate(len(planned.todo))
            self._phases.train(planned, title, is_trial, self._write)
        elif planned.cells:
            self._phases.skip(planned)
            self._view.line(f"{title}: {planned.counted()}")

    def _mark_invalid(self, planned: SweepPlan) -> None:
        invalid = {cell.name for cell in planned.of_state("invalid")}
        for cell in self._tuner.cells:
            cell.invalid |= invalid

    def _train_finals(self) -> None:
        tuner, phases = self._tuner, self._phases
        for cell in tuner.cells:
            self._view.line(chosen_line(cell, tuner))
        finals = phases.check(phases.plan(tuner.finals(chosen=True)))
        self._train(finals, "final runs")

    def _write(self) -> None:
        """Write what is tuned and chosen so far into the record, if there is one."""
        result = self._phases.result
        tuning = self._tuner.tuning("" if result.record is None else result.record.name)
        result.tuned = tuning.cells
        if result.record is not None:
            folder = result.record.path
            _try_to_record(lambda: tuning.write(folder), self._view)

    def _end(self) -> None:
        """Record choices and trials, which may be new although no run was: count, list failures."""
        phases, result = self._phases, self._phases.result
        self._write()
        known = {(cell.key, cell.keys): cell for cell in tuned_cells(self._store)}
        if result.record is None and not all(_is_recorded(cell, known) for cell in result.tuned):
            phases.record(SweepPlan(()))
            self._write()
        phases.close()
        sweeps = {key: cell.sweep for key, cell in known.items()}
        if result.record is not None:
            sweeps |= {(cell.key, cell.keys): cell.sweep for cell in result.tuned}
        _try_to_record(lambda: name_trials(result.tuned, sweeps, phases), self._view)
        self._view.line(result.plan.counted(result.results))
        if result.failed:
            self._view.failures(result)

    def _show(self, trials: SweepPlan, finals: SweepPlan, later: SweepPlan) -> None:
        """Show the plan: the trials, and the final runs as far as they are known."""
        view, tuner, slots = self._view, self._tuner, len(self._phases.slots)
        keys = " ".join(f"{axis.key}=?" for axis in tuner.cells[0].axes)
        view.line("trials:")
        view.plan(trials, slots)
        if extend := tuner.options.extend:
            values = counted(extend, "further value")
            view.line(f"--extend: up to {values} in each cell whose best value ends its list")
        view.line("final runs:")
        for cell in tuner.cells:
            if cell.chosen is not None:
                view.line(chosen_line(cell, tuner))
        if finals.cells:
            view.plan(finals, slots)
        by_name = {cell.name: cell for cell in later.cells}
        for cell in tuner.cells:
            if cell.chosen is None:
                own = [by_name[config.run_name] for config in tuner.final_configs(cell)]
                seeds = ",".join(str(seed) for seed in cell.final_seeds)
                known = [run.seconds for run in own if run.seconds is not None]
                time = f"  about {duration(sum(known))}" if known else ""
                view.line(f"{'missing':<12} {tuner.described(cell)}  {keys} seed={seeds}{time}")
        everything = SweepPlan((*trials.cells, *finals.cells, *later.cells))
        view.line(f"together: {everything.counted()}; {everything.estimate(slots)}")
        self._phases.result.plan, self._phases.result.planned_only = everything, True


def _split(checked: SweepPlan, *plans: SweepPlan) -> list[SweepPlan]:
    """Divide a plan into plans of the same lengths as ``plans``."""
    cells = iter(checked.cells)
    return [SweepPlan(tuple(next(cells) for _ in plan.cells)) for plan in plans]


def _is_recorded(cell: TunedCell, known: Mapping[Any, TunedCell]) -> bool:
    """Return whether a record in the store has the trials, the choice and the final runs."""
    before = known.get((cell.key, cell.keys))
    return (
        before is not None
        and (before.chosen, before.trials) == (cell.chosen, cell.trials)
        and set(cell.final) <= set(before.final)
    )


def name_trials(cells: Sequence[TunedCell], sweeps: Mapping[Any, str], phases: Phases) -> None:
    """Write into ``meta.json`` of each complete final run which trials chose its value.

    A run that another process holds is left alone, and so is one that already names its trials.

    Args:
        cells: The cells of the sweep.
        sweeps: The name of the record that holds the trials, by key and tuned keys of the cell.
        phases: Has the store and the command.

    Raises:
        StoreError: A file cannot be read or written.
    """
    for cell in cells:
        named = {
            "values": cell.chosen,
            "metric": cell.metric,
            "trials": [trial.run for trial in cell.trials],
        }
        for name in cell.final:
            run = phases.store.run(name)
            if run.status not in ("finished", "diverged"):
                continue
            before = (run.meta or {}).get("tuned") or {}
            if {key: before.get(key) for key in named} == named:
                continue
            with suppress(RunLocked), run.lock(phases.command):
                run.update_meta(tuned={"sweep": sweeps[cell.key, cell.keys], **named})


def chosen_line(cell: TuningCell, tuner: Tuner) -> str:
    """Return in one line which value a cell's trials chose, from what, or why they chose none."""
    record = cell.record
    if record is None or record.chosen is None:
        problem = "no trial has ended" if record is None else record.problem
        return f"not chosen   {tuner.described(cell)}  {problem}"
    show = tuner.options.metric.show
    mean = record.means[record.values.index(record.chosen)]
    edges = "".join(
        f"; {'' if len(record.edges) == 1 else key + ': '}this is the {edge} tried"
        for key, edge in record.edges.items()
    )
    hint = ", --extend N tries further ones" if edges and not tuner.options.extend else ""
    tried = len(record.values)
    best = "" if mean is None else f"{tuner.options.metric.label} {show(mean)}, "
    chosen = as_overrides(record.chosen)
    return f"chosen       {tuner.described(cell)}  {chosen}  ({best}best of {tried}{edges}{hint})"
