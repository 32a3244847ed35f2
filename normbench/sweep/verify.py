"""Verification of a store: :func:`verify` trains runs again and compares them with their records.

A run is trained into a folder outside the store, by a worker process that has as many threads as
the run had. Where its conditions (processor, threads, versions, …) equal the recorded ones, every
number must be equal to the last bit. Under other conditions rounding differs, and the differences
grow during training; a run then verifies if they stay within what the other seeds of its cell
differ by.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from normbench.config import Config
from normbench.engine import threads
from normbench.errors import NormbenchError, UserError
from normbench.formats import counted
from normbench.store import verification
from normbench.store.provenance import changed_since, utc_now
from normbench.store.store import Run, Store, StoreError, find_run
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Stop, SweepContext
from normbench.sweep.executors.pool import Dispatch, WorkerPool
from normbench.sweep.executors.slots import Slot, on_gpus, visible_gpus
from normbench.sweep.observer import SweepObserver
from normbench.sweep.plan import PlannedCell

SAMPLE = 5
"""Number of runs that are trained again by default."""

LEAST_SEEDS = 2
"""Number of other seeds of a cell below which a run under other conditions is not judged. With two
the spread is of three runs; of fewer it says too little."""

MEASURED_BY_CLOCK = ("images_per_s", "train_seconds", "eval_seconds", "time")
"""Keys of a row of ``metrics.jsonl`` that differ each time a run is trained."""

TESTED = ("test_loss", "test_acc", "best_val_test_loss", "best_val_test_acc")
"""Results in ``summary.json`` that are compared beside the curves, as curves of one value."""

_COMPLETE = ("finished", "diverged")

Curves = dict[str, list[float | None]]
"""The values of each metric, an epoch each."""


@dataclass
class VerifyResult:
    """Result of :func:`verify`.

    Attributes:
        asked: Number of runs that were to be trained again.
        verdicts: For each run that was trained again, its verdict
            (:data:`normbench.store.verification.VERDICTS`).
        failures: For each run that is damaged or could not be trained again, the reason.
        interrupted: A stop was requested before all runs were trained again.
    """

    asked: int
    verdicts: dict[str, str]
    failures: dict[str, str]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """1 if a run does not verify or could not be trained again, else 0.

        A run that cannot be judged contradicts nothing, and leaves it at 0.
        """
        return 1 if self.failures or "differs" in self.verdicts.values() else 0


@dataclass(frozen=True)
class _Job:
    """A run that is trained again."""

    run: Run
    cell: PlannedCell
    slot: Slot
    checksum: str


def verify(
    store: Store,
    names: Sequence[str] | None = None,
    sample: int | None = None,
    seed: int = 0,
    *,
    config_dir: str | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> VerifyResult:
    """Train complete runs of a store again, one after another, and compare them with the record.

    Each comparison is appended to the store's ``verification.json`` at once.

    Args:
        store: Store with the runs. None of its runs is written to.
        names: Names of the runs to choose from; None for all.
        sample: Number of runs, chosen at random; None for all ``names``, or :data:`SAMPLE` if there
            are none.
        seed: Seed of the choice.
        config_dir: Additional folder with config groups, for runs with components of one's own.
        command: Command line, for the record of the runs in the scratch folder.
        say: Called with a line for each run, and with notes.

    Raises:
        UserError: There is no store, no complete run, or a sample of none.
        StoreError: ``verification.json`` cannot be written.
    """
    if sample is not None and sample < 1:
        raise UserError(f"--sample {sample}: at least 1 run is trained again")
    if seed < 0:
        raise UserError(f"--seed {seed}: a seed is a whole number of at least 0")
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    complete, damaged = _complete(store)
    pool = [name for name in complete if names is None or name in names]
    if not pool and not damaged:
        chosen_from = "that was chosen " if names is not None and complete else ""
        raise UserError(f"no run {chosen_from}in {store.root} is finished: nothing to train again")
    if names is None and sample is None:
        sample = SAMPLE
    chosen = pool if sample is None else _drawn(pool, sample, seed)
    result = VerifyResult(len(chosen), {}, dict(damaged))
    for name, reason in damaged.items():
        say(f"{name}: damaged: {reason}")
    if note := verification.set_damaged_aside(store):
        say(f"note: {note}")
    verification.append(store, [])  # a store that cannot be written to is found out now
    jobs = []
    for name in chosen:
        try:
            jobs.append(_job(store.run(name), store, config_dir))
        except NormbenchError as error:
            result.failures[name] = " ".join(str(error).split())
            say(f"{name}: cannot be trained again: {result.failures[name]}")
    with tempfile.TemporaryDirectory(prefix="normbench-verify-") as scratch, Stop() as stop:
        _train(jobs, Store(scratch), store, result, stop, [*command], say)
    result.interrupted = bool(stop.requests)
    return result


def _drawn(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw runs at random; the same seed draws the same runs of the same store."""
    return sorted(random.Random(seed).sample(list(names), min(count, len(names))))


def _complete(store: Store) -> tuple[list[str], dict[str, str]]:
    """Return the names of the complete runs, and the damaged runs with the reasons."""
    names: list[str] = []
    damaged: dict[str, str] = {}
    for run in store.runs():
        try:
            if run.verify() in _COMPLETE:
                names.append(run.name)
        except StoreError as error:
            damaged[run.name] = " ".join(str(error).split()).replace(f"{run.path}/", "")
    return names, damaged


def _job(run: Run, store: Store, config_dir: str | None) -> _Job:
    """Read the record of a run, and decide how it is trained again.

    Nothing of a run folder is imported before :meth:`Config.from_run` has allowed it.

    Raises:
        NormbenchError: A file is damaged, the config is not the one of the run's signature, the
            run names a component that no config group has, or its own code or data changed.
    """
    recorded, meta = run.config or {}, run.meta or {}
    config = Config.from_run(recorded, config_dir, f"run {run.name}")
    if run.name.rpartition("-")[2] not in (config.signature, config.earlier_signature):
        raise UserError(
            f"its config has the signature {config.signature}, not that of its name: it was edited"
        )
    if changes := changed_since(recorded, meta.get("own"), config):
        raise UserError("; ".join(changes))
    if config.init:
        _check_init(config, meta, store)
    # A logger would send the numbers to the place where those of the recorded run are. The weights
    # that a run started from are in the store, wherever it was when the run was trained.
    config = replace(config, logger={}, store=str(store.root))
    cell = PlannedCell(config, config.run_name)
    return _Job(run, cell, _slot(config, meta), run.metrics_checksum())


def _check_init(config: Config, meta: Mapping[str, Any], store: Store) -> None:
    """Check that the weights that a run started from are still those of the run it names.

    Raises:
        UserError: There is no such run, or it was trained again and has other weights.
    """
    source = find_run(config.init, store.root)
    recorded = (meta.get("init") or {}).get("weights_sha256")
    if (source.summary or {}).get("weights_sha256") != recorded:
        raise UserError(f"it started from other weights than {source.name} has now")


def _slot(config: Config, meta: Mapping[str, Any]) -> Slot:
    """Return a slot with the kind of device and the number of threads that a run had."""
    devices = " ".join(meta.get("devices") or []).lower()
    if ("gpu" in devices or "cuda" in devices) and (gpus := visible_gpus()):
        return on_gpus(gpus[:1], [1], 1)[0]
    cores = threads.core_ids()
    wanted = (meta.get("engine") or {}).get("threads")
    environment = {"CUDA_VISIBLE_DEVICES": "-1"}
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= 4096:
        wanted = len(cores)
    if config.backend == "tensorflow":  # it computes with more threads than cores, too
        environment["TF_NUM_INTRAOP_THREADS"] = str(wanted)
    return Slot(f"cpu {wanted}", "cpu", tuple(cores[:wanted]), environment)


class _Comparing(SweepObserver):
    """Compares each run with its record as soon as it was trained again."""

    def __init__(self, jobs: Sequence[_Job], ended: Callable[[_Job, CellResult], None]) -> None:
        self._jobs = {job.cell.name: job for job in jobs}
        self._ended = ended

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._ended(self._jobs[cell.name], result)


def _train(
    jobs: Sequence[_Job],
    scratch: Store,
    store: Store,
    result: VerifyResult,
    stop: Stop,
    command: list[str],
    say: Callable[[str], None],
) -> None:
    """Train the runs one after another, those with the same slot and program side by side."""

    def ended(job: _Job, outcome: CellResult) -> None:
        name = job.run.name
        if outcome.result == "interrupted":
            return
        if outcome.result not in ("trained", "diverged"):
            result.failures[name] = outcome.error
            say(f"{name}: cannot be trained again: {outcome.error}")
            return
        found = compare(job.run, scratch.run(job.cell.name), store, job.checksum)
        verification.append(store, [found])
        result.verdicts[name] = found["verdict"]
        say(f"{name}: {found['reason']}")

    context = SweepContext(scratch, command)
    workers = WorkerPool()
    try:
        for slot in dict.fromkeys(job.slot.name for job in jobs):
            group = [job for job in jobs if job.slot.name == slot]
            group.sort(key=lambda job: job.cell.program)
            cells = [job.cell for job in group]
            observer = _Comparing(group, ended)
            Dispatch(cells, [group[0].slot], workers, context, observer, stop, 0).run()
            if slot in workers:
                workers.end(slot)
            if stop.requests:
                return
    finally:
        workers.close()


# --- the comparison -------------------------------------------------------------------------------


def compare(run: Run, again: Run, store: Store, checksum: str | None = None) -> dict[str, Any]:
    """Compare a run with the same run trained again; return a record of the comparison.

    Args:
        run: The recorded run.
        again: The run trained again.
        store: Store with the other seeds of the run's cell.
        checksum: Checksum of the metrics when training began; that of the present ones by default.

    Returns:
        A :data:`normbench.store.verification.VERIFICATION`.
    """
    meta, meta_again = run.meta or {}, again.meta or {}
    summary, summary_again = run.summary or {}, again.summary or {}
    curves, curves_again = _curves(run), _curves(again)
    weights = _equal_weights(summary, summary_again)
    unequal = conditions(meta, meta_again)
    largest = _differences(curves, curves_again)
    same_end = all(summary.get(key) == summary_again.get(key) for key in ("status", "parameters"))
    found = {
        "run": run.name,
        "verdict": "equal",
        "time": utc_now(),
        "record": checksum or run.metrics_checksum(),
        "differences": largest,
        "conditions": unequal,
        "weights": weights,
        **(meta_again.get("git") or {"commit": None, "dirty": None}),
        "versions": meta_again.get("versions") or {},
        "processor": meta_again.get("processor"),
        "threads": (meta_again.get("engine") or {}).get("threads"),
    }
    epochs = len(curves.get("epoch", []))
    if curves == curves_again and same_end and weights is not False:
        hashed = "and weights" if weights else "(it has no weights' hash)"
        under = f"; other conditions: {'; '.join(unequal)}" if unequal else ""
        length = counted(epochs, "epoch")
        return found | {"reason": f"equal to the last bit: metrics of {length} {hashed}{under}"}
    if not unequal:
        words = _first_difference(curves, curves_again, summary, summary_again, weights)
        code = _other_code(meta, meta_again)
        return found | {"verdict": "differs", "reason": f"does not verify: {words}{code}"}
    return found | _judged(run, store, curves, curves_again, largest, unequal, same_end)


def conditions(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return how the conditions of two trainings differ where that may change the rounding.

    Args:
        recorded: ``meta.json`` of the recorded run.
        here: ``meta.json`` of the run trained again.

    Returns:
        A phrase for each difference, such as ``4 threads recorded, 2 here``.
    """
    found = []
    engine, engine_here = recorded.get("engine") or {}, here.get("engine") or {}
    for name, then, now in (
        ("processor", recorded.get("processor"), here.get("processor")),
        *(
            (key, engine.get(key), engine_here.get(key))
            for key in ("backend", "threads", "shards", "jit_compile")
        ),
        ("devices", _kinds(recorded), _kinds(here)),
    ):
        if then != now:
            found.append(f"{name} {_shown(then)} recorded, {_shown(now)} here")
    versions, versions_here = recorded.get("versions") or {}, here.get("versions") or {}
    # A run that a backend other than JAX trained computed nothing with JAX.
    unused = {"jax"} if engine.get("backend") != "jax" else set()
    for name in sorted({*versions, *versions_here} - unused):
        if versions.get(name) != versions_here.get(name):
            then, now = _shown(versions.get(name)), _shown(versions_here.get(name))
            found.append(f"{name} {then} recorded, {now} here")
    if not (engine.get("deterministic") and engine_here.get("deterministic")):
        found.append("the device computes in no fixed order")
    if _last_split(recorded) != _last_split(here):
        found.append("memory was short for one of them, which split its batches")
    hosts = {session.get("host") for session in recorded.get("sessions") or []}
    if len(hosts) > 1:
        found.append(f"recorded on {len(hosts)} hosts in turn")
    return found


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _kinds(meta: Mapping[str, Any]) -> str | None:
    """Return ``cpu`` or ``gpu``; names of GPUs differ in their numbers alone."""
    devices = " ".join(meta.get("devices") or []).lower()
    return None if not devices else "gpu" if "gpu" in devices or "cuda" in devices else "cpu"


def _last_split(meta: Mapping[str, Any]) -> int:
    return ((meta.get("micro_batches") or [{}])[-1]).get("count", 1)


def _curves(run: Run) -> Curves:
    """Return the metrics of a run that do not come from a clock, and those of its test."""
    rows, summary = run.metrics(), run.summary or {}
    keys = dict.fromkeys(key for row in rows for key in row if key not in MEASURED_BY_CLOCK)
    curves: Curves = {key: [row.get(key) for row in rows] for key in keys}
    return curves | {key: [summary.get(key)] for key in TESTED}


def _equal_weights(summary: Mapping[str, Any], again: Mapping[str, Any]) -> bool | None:
    """Return whether the weights' hashes are equal; None if neither run has one."""
    pair = summary.get("weights_sha256"), again.get("weights_sha256")
    return None if pair == (None, None) else pair[0] == pair[1]


def _difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Return the largest difference of two curves; infinite where one of them lacks a value."""
    if len(one) != len(other):
        return math.inf
    largest = 0.0
    for a, b in zip(one, other, strict=True):
        if isinstance(a, int | float) and isinstance(b, int | float):
            largest = max(largest, abs(a - b))
        elif a != b:
            return math.inf
    return largest


def _differences(curves: Curves, again: Curves) -> dict[str, float]:
    """Return the largest difference of each curve that either run has."""
    keys = dict.fromkeys([*curves, *again])
    return {key: _difference(curves.get(key, []), again.get(key, [])) for key in keys}


def _first_difference(
    curves: Curves,
    again: Curves,
    summary: Mapping[str, Any],
    summary_again: Mapping[str, Any],
    weights: bool | None,
) -> str:
    """Say where two runs under equal conditions differ first."""
    endings = {True: ", though the weights are equal", False: "; the weights differ", None: ""}
    ending = endings[weights]
    epochs = max(len(curves.get("epoch", [])), len(again.get("epoch", [])))
    for epoch in range(epochs):
        for key in dict.fromkeys([*curves, *again]):
            then = curves.get(key, [])[epoch : epoch + 1]
            now = again.get(key, [])[epoch : epoch + 1]
            if then != now and key not in TESTED:
                return (
                    f"{key} of epoch {epoch + 1} is {_value(then)} in the record, {_value(now)} "
                    f"here{ending}"
                )
    for key in (*TESTED, "status", "parameters"):
        if summary.get(key) != summary_again.get(key):
            then, now = summary.get(key), summary_again.get(key)
            return f"{key} is {_shown(then)} in the record, {_shown(now)} here{ending}"
    return "the metrics are equal, but the weights differ"


def _value(values: Sequence[Any]) -> str:
    return "missing" if not values else _shown(values[0])


def _other_code(meta: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """Name the commits of two trainings if they are known and differ."""
    then, now = ((each.get("git") or {}).get("commit") for each in (meta, again))
    changed = any((each.get("git") or {}).get("dirty") for each in (meta, again))
    if then and now and then != now:
        return f" (trained at commit {then[:10]}, this is {now[:10]})"
    return " (one of the two was trained with uncommitted changes)" if changed else ""


def _judged(
    run: Run,
    store: Store,
    curves: Curves,
    again: Curves,
    largest: Mapping[str, float],
    unequal: Sequence[str],
    same_end: bool,
) -> dict[str, Any]:
    """Judge differences under other conditions by the spread over the seeds of the run's cell.

    The spread of a curve is the largest difference between two of the runs: the other seeds, and
    the run trained again. The recorded run is left out: numbers that were edited would widen it.
    """
    others = [_curves(other) for other in _other_seeds(run, store)]
    epochs = len(curves.get("epoch", []))
    others = [other for other in others if len(other.get("epoch", [])) == epochs]
    spread = {
        key: max(
            (
                _difference(one.get(key, []), other.get(key, []))
                for index, one in enumerate([*others, again])
                for other in others[:index]
            ),
            default=0.0,
        )
        for key in largest
    }
    words = _beside(largest, spread if len(others) >= LEAST_SEEDS else {})
    why = f"other conditions: {'; '.join(unequal)}"
    found: dict[str, Any] = {"seeds": len(others), "spread": spread if others else {}}
    if len(others) < LEAST_SEEDS:
        seeds = counted(len(others), "other seed")
        reason = (
            f"cannot be judged ({seeds} in the store, {LEAST_SEEDS} are needed): {words}; {why}"
        )
        return found | {"verdict": "unjudged", "reason": reason}
    beyond = [key for key, difference in largest.items() if difference > spread[key]]
    if beyond or not same_end:
        what = ", ".join(beyond) or "how the run ended"
        reason = f"does not verify: {what} beyond the spread of {len(others)} other seeds"
        return found | {"verdict": "differs", "reason": f"{reason}: {words}; {why}"}
    reason = f"verifies within the spread of {len(others)} other seeds: {words}; {why}"
    return found | {"verdict": "within", "reason": reason}


def _beside(largest: Mapping[str, float], spread: Mapping[str, float]) -> str:
    """List the largest difference of each curve that differs, beside its spread over seeds."""
    texts = [
        f"{key} {difference:.3g}" + (f" (seeds {spread[key]:.3g})" if key in spread else "")
        for key, difference in largest.items()
        if difference
    ]
    return f"largest differences {', '.join(texts)}" if texts else "the weights alone differ"


def _other_seeds(run: Run, store: Store) -> list[Run]:
    """Return the complete runs of a store that differ from a run in the seed alone."""
    cell = _cell(run)
    found = []
    for other in store.runs():
        with suppress(StoreError):
            if other.name != run.name and _cell(other) == cell and other.verify() == "finished":
                found.append(other)
    return found


def _cell(run: Run) -> dict[str, Any]:
    """Return a run's config without its seed and without keys that change no number."""
    left_out = ("seed", "signature", "schema", "store", "label", "logger", "probe")
    return {key: value for key, value in (run.config or {}).items() if key not in left_out}
