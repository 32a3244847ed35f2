"""The plan of a sweep: each cell with its state, what is to be done, and how long it may take."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import median
from typing import Any, Literal

from normbench.config import Config
from normbench.formats import failure
from normbench.store.differences import as_overrides, differences
from normbench.store.provenance import own_changes, own_code, own_data
from normbench.store.store import Run, Store, StoreError

State = Literal[
    "finished", "diverged", "interrupted", "running", "failed", "unreadable", "missing", "invalid"
]

#: In the order in which they are counted and told.
STATES: tuple[State, ...] = (
    "finished",
    "diverged",
    "running",
    "interrupted",
    "failed",
    "unreadable",
    "invalid",
    "missing",
)


@dataclass(frozen=True)
class PlannedCell:
    """One run of a sweep before it is begun.

    Attributes:
        config: Of the run.
        name: Of its folder.
        state: ``interrupted`` runs go on from their checkpoint; ``running`` ones belong to another
            process; ``unreadable`` ones have damaged files; ``invalid`` ones cannot be trained.
        todo: Whether the sweep will train it.
        epochs: Completed so far.
        reason: Why it failed, is unreadable or invalid, or who trains it.
        seconds: Estimate of what is left to do; None where nothing is known.
    """

    config: Config
    name: str
    state: State
    todo: bool
    epochs: int = 0
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a sweep, in the order of the grid."""

    cells: tuple[PlannedCell, ...]

    @property
    def todo(self) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.todo]

    @property
    def counts(self) -> dict[str, int]:
        """The states that occur, with how often."""
        counted = Counter(cell.state for cell in self.cells)
        return {state: counted[state] for state in STATES if counted[state]}

    @cached_property
    def differs(self) -> list[str]:
        """Of each cell, its values of the keys that differ and that names do not show."""
        found = differences([cell.config.to_dict() for cell in self.cells])
        return [as_overrides(each) for each in found]

    def of_state(self, *states: State) -> list[PlannedCell]:
        return [cell for cell in self.cells if cell.state in states]

    def without(self, problems: Mapping[str, str]) -> SweepPlan:
        """Mark the cells whose names ``problems`` explains as invalid."""
        return SweepPlan(
            tuple(
                replace(c, state="invalid", todo=False, reason=problems[c.name], seconds=None)
                if c.name in problems
                else c
                for c in self.cells
            )
        )

    def seconds(self, slots: int) -> tuple[float, int]:
        """Estimate the time that all takes on ``slots`` places at once.

        Returns:
            The seconds of the cells whose time is known, spread over the places; and how many
            cells it leaves out because nothing is known.
        """
        known = [cell.seconds for cell in self.todo if cell.seconds is not None]
        total = max([sum(known) / max(slots, 1), *known], default=0.0)
        return total, len(self.todo) - len(known)


def plan(
    configs: Sequence[Config], store: Store, retry_failed: bool = False, again: bool = False
) -> SweepPlan:
    """Look up the state of each cell in the store, and estimate its time from earlier runs.

    Reads files only: no framework is imported, and 2,000 cells take a few seconds.

    Args:
        configs: Of the cells, each with another run name.
        store: Where the runs are kept.
        retry_failed: Whether cells that failed before are to be trained.
        again: Whether all cells are to be trained from their first step.
    """
    cells = [_cell(config, store, retry_failed) for config in configs]
    if again:
        cells = [_anew(cell) for cell in cells]
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
    # One that another process trains is tried last: by then it may have been left behind.
    todo = state != "failed" or retry_failed
    return PlannedCell(config, run.name, state, todo, epochs, reason)


def _anew(cell: PlannedCell) -> PlannedCell:
    """Return a cell as it stands once its folder is set aside; a running one's stays."""
    if cell.state in ("missing", "running"):
        return cell
    return PlannedCell(
        cell.config, cell.name, "missing", True, reason=f"{cell.state}, to be set aside"
    )


def _reason(run: Run, state: str) -> str:
    if state == "failed":
        error = (run.meta or {}).get("error")
        return failure(error) if error else "failed"
    if state == "running":
        owner = run.owner or {}
        return f"trained by process {owner.get('pid')} on {owner.get('host')}"
    return ""


def provenance_mix(cells: Iterable[PlannedCell], store: Store, now: Mapping[str, Any]) -> list[str]:
    """Say which complete cells were written by another commit or by other versions.

    Args:
        cells: Of the plan.
        store: Where the runs are kept.
        now: What :func:`normbench.store.provenance.collect` says of this process.

    Returns:
        A line for each difference, as ``5 of 12 finished cells were trained by commit 1a2b3c4,
        and this is commit 5d6e7f8``; none where all agree.
    """
    complete = [cell for cell in cells if cell.state in ("finished", "diverged")]
    commits: Counter[str] = Counter()
    versions: Counter[tuple[str, str]] = Counter()
    here = _commit(now.get("git"))
    for cell in complete:
        meta = store.run(cell.name).meta or {}
        if _commit(meta.get("git")) != here:
            commits[_commit(meta.get("git"))] += 1
        for package, number in (meta.get("versions") or {}).items():
            if now["versions"].get(package) not in (number, None):
                versions[(package, number)] += 1
    of = f"of {len(complete)} finished cells"
    lines = [
        f"{count} {of} trained by {commit}, and this is {here}" for commit, count in commits.items()
    ]
    return lines + [
        f"{count} {of} trained with {package} {number}, and this is {now['versions'][package]}"
        for (package, number), count in sorted(versions.items())
    ]


def own_mix(cells: Iterable[PlannedCell], store: Store) -> list[str]:
    """Say which complete cells were trained with other code or data of one's own than there is now.

    Args:
        cells: Of the plan.
        store: Where the runs are kept.
    """
    complete = [cell for cell in cells if cell.state in ("finished", "diverged")]
    data: dict[str, dict[str, str]] = {}
    unread: dict[str, None] = {}
    counted: Counter[str] = Counter()
    for cell in complete:
        now = own_code(vars(cell.config))
        key = json.dumps(cell.config.dataset, sort_keys=True)
        if key not in data:
            data[key] = {}
            try:
                data[key] = own_data(cell.config.dataset)
            except Exception as error:  # own code may raise anything
                unread[f"whether the data set has changed is not known: {error}"] = None
        now |= data[key]
        if now:
            recorded = (store.run(cell.name).meta or {}).get("own")
            counted.update(own_changes(recorded, now))
    of = f"of {len(complete)} complete cells"
    changed = [
        f"{count} {of}: {line} (--again trains the sweep anew)" for line, count in counted.items()
    ]
    return [*changed, *unread]


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "an installed normbench"
    return f"commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}"


# --- how long a run may take, from the runs that this machine has left in the store ---------------

#: Earlier runs of one kind that are read; more would cost time and tell little.
SAMPLE = 5

_NAME = re.compile(r"(?P<kind>.+)-b(?P<batch>\d+)-s\d+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Speed:
    """What earlier runs of one kind took.

    Attributes:
        epoch: Seconds of training and evaluating one epoch.
        start: Seconds of everything else: building, compiling, evaluating the test set.
    """

    epoch: float
    start: float


class Speeds:
    """Speeds of the runs of a store that this machine trained.

    A run counts for another if network, normalization, data set, precision and backend are equal,
    options included; the batch size may differ where no run has the same one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.host = socket.gethostname()
        self._names: dict[str, dict[int, list[str]]] = {}
        for run in store.runs():
            match = _NAME.fullmatch(run.name)
            if match:
                batches = self._names.setdefault(match["kind"], {})
                batches.setdefault(int(match["batch"]), []).append(run.name)
        self._read = cache(self._measured)
        self._speeds: dict[str, Speed | None] = {}

    def seconds(self, config: Config, epochs: int) -> float | None:
        """Estimate the seconds of ``epochs`` epochs of a run; None where nothing is known."""
        kind = f"{config.dataset['name']}-{config.arch['name']}-{config.norm_name}"
        batches = self._names.get(kind, {})
        # The same batch size first, then the one that differs by the smallest factor.
        for batch in sorted(batches, key=lambda b: max(b, config.batch) / min(b, config.batch)):
            speed = self._speed(config, kind, batch)
            if speed is not None:
                return speed.start + epochs * speed.epoch
        return None

    def _speed(self, config: Config, kind: str, batch: int) -> Speed | None:
        compared = _compared(config.to_dict())
        key = repr((kind, batch, compared))
        if key not in self._speeds:
            found = []
            for name in reversed(self._names[kind][batch]):
                measured = self._read(name)
                if measured is not None and measured[0] == compared:
                    found.append(measured[1])
                if len(found) == SAMPLE:
                    break
            self._speeds[key] = (
                Speed(median(s.epoch for s in found), median(s.start for s in found))
                if found
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
        each = [(row.get("train_seconds") or 0) + (row.get("eval_seconds") or 0) for row in rows]
        start = max(0.0, summary["wall_seconds"] - sum(each))
        return _compared(config), Speed(median(each), start)


def _compared(tree: dict[str, Any]) -> dict[str, Any]:
    """What two runs must share for the time of one to tell that of the other."""
    keys = ("dataset", "arch", "norm", "precision", "backend")
    return {key: tree.get(key) for key in keys}
