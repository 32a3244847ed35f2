"""The phases of a sweep that tunes keys, :class:`TunedPhases`: trials, choice, final runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from normbench.config import Config
from normbench.formats import counted, duration
from normbench.store.differences import as_overrides
from normbench.store.store import RunLocked, Store
from normbench.store.tuning import StoreTuning, TunedCell, Tuning, combined, tunings
from normbench.sweep.phases import Phases, try_to_record
from normbench.sweep.plan import PlannedCell, SweepPlan, plan
from normbench.sweep.tune import Tuner, TuningCell


class TunedPlan(NamedTuple):
    """The runs of a sweep that tunes keys, as they are in the store.

    Attributes:
        trials: The trials that are known.
        unproposed: A placeholder for each trial whose values a sampler has yet to propose.
        finals: The final runs of the cells whose trials have chosen a value.
        later: A placeholder for each final run whose value the trials have yet to choose.
    """

    trials: SweepPlan
    unproposed: SweepPlan
    finals: SweepPlan
    later: SweepPlan

    @property
    def whole(self) -> SweepPlan:
        """All runs."""
        parts = (self.trials, self.unproposed, self.finals, self.later)
        return SweepPlan(tuple(cell for part in parts for cell in part.cells))


class TunedPhases:
    """Trains the phases: trials, further trials by ``--extend`` or a sampler, and final runs.

    Args:
        phases: Trains the runs.
        tuner: Determines the trials and the values that they choose.
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
        tuned_plan = self._plan()
        if dry_run:
            self._show(tuned_plan)
            return
        phases.refuse_invalid(tuned_plan.whole)
        self._train_trials(tuned_plan.trials)
        if not phases.result.interrupted:
            self._train_finals()
        self._end()

    # --- the plan --------------------------------------------------------------------------------

    def _plan(self) -> TunedPlan:
        """Plan all phases as far as they are known, and check their networks.

        The final runs are checked now, too, so that none is refused after hours of trials.
        """
        phases, tuner = self._phases, self._tuner
        trials = phases.plan(self._new(tuner.trials()))
        finals = phases.plan(tuner.finals(chosen=True))
        later_count = len(tuner.finals(chosen=False))
        phases.allocate(max(len(trials.todo), len(finals.todo) + later_count))
        trials = self._checked(trials)
        return TunedPlan(
            trials,
            unproposed(tuner, self._store),
            phases.check(finals),
            phases.check(stand_ins(tuner, self._store)),
        )

    def _new(self, configs: Sequence[Config]) -> list[Config]:
        """Return the configs that no phase has included yet."""
        new_configs = [config for config in configs if config.run_name not in self._planned]
        self._planned |= {config.run_name for config in new_configs}
        return new_configs

    def _checked(self, trials: SweepPlan) -> SweepPlan:
        """Check trials, and the final runs to which they may lead if their epochs differ.

        A value whose final runs cannot be trained is not tried.
        """
        phases, tuner = self._phases, self._tuner
        waiting_names = {cell.name for cell in trials.todo}
        trial_names: dict[str, list[str]] = {}  # trials by the final run that they may lead to
        finals: list[Config] = []
        for cell in tuner.cells:
            for final, configs in tuner.possible_finals(cell):
                names = [config.run_name for config in configs if config.run_name in waiting_names]
                if final.epochs != configs[0].epochs and (names or cell.chosen is None):
                    finals.append(final)
                    trial_names[final.run_name] = names
        final_plan = plan(finals, self._store)
        joint_plan = phases.check(SweepPlan((*trials.cells, *final_plan.cells)))
        count = len(trials.cells)
        checked_trials, checked_finals = (
            SweepPlan(joint_plan.cells[:count]),
            SweepPlan(joint_plan.cells[count:]),
        )
        valid_names = {cell.name for cell in checked_trials.cells if cell.state != "invalid"}
        checked_trials = checked_trials.without(
            {
                name: f"its final runs cannot be trained: {final.reason}"
                for final in checked_finals.of_state("invalid")
                for name in trial_names[final.name]
                if name in valid_names
            }
        )
        invalid_names = {cell.name for cell in checked_trials.of_state("invalid")}
        for cell in tuner.cells:
            cell.invalid |= invalid_names
        return checked_trials

    def _show(self, tuned_plan: TunedPlan) -> None:
        """Show the plan: the trials, and the final runs as far as they are known."""
        view, tuner, slots = self._view, self._tuner, len(self._phases.slots)
        keys = " ".join(f"{axis.key}=?" for axis in tuner.cells[0].axes)
        view.line("trials:")
        view.plan(tuned_plan.trials, slots)
        if count := len(tuned_plan.unproposed.cells):
            view.line(
                f"--sampler {tuner.options.sampler}: {counted(count, 'further trial')}, proposed "
                "one for each cell at a time, after the previous ones have ended"
            )
        if extend := tuner.options.extend:
            values = counted(extend, "further value")
            view.line(f"--extend: up to {values} in each cell whose best value ends its list")
        view.line("final runs:")
        for cell in tuner.cells:
            if cell.chosen is not None:
                view.line(chosen_line(cell, tuner))
        if tuned_plan.finals.cells:
            view.plan(tuned_plan.finals, slots)
        by_name = {cell.name: cell for cell in tuned_plan.later.cells}
        for cell in tuner.cells:
            if cell.chosen is None:
                runs = [by_name[config.run_name] for config in tuner.final_configs(cell)]
                seeds = ",".join(str(seed) for seed in cell.final_seeds)
                durations = [run.seconds for run in runs if run.seconds is not None]
                time = f"  about {duration(sum(durations))}" if durations else ""
                view.line(f"{'missing':<12} {tuner.described(cell)}  {keys} seed={seeds}{time}")
        joint_plan = tuned_plan.whole
        view.line(f"together: {joint_plan.counted()}; {joint_plan.estimate(slots)}")
        self._phases.result.plan, self._phases.result.planned_only = joint_plan, True

    # --- the training ----------------------------------------------------------------------------

    def _train_trials(self, trials: SweepPlan) -> None:
        phases, tuner = self._phases, self._tuner
        title = "trials"
        while True:
            self._train(trials, title, is_trial=True)
            tuner.assess(self._store)
            self._write()
            if phases.result.interrupted or not tuner.extend(self._view.note):
                return
            trials = self._checked(phases.plan(self._new(tuner.trials())))
            title = "further trials"

    def _train_finals(self) -> None:
        """Train the final runs, whose networks were checked together with the trials."""
        tuner, phases = self._tuner, self._phases
        for cell in tuner.cells:
            self._view.line(chosen_line(cell, tuner))
        self._train(phases.check(phases.plan(tuner.finals(chosen=True))), "final")

    def _train(self, sweep_plan: SweepPlan, title: str, is_trial: bool = False) -> None:
        phases = self._phases
        if sweep_plan.todo:
            phases.allocate(len(sweep_plan.todo))
            record = phases.record(sweep_plan)
            self._write()
            cells = [] if is_trial else phases.result.tuned
            trial_records = {
                name: _trials_of(cell, record.name) for cell in cells for name in cell.final
            }
            metric = self._tuner.options.metric if is_trial else None
            phases.train(sweep_plan, title, metric, trial_records)
        elif sweep_plan.cells:
            phases.skip(sweep_plan)
            self._view.line(f"{title}: {sweep_plan.counted()}")

    # --- the record ------------------------------------------------------------------------------

    def _write(self) -> None:
        """Write the trials and choices so far to the record, if there is one."""
        result = self._phases.result
        tuning = self._tuning()
        result.tuned = tuning.cells
        if result.record is not None:
            folder = result.record.path
            try_to_record(lambda: tuning.write(folder), self._view)

    def _tuning(self) -> Tuning:
        record = self._phases.result.record
        return self._tuner.tuning("" if record is None else record.name)

    def _end(self) -> None:
        """Finish the sweep: write the record, count the cells and list failures.

        Choices and trials may be new even if nothing was trained, and then need a record, too.
        """
        phases, result = self._phases, self._phases.result
        self._write()
        other_tunings = [t for t in tunings(self._store) if t.sweep != self._tuning().sweep]
        if result.record is None and not _are_recorded(result.tuned, combined(other_tunings)):
            phases.record(SweepPlan(()))
            self._write()
        phases.close()
        current = [] if result.record is None else [self._tuning()]
        store_tuning = combined([*other_tunings, *current])
        try_to_record(lambda: name_trials(result.tuned, store_tuning, phases), self._view)
        for line in superseded_lines(result.tuned, store_tuning, self._store):
            self._view.line(line)
        self._view.line(result.plan.counted(result.results))
        if result.failed:
            self._view.failures(result)


def unproposed(tuner: Tuner, store: Store) -> SweepPlan:
    """Return a placeholder for each trial whose values a sampler has yet to propose."""
    cells: list[PlannedCell] = []
    for cell in tuner.cells:
        count = tuner.unproposed(cell)
        if count:
            first = _stand_in(plan(tuner.trial_configs(cell)[:1], store).cells[0])
            cells += [replace(first, name=f"{first.name} ({index})") for index in range(count)]
    return SweepPlan(tuple(cells))


def stand_ins(tuner: Tuner, store: Store) -> SweepPlan:
    """Return a placeholder for each final run whose value the trials have yet to choose."""
    final_plan = plan(tuner.finals(chosen=False), store)
    return SweepPlan(tuple(_stand_in(cell) for cell in final_plan.cells))


def _stand_in(cell: PlannedCell) -> PlannedCell:
    return replace(cell, state="missing", todo=True, epochs=0, reason="")


def planned_with(tuner: Tuner, store: Store) -> TunedPlan:
    """Look up all runs of a sweep that tunes keys in a store, without building networks."""
    trials, finals = plan(tuner.trials(), store), plan(tuner.finals(chosen=True), store)
    return TunedPlan(trials, unproposed(tuner, store), finals, stand_ins(tuner, store))


def chosen_line(cell: TuningCell, tuner: Tuner) -> str:
    """Describe in one line the value that a cell's trials chose, or why they chose none."""
    record = cell.record
    if record is None or record.chosen is None:
        problem = "no trial has ended" if record is None else record.problem
        return f"not chosen   {tuner.described(cell)}  {problem}"
    show = tuner.options.metric.show
    mean = record.means[record.values.index(record.chosen)]
    edges = "".join(
        f"; {'' if len(record.keys) == 1 else key + ': '}this is the {edge} tried"
        for key, edge in record.edges.items()
    )
    is_list = not tuner.options.extend and tuner.options.sampler is None
    hint = ", --extend N tries further ones" if edges and is_list else ""
    count = len(record.values)
    best = "" if mean is None else f"{tuner.options.metric.label} {show(mean)}, "
    choice = as_overrides(record.chosen)
    return f"chosen       {tuner.described(cell)}  {choice}  ({best}best of {count}{edges}{hint})"


def superseded_lines(cells: Sequence[TunedCell], known: StoreTuning, store: Store) -> list[str]:
    """Return a line for each choice with final runs that a later choice has replaced.

    Args:
        cells: The cells to describe.
        known: The combined tuning of the store's sweeps, with the choices that count now.
        store: The store with the runs.
    """
    by_identity = {cell.identity: cell for cell in known.cells}
    lines = []
    for cell in cells:
        current = by_identity.get(cell.identity, cell)
        for entry in current.superseded:
            count = sum(store.run(name).exists for name in entry.runs)
            if count:
                lines.append(
                    f"superseded   {cell.described}  {as_overrides(entry.values)}: "
                    f"{counted(count, 'final run')}; the choice is now "
                    f"{as_overrides(current.chosen or {})} (sweep {current.sweep})"
                )
    return lines


def _are_recorded(cells: Sequence[TunedCell], store_tuning: StoreTuning) -> bool:
    """Return whether the store's records have the trials, the choices and the final runs."""
    by_identity = {cell.identity: cell for cell in store_tuning.cells}
    return all(
        (old_cell := by_identity.get(cell.identity)) is not None
        and (old_cell.chosen, old_cell.trials) == (cell.chosen, cell.trials)
        and set(cell.final) <= set(old_cell.final)
        for cell in cells
    )


def _trials_of(cell: TunedCell, sweep: str) -> dict[str, Any]:
    """Return the trials that chose the values of a final run, for its ``meta.json``."""
    return {
        "sweep": sweep,
        "values": cell.chosen,
        "metric": cell.metric,
        "trials": [trial.run for trial in cell.trials],
    }


def name_trials(cells: Sequence[TunedCell], known: StoreTuning, phases: Phases) -> None:
    """Write the trials that chose their values to the ``meta.json`` of complete final runs.

    A run trained as a final run names its trials from the start. Others were trained before their
    value was chosen, or have had their value chosen again from more trials. Runs locked by another
    process are skipped.

    Args:
        cells: The cells of the sweep.
        known: The combined tuning of the store's sweeps, with the names of their records.
        phases: Provides the store and the command.

    Raises:
        StoreError: A file cannot be read or written.
    """
    sweeps: Mapping[Any, str] = {cell.identity: cell.sweep for cell in known.cells}
    for cell in cells:
        record = _trials_of(cell, sweeps[cell.identity])
        for name in cell.final:
            run = phases.store.run(name)
            if run.status not in ("finished", "diverged"):
                continue
            old_record = (run.meta or {}).get("tuned") or {}
            if {**old_record, "sweep": record["sweep"]} == record:
                continue
            with suppress(RunLocked), run.lock(phases.command):
                run.update_meta(tuned=record)
