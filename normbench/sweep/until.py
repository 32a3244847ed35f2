"""Sweeps that add seeds until their intervals are narrow: :func:`sweep_until`.

A round is an ordinary sweep over the whole grid with the seeds so far: finished runs are skipped.
After each round a :class:`Rule` looks at the results. The numbers of seeds at which it looks are
declared before the first round, as the rule's statistics need, and kept with each look in the
record of the round, under ``until`` in ``sweep.json``:

    looks       numbers of seeds at which the sweep is looked at
    seeds       number of seeds at this look
    stopped     "" where seeds are added, else "narrow" or "max-seeds"
    width, baseline, metric, comparisons   as the rule says
"""

from __future__ import annotations

from collections.abc import Sequence
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
from normbench.sweep.plan import plan
from normbench.sweep.record import Record, records
from normbench.sweep.sweep import SweepResult, sweep
from normbench.sweep.tune import TuneOptions


class Look(Protocol):
    """The result of looking at a round."""

    @property
    def narrow(self) -> bool:
        """Whether each interval is narrow enough."""
        ...

    @property
    def text(self) -> str:
        """The result in a line."""
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
        """Return the numbers of seeds at which a sweep is looked at, from ``first`` to ``most``."""
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
    """Train a grid with more and more seeds until a rule is content or ``max_seeds`` are trained.

    Looks that an earlier sweep of the same schedule has taken are not taken again, except for the
    last: the same command goes on where it was.

    Args:
        overrides, command, config_dir, retry_failed, skip_invalid, tune, view: As for
            :func:`normbench.sweep.sweep.sweep`.
        rule: Decides after each round whether seeds are added.
        max_seeds: Seeds of each cell in the last round.
        dry_run: Show the plan of the next round and the largest number of runs, and stop.

    Raises:
        UserError: As for :func:`normbench.sweep.sweep.sweep`; or the grid does not fit the rule.
    """
    view = SweepView() if view is None else view
    executor, cell_overrides = choose(overrides, config_dir)
    configs = expand(cell_overrides, config_dir)
    seeds = _seeds_of(configs, max_seeds)
    baseline = rule.baseline_runs(configs)
    store = Store(configs[0].store)
    looks = rule.looks(len(_seeds(configs)), max_seeds)
    taken = _taken(store, {config.run_name for config in configs} - baseline, looks)

    def words(count: int) -> list[str]:
        fixed = [text for text in overrides if parse([text])[0].key_or_group != "seed"]
        return [*fixed, f"seed={','.join(map(str, seeds[:count]))}"]

    options: dict[str, Any] = {
        "config_dir": config_dir,
        "skip_invalid": skip_invalid,
        "tune": tune,
        "view": view,
    }
    remaining = [count for count in looks if count >= max(taken, default=0)]
    if dry_run:
        result = sweep(words(remaining[0]), command, dry_run=True, **options)
        _, most = choose(words(looks[-1]), config_dir)
        largest = plan(expand(most, config_dir), store)
        with make(executor) as made:
            slots = len(made.allocate(len(largest.todo))) if largest.todo else 0
        view.line(
            f"round {looks.index(remaining[0]) + 1} of at most {len(looks)}: looks after "
            f"{', '.join(map(str, looks))} seeds"
        )
        if tune is None:
            view.line(f"at most {largest.counted()}; {largest.estimate(slots)}")
        else:
            view.line(f"at most {counted(len(largest.cells), 'final run')}")
        return result
    for count in remaining:
        view.line(f"round {looks.index(count) + 1} of at most {len(looks)}: {count} seeds")
        result = sweep(words(count), command, retry_failed=retry_failed, **options)
        if result.interrupted:
            return result
        if result.exit_code:
            view.line("no seeds are added while runs have failed: --retry-failed trains them again")
            return result
        found = rule.look(store, [cell.name for cell in result.plan.cells], looks)
        stopped = "narrow" if found.narrow else "max-seeds" if count == looks[-1] else ""
        facts = {"looks": list(looks), "seeds": count, "stopped": stopped, **found.facts}
        if result.record is not None or count not in taken:
            _write(result, store, command, executor, facts)
        view.line(f"{count} seeds: {found.text}{_ENDS[stopped]}")
        if stopped:
            return result
    raise AssertionError("the last look stops")


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
        UserError: The grid has fewer than two seeds, more than ``most``, or not the same in each
            cell.
    """
    given = _seeds(configs)
    if len(given) < 2:
        raise UserError("--until needs at least two seeds to begin with, as seed=range(0,3)")
    if most < len(given):
        raise UserError(
            f"--max-seeds {most} is below the {len(given)} seeds of the grid: use at least "
            f"{len(given)}"
        )
    if len(configs) % len(given) or len({config.store for config in configs}) > 1:
        raise UserError("--until needs the same seeds in each cell, and one store")
    after = range(max(given) + 1, max(given) + 1 + most - len(given))
    return [*given, *after]


def _taken(store: Store, names: set[str], looks: tuple[int, ...]) -> set[int]:
    """Return the looks that earlier sweeps have taken at any of these runs.

    Raises:
        UserError: An earlier sweep declared other looks. The error of all looks together would be
            above 5 %.
    """
    taken: set[int] = set()
    for record in records(store):
        head = record.head
        until = head.get("until")
        if not until or not names & {cell["name"] for cell in head["cells"]}:
            continue
        if tuple(until["looks"]) != looks:
            before = until["looks"]
            raise UserError(
                f"sweep {record.name} has looked at these runs with {before[0]} to {before[-1]} "
                "seeds declared: use the same seeds and --max-seeds, or another store"
            )
        taken.add(until["seeds"])
    return taken


def _write(
    result: SweepResult,
    store: Store,
    command: Sequence[str],
    executor: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Write a look into the record of its round; a round without training gets one."""
    record = result.record
    if record is None:
        record = Record.begin(store, result.plan, command, executor, collect(command))
        record.close("complete")
        result.record = record
    record.annotate(until=facts)


def described(until: dict[str, Any]) -> str:
    """Return in a line how the last look at a sweep ended, from its record."""
    looks = until["looks"]
    return (
        f"look {looks.index(until['seeds']) + 1} of {len(looks)}, "
        f"{counted(until['seeds'], 'seed')}: {until.get('text', '')}{_ENDS[until['stopped']]}"
    )
