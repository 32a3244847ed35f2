"""The plan of a sweep, made by :func:`plan`: each cell's state and estimated time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import median
from typing import Any, Literal, get_args

from normbench.components import with_newer_keys
from normbench.config import Config
from normbench.formats import counted, duration, failure
from normbench.machine import host_name
from normbench.store.differences import as_overrides, differences
from normbench.store.provenance import own_changes, own_code, own_data
from normbench.store.store import Run, Store, StoreError
from normbench.sweep.cell import RESULTS, CellResult

State = Literal[
    "finished", "diverged", "running", "interrupted", "failed", "unreadable", "invalid", "missing"
]

#: The states in the order in which counts list them.
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class PlannedCell:
    """One run of a sweep, as it is in the store before the sweep begins.

    Attributes:
        config: The config of the run.
        name: The name of its folder.
        state: ``interrupted`` runs continue from their checkpoint; ``running`` ones are being
            trained by another process; ``unreadable`` ones have damaged files; ``invalid`` ones
            cannot be trained.
        todo: True if the sweep trains the cell.
        epochs: Number of completed epochs.
        reason: Why it failed, is unreadable or invalid, or which process is training it.
        seconds: Estimated remaining seconds; None if unknown.
    """

    config: Config
    name: str
    state: State = "missing"
    todo: bool = True
    epochs: int = 0
    reason: str = ""
    seconds: float | None = None

    @cached_property
    def program(self) -> str:
        """A key, equal for two cells if and only if they can share a compiled loop."""
        from normbench.engine.reuse import program

        return program(self.config)


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a sweep, in the order of the grid."""

    cells: tuple[PlannedCell, ...]

    @property
    def todo(self) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.todo]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells in each state that occurs."""
        state_counts = Counter(cell.state for cell in self.cells)
        return {state: state_counts[state] for state in STATES if state_counts[state]}

    @cached_property
    def differs(self) -> list[str]:
        """For each cell, its values of differing keys that names do not show."""
        diffs = differences([cell.config.to_dict() for cell in self.cells])
        return [as_overrides(difference) for difference in diffs]

    def described(self, name: str) -> str:
        """Return the name of a cell followed by its values of the keys in which cells differ."""
        return f"{name}  {self._differs_by_name[name]}".rstrip()

    @cached_property
    def _differs_by_name(self) -> dict[str, str]:
        return {cell.name: text for cell, text in zip(self.cells, self.differs, strict=True)}

    def of_state(self, *states: State) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.state in states]

    def without(self, problems: Mapping[str, str]) -> SweepPlan:
        """Return the plan with the cells named in ``problems`` marked as invalid."""
        return SweepPlan(
            tuple(
                replace(c, state="invalid", todo=False, reason=problems[c.name], seconds=None)
                if c.name in problems
                else c
                for c in self.cells
            )
        )

    def seconds(self, slots: int) -> tuple[float, int]:
        """Estimate the time that the sweep takes on a number of slots.

        Returns:
            The seconds for the cells with an estimate, distributed over the slots; and the number
            of cells without one.
        """
        durations = [cell.seconds for cell in self.todo if cell.seconds is not None]
        total = max([sum(durations) / max(slots, 1), *durations], default=0.0)
        return total, len(self.todo) - len(durations)

    def estimate(self, slots: int) -> str:
        """Describe how long the sweep may take."""
        seconds, unknown_count = self.seconds(slots)
        if not self.todo:
            return "nothing to train"
        if not seconds:
            return "duration unknown (no similar run in the store)"
        suffix = f", and {unknown_count} of unknown length" if unknown_count else ""
        return f"about {duration(seconds)}{suffix}"

    def counted(self, results: Mapping[str, CellResult] | None = None) -> str:
        """Count the runs in one line: started ones by result, the others by state.

        Args:
            results: Results of cells by name.
        """
        results = results or {}
        outcomes = Counter(result.result for result in results.values())
        states = Counter(cell.state for cell in self.cells if cell.name not in results)
        outcomes["skipped"] += states.pop("finished", 0) + states.pop("diverged", 0)
        words = {"missing": "to train", "interrupted": "to resume"}
        counts = [f"{outcomes[result]} {result}" for result in RESULTS if outcomes[result]]
        counts += [f"{number} {words.get(state, state)}" for state, number in states.items()]
        return f"{counted(len(self.cells), 'run')}: " + ", ".join(counts)


def plan(
    configs: Sequence[Config], store: Store, retry_failed: bool = False, again: bool = False
) -> SweepPlan:
    """Look up the state of each cell in the store, and estimate its time from earlier runs.

    Only files are read: no framework is imported, and 2,000 cells take a few seconds.

    Args:
        configs: The configs of the cells, with distinct run names.
        store: The store with the runs.
        retry_failed: Also train the cells that failed before.
        again: Train all cells from their first step.
    """
    cells = [_cell(config, store, retry_failed) for config in configs]
    if again:
        cells = [_from_first_step(cell) for cell in cells]
    speeds = Speeds(store)
    return SweepPlan(
        tuple(
            replace(cell, seconds=speeds.seconds(cell.config, cell.config.epochs - cell.epochs))
            if cell.todo
            else cell
            for cell in cells
        )
    )


def _cell(config: Config, store: Store, retry_failed: bool) -> PlannedCell:
    run = store.run(config)
    try:
        state = run.status
        if state == "missing":
            return PlannedCell(config, run.name, "missing", todo=True)
        if state in ("finished", "diverged"):
            return PlannedCell(config, run.name, state, todo=False, epochs=config.epochs)
        epochs = int((run.last_metrics() or {}).get("epoch", 0))
        reason = _reason(run, state)
    except StoreError as error:
        return PlannedCell(config, run.name, "unreadable", todo=retry_failed, reason=str(error))
    # A running cell is tried last: by then its process may have died.
    todo = state != "failed" or retry_failed
    return PlannedCell(config, run.name, state, todo, epochs, reason)


def _from_first_step(cell: PlannedCell) -> PlannedCell:
    """Return a cell as it is once its folder is set aside; a running cell keeps its folder."""
    if cell.state in ("missing", "running"):
        return cell
    return PlannedCell(cell.config, cell.name, reason=f"{cell.state}, to be set aside")


def _reason(run: Run, state: str) -> str:
    if state == "failed":
        error = (run.meta or {}).get("error")
        return failure(error) if error else "failed"
    if state == "running":
        owner = run.owner or {}
        return f"trained by process {owner.get('pid')} on {owner.get('host')}"
    return ""


def other_versions(cells: Iterable[PlannedCell], store: Store, now: Mapping[str, Any]) -> list[str]:
    """Compare the commit and the package versions of the complete cells with the current ones.

    Args:
        cells: The cells of a plan.
        store: The store with the runs.
        now: The provenance of this process: see :func:`normbench.store.provenance.collect`.

    Returns:
        A line for each difference, such as ``5 of 12 finished runs trained by commit 1a2b3c4, but
        this is commit 5d6e7f8``.
    """
    complete = [cell for cell in cells if cell.state in ("finished", "diverged")]
    commits: Counter[str] = Counter()
    versions: Counter[tuple[str, str]] = Counter()
    current = _commit(now.get("git"))
    for cell in complete:
        meta = store.run(cell.name).meta or {}
        if _commit(meta.get("git")) != current:
            commits[_commit(meta.get("git"))] += 1
        for package, number in (meta.get("versions") or {}).items():
            if now["versions"].get(package) not in (number, None):
                versions[(package, number)] += 1
    scope = f"of {len(complete)} finished runs"
    lines = [
        f"{count} {scope} trained by {commit}, but this is {current}"
        for commit, count in commits.items()
    ]
    return lines + [
        f"{count} {scope} trained with {package} {number}, but this is {now['versions'][package]}"
        for (package, number), count in sorted(versions.items())
    ]


def changed_components(cells: Iterable[PlannedCell], store: Store) -> list[str]:
    """Compare the user's own code and data of the complete cells with the current ones.

    Args:
        cells: The cells of a plan.
        store: The store with the runs.

    Returns:
        A line for each change, and for each data set that cannot be read.
    """
    complete = [cell for cell in cells if cell.state in ("finished", "diverged")]
    data: dict[str, dict[str, str]] = {}
    problems: dict[str, None] = {}
    changes: Counter[str] = Counter()
    for cell in complete:
        current = own_code(vars(cell.config))
        key = json.dumps(cell.config.dataset, sort_keys=True)
        if key not in data:
            data[key] = {}
            try:
                data[key] = own_data(cell.config.dataset)
            except Exception as error:  # the user's own code may raise anything
                problems[f"cannot tell whether the data set has changed: {error}"] = None
        current |= data[key]
        if current:
            old_code = (store.run(cell.name).meta or {}).get("own")
            changes.update(own_changes(old_code, current))
    scope = f"of {len(complete)} complete runs"
    lines = [
        f"{count} {scope}: {line} (--again retrains the sweep)" for line, count in changes.items()
    ]
    return [*lines, *problems]


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "an installed normbench"
    return f"commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}"


#: Largest number of earlier runs that an estimate is based on.
SAMPLE = 5

_NAME = re.compile(r"(?P<kind>.+)-b(?P<batch>\d+)-s\d+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Speed:
    """The time that earlier runs of the same kind took.

    Attributes:
        epoch: Seconds of training and evaluating one epoch.
        start: Seconds of everything else: building, compiling, evaluating the test set.
    """

    epoch: float
    start: float


class Speeds:
    """Estimates the time of a run from earlier runs in a store that this machine trained.

    Runs are of the same kind if they have the same network, normalization, data set, precision and
    backend, including options. The batch size may differ if no run has the same one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.host = host_name()
        self._names: dict[str, dict[int, list[str]]] = {}
        for run in store.runs():
            match = _NAME.fullmatch(run.name)
            if match:
                batches = self._names.setdefault(match["kind"], {})
                batches.setdefault(int(match["batch"]), []).append(run.name)
        self._read = cache(self._measured)
        self._speeds: dict[str, Speed | None] = {}

    def seconds(self, config: Config, epochs: int) -> float | None:
        """Estimate the seconds for ``epochs`` epochs of a run; None if there is no such run."""
        kind = f"{config.dataset['name']}-{config.arch['name']}-{config.norm_name}"
        batches = self._names.get(kind, {})
        # The same batch size comes first, then those that differ by the smallest factor.
        for batch in sorted(batches, key=lambda b: max(b, config.batch) / min(b, config.batch)):
            speed = self._speed(config, kind, batch)
            if speed is not None:
                return speed.start + epochs * speed.epoch
        return None

    def _speed(self, config: Config, kind: str, batch: int) -> Speed | None:
        settings = _compared(config.to_dict())
        key = repr((kind, batch, settings))
        if key not in self._speeds:
            speeds = []
            for name in reversed(self._names[kind][batch]):
                entry = self._read(name)
                if entry is not None and entry[0] == settings:
                    speeds.append(entry[1])
                if len(speeds) == SAMPLE:
                    break
            self._speeds[key] = (
                Speed(median(s.epoch for s in speeds), median(s.start for s in speeds))
                if speeds
                else None
            )
        return self._speeds[key]

    def _measured(self, name: str) -> tuple[dict[str, Any], Speed] | None:
        run: Run = self.store.run(name)
        try:
            summary, meta, config = run.summary, run.meta, run.config
            if not summary or not meta or not config or meta.get("host") != self.host:
                return None
            rows = run.metrics()
        except StoreError:
            return None
        if not rows or summary["status"] != "finished" or not summary.get("wall_seconds"):
            return None
        epochs = [(row.get("train_seconds") or 0) + (row.get("eval_seconds") or 0) for row in rows]
        start = max(0.0, summary["wall_seconds"] - sum(epochs))
        return _compared(config), Speed(median(epochs), start)


def _compared(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that are equal in runs of the same kind."""
    keys = ("dataset", "arch", "norm", "precision", "backend")
    settings = {key: tree.get(key) for key in keys}
    if isinstance(dataset := settings["dataset"], Mapping):
        settings["dataset"] = with_newer_keys(dataset)
    return settings
