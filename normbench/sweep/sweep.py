"""Sweeps: :func:`sweep` trains every cell of a grid that is not complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normbench.config import Config
from normbench.errors import UserError
from normbench.store.store import Store
from normbench.sweep.executors.base import choose
from normbench.sweep.grid import expand
from normbench.sweep.observer import SweepView
from normbench.sweep.phases import Phases, SweepResult
from normbench.sweep.tune import TuneOptions, Tuner, tuned_by_experiment
from normbench.sweep.tuned_phases import TunedPhases


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
        overrides: Overrides of the runs, with several values where cells differ, and
            ``executor=…``.
        command: Command line for the records.
        config_dir: Second folder of config groups.
        dry_run: Show the plan and stop.
        retry_failed: Also train the cells that failed before; damaged ones from their first step.
        skip_invalid: Skip the cells that cannot be trained, instead of refusing the sweep.
        again: Set the folders of all cells aside and train the cells from their first step.
        tune: Keys whose values are chosen by trials for each cell, before the final runs; by
            default those of the experiment, if there is one and it tunes any.
        view: Shows the sweep to the user; by default as plain lines.

    Raises:
        UserError: A name does not exist, or a cell cannot be trained.
        StoreError: The store cannot be read or written.
    """
    view = SweepView() if view is None else view
    options, cell_overrides = choose(overrides, config_dir)
    tune = tuned_by_experiment(cell_overrides, config_dir) if tune is None else tune
    if tune is None:
        tuner, configs = None, expand(cell_overrides, config_dir)
    else:
        tuner = Tuner.of(cell_overrides, tune, config_dir)
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


def _store_of(configs: Sequence[Config]) -> Store:
    stores = {config.store for config in configs}
    if len(stores) > 1:
        raise UserError(f"a sweep has one store, not {', '.join(sorted(stores))}")
    return Store(stores.pop())
