"""Sweeps that add seeds until their intervals are narrow: :func:`sweep_until`.

A round is an ordinary sweep over the full grid with the seeds so far, so finished runs are skipped.
After each round a :class:`Rule` looks at the results. The numbers of seeds at which it looks are
declared before the first round, as the rule's statistics require, and recorded with each look in
the record of the round, under ``until`` in ``sweep.json``:

    looks       numbers of seeds at which the rule looks at the results
    seeds       number of seeds at this look
    stopped     "" if seeds are added, else "narrow" or "max-seeds"
    width, baseline, metric, comparisons   as reported by the rule
    tuned       if the sweep tunes keys: hashes of the cells that are compared with the
                baseline, and the options that affect the choice of their values
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from normbench.config import Config
from normbench.errors import UserError
from normbench.formats import counted
from normbench.overrides import parse
from normbench.store.provenance import collect
from normbench.store.store import Store
from normbench.sweep.executors.base import choose, make
from normbench.sweep.grid import expand
from normbench.sweep.observer import SweepView
from normbench.sweep.phases import SweepResult
from normbench.sweep.plan import plan
from normbench.sweep.record import Record, records
from normbench.sweep.sweep import sweep
from normbench.sweep.tune import TuneOptions, Tuner, tuned_by_experiment
from normbench.sweep.tuned_phases import planned_with


class Look(Protocol):
    """The result of a rule's look at a round."""

    @property
    def narrow(self) -> bool:
        """True if each interval is narrow enough."""
        ...

    @property
    def text(self) -> str:
        """The result in one line."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """The result for the record."""
        ...


class Rule(Protocol):
    """Decides when a sweep has enough seeds."""

    def baseline_runs(self, configs: Sequence[Config]) -> set[str]:
        """Return the names of the runs of the baseline.

        Raises:
            UserError: The grid has no baseline, or nothing to compare with it.
        """
        ...

    def looks(self, first: int, most: int) -> tuple[int, ...]:
        """Return the numbers of seeds at which to look, from ``first`` to ``most``."""
        ...

    def look(self, store: Store, names: Sequence[str], looks: tuple[int, ...]) -> Look:
        """Look at the runs of a round."""
        ...


def sweep_until(
    overrides: Sequence[str],
    command: Sequence[str],
    rule: Rule,
    max_seeds: int,
    *,
    config_dir: str | Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    skip_invalid: bool = False,
    tune: TuneOptions | None = None,
    view: SweepView | None = None,
) -> SweepResult:
    """Train a grid with more and more seeds until a rule is satisfied or ``max_seeds`` is reached.

    Looks of an earlier sweep with the same schedule are not repeated, except for the last, so the
    same command resumes where it was. With ``tune``, the first round trains the trials, and all
    rounds train final runs at the values that these chose.

    Args:
        overrides, command, config_dir, retry_failed, skip_invalid, tune, view: As for
            :func:`normbench.sweep.sweep.sweep`.
        rule: Decides after each round whether to add seeds.
        max_seeds: Seeds of each cell in the last round.
        dry_run: Show the plan of the next round and the largest number of runs, and stop.

    Raises:
        UserError: As for :func:`normbench.sweep.sweep.sweep`, or the grid does not fit the rule.
    """
    view = SweepView() if view is None else view
    executor, cell_overrides = choose(overrides, config_dir)
    tune = tuned_by_experiment(cell_overrides, config_dir) if tune is None else tune

    def grid_of(words: Sequence[str]) -> _Grid:
        return _Grid(choose(words, config_dir)[1], tune, config_dir)

    def words(count: int) -> list[str]:
        other_overrides = [text for text in overrides if parse([text])[0].key_or_group != "seed"]
        return [*other_overrides, f"seed={','.join(map(str, seeds[:count]))}"]

    first = grid_of(overrides)
    seeds = _seeds_of(first.configs, max_seeds)
    looks = rule.looks(len(_seeds(first.configs)), max_seeds)
    grid = grid_of(words(max_seeds))  # refuses a tuning seed that a later round would use
    grid.set_baseline(rule.baseline_runs(grid.configs))
    store = grid.store
    past_counts = _taken(store, grid, looks)
    counts = [count for count in looks if count >= max(past_counts, default=0)]
    options: dict[str, Any] = {
        "config_dir": config_dir,
        "skip_invalid": skip_invalid,
        "tune": tune,
        "view": view,
    }
    if dry_run:
        count = counts[0]
        if count in past_counts:  # the command would repeat this look first, and may then continue
            look = rule.look(store, grid.final_names(seeds[:count]), looks)
            ending = _stopped(look, count, looks)
            view.line(f"{count} seeds: {look.text}{_ENDS[ending]}")
            count = count if ending else counts[1]
        result = sweep(words(count), command, dry_run=True, **options)
        view.line(
            f"round {looks.index(count) + 1} of at most {len(looks)}: looks after "
            f"{', '.join(map(str, looks))} seeds"
        )
        view.line(grid.described(executor))
        return result
    for count in counts:
        view.line(f"round {looks.index(count) + 1} of at most {len(looks)}: {count} seeds")
        result = sweep(words(count), command, retry_failed=retry_failed, **options)
        if result.interrupted:
            return result
        if result.exit_code:
            view.line(_why_not(result))
            return result
        look = rule.look(store, result.final_names, looks)
        ending = _stopped(look, count, looks)
        if result.record is not None or count not in past_counts:
            facts = {"looks": list(looks), "seeds": count, "stopped": ending, **look.facts}
            _write(result, store, command, executor, facts | grid.facts)
        view.line(f"{count} seeds: {look.text}{_ENDS[ending]}")
        if ending:
            return result
    raise AssertionError("the last look stops")


class _Grid:
    """The cells of a sweep with all seeds of its last round.

    Args:
        overrides: Overrides of the runs.
        tune: Keys whose values trials choose; None if no key is tuned.
        config_dir: Second folder of config groups.

    Attributes:
        configs: The configs of the runs. If trials choose values, the first values are used in
            place of the chosen ones, so that all cells have the same.
        store: The store with the runs.
    """

    def __init__(
        self, overrides: Sequence[str], tune: TuneOptions | None, config_dir: str | Path | None
    ) -> None:
        self._tuner = None if tune is None else Tuner.of(overrides, tune, config_dir)
        if self._tuner is None:
            self.configs = expand(overrides, config_dir)
        else:
            self.configs = self._tuner.finals(chosen=False)
        self.store = Store(self.configs[0].store)
        self._baseline: set[str] = set()
        self._baseline_cells: set[str] = set()

    def set_baseline(self, baseline: set[str]) -> None:
        """Set the runs of the baseline, which is the only cell that several sweeps may look at.

        Args:
            baseline: Their names, as in :attr:`configs`.
        """
        self._baseline = baseline
        if self._tuner is None:
            return
        self._baseline_cells = {
            self._tuner.key(cell)
            for cell in self._tuner.cells
            if baseline & {config.run_name for config in self._tuner.final_configs(cell)}
        }
        self._tuner.settle(self.store)  # from now on, cells have their chosen values

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for a look's record by which a later sweep recognizes the same cells."""
        if self._tuner is None:
            return {}
        return {"tuned": {"cells": sorted(self._keys), "protocol": self._tuner.protocol}}

    @property
    def _keys(self) -> set[str]:
        """Hashes of the tuned cells that are compared with the baseline."""
        if self._tuner is None:
            return set()
        return {self._tuner.key(cell) for cell in self._tuner.cells} - self._baseline_cells

    def refuse_other(self, record: Record, looks: tuple[int, ...]) -> bool:
        """Refuse this sweep if an earlier one has looked at the same cells in another way.

        Returns:
            True if the sweep of ``record`` has looked at these cells.

        Raises:
            UserError: It declared other looks, or chose values from other trials.
        """
        head = record.head
        until = head["until"]
        entry = until.get("tuned") or {}
        names = {cell["name"] for cell in head["cells"]}
        is_same = bool(self._keys & {*entry.get("cells", ())})
        if not is_same and not names & self._compared_names():
            return False
        if tuple(until["looks"]) != looks:
            old_looks = until["looks"]
            raise UserError(
                f"sweep {record.name} has looked at these runs with {old_looks[0]} to "
                f"{old_looks[-1]} seeds declared: use the same seeds and --max-seeds, or "
                "another store"
            )
        if is_same and self._tuner is not None and entry.get("protocol") != self._tuner.protocol:
            raise UserError(
                f"sweep {record.name} has looked at these cells tuned with "
                f"{entry.get('protocol')}, but this sweep has {self._tuner.protocol}: other trials "
                "may choose other values, for which no looks were declared; use another store"
            )
        return True

    def _compared_names(self) -> set[str]:
        """Return the names of the runs that are compared with the baseline, as far as known."""
        if self._tuner is None:
            return {config.run_name for config in self.configs} - self._baseline
        return {
            config.run_name
            for cell in self._tuner.cells
            if cell.chosen is not None and self._tuner.key(cell) not in self._baseline_cells
            for config in self._tuner.final_configs(cell)
        }

    def final_names(self, seeds: Sequence[int]) -> list[str]:
        """Return the names of the runs with these seeds, at which a round looks."""
        configs = self.configs if self._tuner is None else self._tuner.finals(chosen=True)
        return [config.run_name for config in configs if config.seed in seeds]

    def described(self, executor: Mapping[str, Any]) -> str:
        """Describe in one line how many runs all rounds train at most, and how long it may take."""
        if self._tuner is None:
            cells, kinds = plan(self.configs, self.store), ""
        else:
            tuned_plan = planned_with(self._tuner, self.store)
            cells = tuned_plan.whole
            trials = len(tuned_plan.trials.cells) + len(tuned_plan.unproposed.cells)
            finals = len(cells.cells) - trials
            kinds = f" ({counted(trials, 'trial')} and {finals} final)"
        with make(executor) as instance:
            slots = len(instance.allocate(len(cells.todo))) if cells.todo else 0
        return f"at most {cells.counted()}{kinds}; {cells.estimate(slots)}"


def _why_not(result: SweepResult) -> str:
    """Return the reason why a failed sweep adds no seeds."""
    failures = result.failed or result.plan.of_state("failed", "unreadable")
    if result.undecided and not failures:
        return "no seeds are added while a cell has no chosen value"
    return "no seeds are added while runs have failed: --retry-failed trains them again"


def _stopped(look: Look, count: int, looks: tuple[int, ...]) -> str:
    """Return the reason why no seeds are added after a look; empty if seeds are added."""
    return "narrow" if look.narrow else "max-seeds" if count == looks[-1] else ""


_ENDS = {
    "": "; more seeds are added",
    "narrow": "; no more seeds are needed",
    "max-seeds": "; --max-seeds is reached",
}


def _seeds(configs: Sequence[Config]) -> list[int]:
    return list(dict.fromkeys(config.seed for config in configs))


def _seeds_of(configs: Sequence[Config], most: int) -> list[int]:
    """Return the seeds of the last round: those of the grid, then the numbers after the largest.

    Raises:
        UserError: The grid has fewer than two seeds, more than ``most``, or different seeds in
            different cells.
    """
    seeds = _seeds(configs)
    if len(seeds) < 2:
        raise UserError("--until needs at least two seeds to start with, such as seed=range(0,3)")
    if most < len(seeds):
        raise UserError(
            f"--max-seeds {most} is below the {len(seeds)} seeds of the grid: use at least "
            f"{len(seeds)}"
        )
    if len(configs) % len(seeds) or len({config.store for config in configs}) > 1:
        raise UserError("--until needs the same seeds in each cell, and one store")
    new_seeds = range(max(seeds) + 1, max(seeds) + 1 + most - len(seeds))
    return [*seeds, *new_seeds]


def _taken(store: Store, grid: _Grid, looks: tuple[int, ...]) -> set[int]:
    """Return the looks that earlier sweeps have taken at the cells of a grid.

    Raises:
        UserError: An earlier sweep declared other looks, so that the overall error rate would
            exceed 5 %.
    """
    old_records = [record for record in records(store) if record.head.get("until")]
    return {
        record.head["until"]["seeds"] for record in old_records if grid.refuse_other(record, looks)
    }


def _write(
    result: SweepResult,
    store: Store,
    command: Sequence[str],
    executor: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Write a look to the record of its round, which is created if the round trained nothing."""
    record = result.record or _without_look(store, command, result)
    if record is None:
        record = Record.begin(store, result.plan, command, executor, collect(command))
    if record.head["ended"] is None:
        record.close("complete")
    result.record = record
    record.annotate(until=facts)


def _without_look(store: Store, command: Sequence[str], result: SweepResult) -> Record | None:
    """Return the record of a round that was killed between its last run and its look."""
    names = {cell.name for cell in result.plan.cells}
    for record in reversed(records(store)):
        head = record.head
        is_same = names == {cell["name"] for cell in head["cells"]}
        if is_same and head["command"] == list(command) and "until" not in head:
            return record
    return None


def described(until: dict[str, Any]) -> str:
    """Describe the last look at a sweep in one line, from its record."""
    looks = until["looks"]
    return (
        f"look {looks.index(until['seeds']) + 1} of {len(looks)}, "
        f"{counted(until['seeds'], 'seed')}: {until.get('text', '')}{_ENDS[until['stopped']]}"
    )
