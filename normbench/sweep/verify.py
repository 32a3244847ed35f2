"""Verification of a store: :func:`verify` trains runs again and compares them with their records.

A run is trained into a folder outside the store, by a worker process with the same number of
threads as the original run. If the conditions (processor, threads, versions, …) equal the recorded
ones, every number must be equal to the last bit. Under other conditions, rounding differs and the
differences grow during training; the run then verifies if they stay within the spread over the
other seeds of its cell.

Each comparison is written to the store's ``verification.json`` immediately. After any interruption,
the same command reuses those comparisons and trains the remaining runs of the sample: see
:func:`_is_believed`.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.engine import threads
from normbench.engine.backend import refuse_missing
from normbench.errors import NormbenchError, UserError
from normbench.formats import counted
from normbench.machine import processor
from normbench.store import verification
from normbench.store.lock import locked
from normbench.store.provenance import changed_since, package_code, utc_now, versions
from normbench.store.store import Run, Store, StoreError, find_run
from normbench.store.tuning import tuning_of
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Stop, SweepContext
from normbench.sweep.executors.pool import Dispatch, WorkerPool
from normbench.sweep.executors.slots import Slot, on_gpus, visible_gpus
from normbench.sweep.observer import ForwardingObserver, SweepObserver, SweepView
from normbench.sweep.plan import PlannedCell, Speeds, SweepPlan

SAMPLE = 5
"""Default number of runs to train again."""

LOCK = ".verify.lock"
"""Name of the file in a store that is locked while the store is verified."""

LEAST_SEEDS = 2
"""Smallest number of other seeds with which a run under other conditions is judged. With two, the
spread is that of three runs; with fewer it means too little."""

MEASURED_BY_CLOCK = ("images_per_s", "train_seconds", "eval_seconds", "time")
"""Keys of a row of ``metrics.jsonl`` that differ each time a run is trained."""

TESTED = ("test_loss", "test_acc", "best_val_test_loss", "best_val_test_acc")
"""Results in ``summary.json`` that are compared, too, as curves of one value."""

_COMPLETE = ("finished", "diverged")

Curves = dict[str, list[float | None]]
"""The values of each metric, one per epoch."""


@dataclass
class VerifyResult:
    """Result of :func:`verify`.

    Attributes:
        asked: Number of runs chosen to be trained again.
        verdicts: For each run that was trained again, its verdict
            (:data:`normbench.store.verification.VERDICTS`).
        failures: For each run that is damaged or could not be trained again, the reason.
        interrupted: True if a stop was requested before all runs were trained again.
    """

    asked: int
    verdicts: dict[str, str]
    failures: dict[str, str]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """1 if a run does not verify or could not be trained again, else 0.

        A run that cannot be judged does not count as a failure.
        """
        return 1 if self.failures or "differs" in self.verdicts.values() else 0


@dataclass(frozen=True)
class _Job:
    """A run to train again.

    Attributes:
        run: The recorded run.
        cell: Its config, without loggers, for the worker.
        slot: A slot with the run's kind of device and number of threads.
        seals: The checksums of the run's records before it is trained again, for the comparison.
    """

    run: Run
    cell: PlannedCell
    slot: Slot
    seals: dict[str, str]


def verify(
    store: Store,
    names: Sequence[str] | None = None,
    sample: int | None = None,
    seed: int = 0,
    *,
    trials: bool = False,
    again: bool = False,
    config_dir: str | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
    view: SweepView | None = None,
) -> VerifyResult:
    """Train complete runs of a store again, one after another, and compare them with the record.

    Each comparison is appended to the store's ``verification.json`` immediately. A run of the
    sample that has been compared before is trained again only if something has changed since.

    Args:
        store: Store with the runs. Its runs are not written to.
        names: Names of the runs to choose from; None for all except tuning trials.
        sample: Number of runs, chosen at random; None for all ``names``, or for :data:`SAMPLE` runs
            if ``names`` is None.
        seed: Seed of the choice.
        trials: Also choose from tuning trials if ``names`` is None.
        again: Also train the runs that have been compared before.
        config_dir: Second folder of config groups, for runs with a user's own components.
        command: Command line, for the lock and for the records of the runs in the scratch folder.
        say: Called with a line for each run, and with notes.
        view: Shows the progress of training; by default it is not shown.

    Raises:
        UserError: There is no store or no complete run, the sample is empty, or another process is
            verifying the store.
        StoreError: ``verification.json`` cannot be written.
    """
    if sample is not None and sample < 1:
        raise UserError(f"--sample {sample}: must be at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be at least 0")
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    # Two processes would train the same runs, and each would overwrite the other's comparisons.
    with locked(store.root / LOCK, f"store {store.root} is being verified", command):
        complete, damage = _complete(store)
        pool, trials_left_out = _pool(store, complete, names, trials)
        if not pool and not damage:
            raise UserError(_nothing(store, complete, names, trials_left_out))
        if names is None and sample is None:
            sample = SAMPLE
        selection = pool if sample is None else _drawn(pool, sample, seed)
        verifier = _Verifier(store, len(selection), say, view, command)
        verifier.begin(damage)
        jobs = verifier.prepare(selection, config_dir, again)
        if view is not None and selection:
            view.phase(_opening(len(selection), len(pool), trials_left_out, jobs))
        verifier.report_known()
        if jobs:
            verifier.train(jobs)
        return verifier.result


def _pool(
    store: Store, complete: Sequence[str], names: Sequence[str] | None, trials: bool
) -> tuple[list[str], int]:
    """Return the runs that may be chosen, and the number of trials that were left out."""
    if names is not None:
        name_set = set(names)
        return [name for name in complete if name in name_set], 0
    left_out = set() if trials else tuning_of(store).trials
    pool = [name for name in complete if name not in left_out]
    return pool, len(complete) - len(pool)


def _nothing(
    store: Store, complete: Sequence[str], names: Sequence[str] | None, trials_left_out: int
) -> str:
    if trials_left_out:
        return (
            f"only trials of tuning are finished in {store.root}: nothing to train again "
            "(--trials chooses from them)"
        )
    chosen_from = "that was chosen " if names is not None and complete else ""
    return f"no run {chosen_from}in {store.root} is finished: nothing to train again"


def _drawn(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw runs at random; the same seed draws the same runs from the same store."""
    return sorted(random.Random(seed).sample(list(names), min(count, len(names))))


def _opening(count: int, pool: int, trials_left_out: int, jobs: Sequence[_Job]) -> str:
    """Describe in one line how many runs are verified, and how long that may take."""
    head = f"{count} of {counted(pool, 'run')} chosen, {len(jobs)} to train"
    if trials_left_out:
        trials = counted(trials_left_out, "trial")
        head += f" ({trials} of tuning left out, --trials includes them)"
    return f"{head}; {_plan(jobs).estimate(1)}, one after another" if jobs else head


def _plan(jobs: Sequence[_Job]) -> SweepPlan:
    return SweepPlan(tuple(job.cell for job in jobs))


class _Verifier:
    """Verifies the chosen runs of a store; the caller holds the store's lock.

    Args:
        store: The store.
        asked: Number of chosen runs.
        say: Receives a line for each run, and notes.
        view: Shows the progress of training.
        command: Command line, for the records of the runs in the scratch folder.
    """

    def __init__(
        self,
        store: Store,
        asked: int,
        say: Callable[[str], None],
        view: SweepView | None,
        command: Sequence[str],
    ) -> None:
        self.store, self.result = store, VerifyResult(asked, {}, {})
        self._say, self._view, self._command = say, view, [*command]
        self._code = package_code()
        self._believed: dict[str, Mapping[str, Any]] = {}
        self._refused: list[str] = []
        self._reported = 0

    def begin(self, damaged: Mapping[str, str]) -> None:
        """Report the damaged runs, and check that comparisons can be written."""
        self.result.failures.update(damaged)
        for name, reason in damaged.items():
            self._say(f"{name}: damaged: {reason}")
        if note := verification.set_damaged_aside(self.store):
            self._say(f"note: {note}")
        verification.append(self.store, [])  # fail now rather than after an hour of training

    def prepare(self, chosen: Sequence[str], config_dir: str | None, again: bool) -> list[_Job]:
        """Return the runs to train; the others cannot be trained, or are already compared."""
        comparisons = {} if again else verification.newest(self.store)
        speeds = Speeds(self.store)
        jobs = []
        for name in chosen:
            try:
                job = _job(self.store.run(name), self.store, config_dir, speeds)
                item = comparisons.get(name)
                if item is not None and _is_believed(item, job, self.store, self._code):
                    self._believed[name] = item
                else:
                    refuse_missing(job.cell.config.backend)
                    jobs.append(job)
            except NormbenchError as error:
                self.result.failures[name] = " ".join(str(error).split())
                self._refused.append(name)
        return jobs

    def report_known(self) -> None:
        """Report the chosen runs whose result is known without training."""
        for name in self._refused:
            self._line(name, f"cannot be trained again: {self.result.failures[name]}")
        for name, item in self._believed.items():
            self.result.verdicts[name] = item["verdict"]
            reason = item.get("reason") or verification.VERDICTS[item["verdict"]]
            self._line(name, f"{reason} (trained again {item['time']}; --again repeats this)")

    def train(self, jobs: Sequence[_Job]) -> None:
        """Train the runs one after another, and compare each with its record.

        Runs are grouped by slot and sorted by program, so that a worker compiles each program only
        once.
        """
        with _scratch(self.store) as folder, Stop() as stop:
            scratch, workers = Store(folder), WorkerPool()
            context = SweepContext(scratch, self._command)
            view = self._view
            with view.training(_plan(jobs), 1, scratch) if view else nullcontext():
                try:
                    for slot in dict.fromkeys(job.slot.name for job in jobs):
                        group = [job for job in jobs if job.slot.name == slot]
                        group.sort(key=lambda job: job.cell.program)
                        cells = [job.cell for job in group]
                        observer = _Comparing(group, self._compare(scratch), view)
                        slots = [group[0].slot]
                        Dispatch(cells, slots, workers, context, observer, stop, 0).run()
                        if slot in workers:
                            workers.end(slot)
                        if stop.requests:
                            break
                finally:
                    workers.close()
            self.result.interrupted = bool(stop.requests)

    def _compare(self, scratch: Store) -> Callable[[_Job, CellResult], None]:
        """Return a function that compares a run with its record once it has been trained again."""

        def ended(job: _Job, outcome: CellResult) -> None:
            name = job.run.name
            if outcome.result == "interrupted":
                return
            if outcome.result not in ("trained", "diverged"):
                self.result.failures[name] = outcome.error
                self._line(name, f"cannot be trained again: {outcome.error}")
                return
            new_run = scratch.run(job.cell.name)
            comparison = compare(job.run, new_run, self.store, job.seals) | {"code": self._code}
            verification.append(self.store, [comparison])
            self.result.verdicts[name] = comparison["verdict"]
            self._line(name, comparison["reason"])
            # The checkpoints of a large sample may not fit in the temporary folder.
            shutil.rmtree(new_run.path, ignore_errors=True)

        return ended

    def _line(self, name: str, text: str) -> None:
        """Report a chosen run, with its number among them."""
        self._reported += 1
        digits = len(str(self.result.asked))
        self._say(f"[{self._reported:>{digits}}/{self.result.asked}] {name}: {text}")


def _is_believed(item: Mapping[str, Any], job: _Job, store: Store, code: str) -> bool:
    """Return whether training the run again would repeat an earlier comparison.

    That is the case while the run's records, normbench's code, the package versions and the
    processor are unchanged. A verdict by the spread over seeds also depends on the other seeds. The
    user's own code and data match the record, because :func:`_job` refuses changed ones.
    """
    return (
        item.get("folder") == job.seals["folder"]
        and item.get("code") == code
        and item.get("versions") == versions()
        and item.get("processor") == processor()
        and ("seeds" not in item or item["seeds"] == len(_other_curves(job.run, store)))
    )


def _scratch(store: Store) -> tempfile.TemporaryDirectory[str]:
    """Create the folder in which runs are trained; remove ones left behind by killed processes."""
    prefix = _scratch_prefix(store)
    # This process holds the store's lock, so no other process uses a folder of this name.
    for leftover in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if not leftover.is_symlink() and leftover.stat().st_uid == os.getuid():
                shutil.rmtree(leftover, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def _scratch_prefix(store: Store) -> str:
    digest = hashlib.sha256(os.fsencode(store.root.resolve())).hexdigest()
    return f"normbench-verify-{digest[:12]}-"


def _complete(store: Store) -> tuple[list[str], dict[str, str]]:
    """Return the names of the complete runs, and the reasons for the damaged ones by name."""
    names: list[str] = []
    damage: dict[str, str] = {}
    for run in store.runs():
        try:
            if run.verify() in _COMPLETE:
                names.append(run.name)
        except StoreError as error:
            damage[run.name] = " ".join(str(error).split()).replace(f"{run.path}/", "")
    return names, damage


def _job(run: Run, store: Store, config_dir: str | None, speeds: Speeds) -> _Job:
    """Read the record of a run, and decide how to train it again.

    Nothing that a run folder names is imported before :meth:`Config.from_run` has allowed it.

    Raises:
        NormbenchError: A file is damaged, the config does not match the run's signature, the run
            names a component that no config group has, or the user's own code or data changed.
    """
    old_config, meta = run.config or {}, run.meta or {}
    config = Config.from_run(old_config, config_dir, f"run {run.name}")
    if run.name.rpartition("-")[2] not in (config.signature, config.earlier_signature):
        raise UserError(
            f"its config has the signature {config.signature}, not that of its name: it was edited"
        )
    if changes := changed_since(old_config, meta.get("own"), config):
        raise UserError("; ".join(changes))
    if config.init:
        _check_init(config, meta, store)
    # A logger would mix the numbers with those of the recorded run. Initial weights from another
    # run are looked up in this store, wherever it was when the run was trained.
    config = replace(config, logger={}, store=str(store.root))
    seconds = speeds.seconds(config, config.epochs)
    cell = PlannedCell(config, config.run_name, seconds=seconds)
    return _Job(run, cell, _slot(config, meta), _seals(run))


def _seals(run: Run) -> dict[str, str]:
    return {"record": run.metrics_checksum(), "folder": verification.fingerprint(run)}


def _check_init(config: Config, meta: Mapping[str, Any], store: Store) -> None:
    """Check that the run that ``init`` names still has the weights that this run started from.

    Raises:
        UserError: There is no such run, or it was trained again and has other weights.
    """
    source = find_run(config.init, store.root)
    old_hash = (meta.get("init") or {}).get("weights_sha256")
    if (source.summary or {}).get("weights_sha256") != old_hash:
        raise UserError(f"it started from weights that {source.name} no longer has")


def _slot(config: Config, meta: Mapping[str, Any]) -> Slot:
    """Return a slot with a run's kind and number of devices, or its number of threads."""
    devices = " ".join(meta.get("devices") or []).lower()
    if ("gpu" in devices or "cuda" in devices) and (gpus := visible_gpus()):
        slot = on_gpus(gpus[:1], [1], 1)[0]
        visible = ",".join(gpu.id for gpu in gpus[: config.devices])
        return replace(slot, environment={**slot.environment, "CUDA_VISIBLE_DEVICES": visible})
    cores = threads.core_ids()
    thread_count = (meta.get("engine") or {}).get("threads")
    environment = {"CUDA_VISIBLE_DEVICES": "-1"}
    if (
        not isinstance(thread_count, int)
        or isinstance(thread_count, bool)
        or not 1 <= thread_count <= 4096
    ):
        thread_count = len(cores)
    if config.backend == "tensorflow":  # it can use more threads than there are cores
        environment["TF_NUM_INTRAOP_THREADS"] = str(thread_count)
    return Slot(f"cpu {thread_count}", "cpu", tuple(cores[:thread_count]), environment)


class _Comparing(ForwardingObserver):
    """Compares each run with its record as soon as it has been trained again.

    Args:
        jobs: The runs.
        compare: Called with each run that has ended.
        view: Also receives every call.
    """

    def __init__(
        self,
        jobs: Sequence[_Job],
        compare: Callable[[_Job, CellResult], None],
        view: SweepView | None,
    ) -> None:
        super().__init__(SweepObserver() if view is None else view)
        self._jobs = {job.cell.name: job for job in jobs}
        self._compare = compare

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        super().ended(cell, result)
        self._compare(self._jobs[cell.name], result)


# --- the comparison -------------------------------------------------------------------------------


def compare(
    run: Run, again: Run, store: Store, seals: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Compare a run with the same run trained again; return a record of the comparison.

    Args:
        run: The recorded run.
        again: The run trained again.
        store: Store with the other seeds of the run's cell.
        seals: Checksums of the run's records when training began; by default the current ones.

    Returns:
        A :data:`normbench.store.verification.VERIFICATION`.
    """
    meta, meta_again = run.meta or {}, again.meta or {}
    summary, summary_again = run.summary or {}, again.summary or {}
    curves, curves_again = _curves(run), _curves(again)
    weights = _equal_weights(summary, summary_again)
    other_conditions = conditions(meta, meta_again)
    largest = _differences(curves, curves_again)
    same_end = all(summary.get(key) == summary_again.get(key) for key in ("status", "parameters"))
    record = {
        "run": run.name,
        "verdict": "equal",
        "time": utc_now(),
        **(seals or _seals(run)),
        "differences": largest,
        "conditions": other_conditions,
        "weights": weights,
        **(meta_again.get("git") or {"commit": None, "dirty": None}),
        "versions": meta_again.get("versions") or {},
        "processor": meta_again.get("processor"),
        "threads": (meta_again.get("engine") or {}).get("threads"),
    }
    epochs = len(curves.get("epoch", []))
    if curves == curves_again and same_end and weights is not False:
        weights_text = "and weights" if weights else "(no hash of its weights)"
        suffix = f"; other conditions: {'; '.join(other_conditions)}" if other_conditions else ""
        length = counted(epochs, "epoch")
        return record | {
            "reason": f"equal to the last bit: metrics of {length} {weights_text}{suffix}"
        }
    if not other_conditions:
        words = _first_difference(curves, curves_again, summary, summary_again, weights)
        code = _other_code(meta, meta_again)
        return record | {"verdict": "differs", "reason": f"does not verify: {words}{code}"}
    return record | _judged(run, store, curves, curves_again, largest, other_conditions, same_end)


def conditions(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the differences between the conditions of two trainings that may affect rounding.

    Args:
        recorded: ``meta.json`` of the recorded run.
        here: ``meta.json`` of the run trained again.

    Returns:
        A phrase for each difference, such as ``4 threads recorded, 2 here``.
    """
    lines = []
    engine, engine_here = recorded.get("engine") or {}, here.get("engine") or {}
    for name, old_value, new_value in (
        ("processor", recorded.get("processor"), here.get("processor")),
        *(
            (key, engine.get(key), engine_here.get(key))
            for key in ("backend", "threads", "shards", "jit_compile")
        ),
        # Earlier versions did not record it.
        ("onednn", engine.get("onednn", engine_here.get("onednn")), engine_here.get("onednn")),
        ("devices", _kinds(recorded), _kinds(here)),
    ):
        if old_value != new_value:
            lines.append(f"{name} {_shown(old_value)} recorded, {_shown(new_value)} here")
    versions, versions_here = recorded.get("versions") or {}, here.get("versions") or {}
    # A run uses only its own backend, even if others are installed.
    unused_backends = {"tensorflow"} if engine.get("backend") == "jax" else {"jax"}
    for name in sorted({*versions, *versions_here} - unused_backends):
        if versions.get(name) != versions_here.get(name):
            old_value, new_value = _shown(versions.get(name)), _shown(versions_here.get(name))
            lines.append(f"{name} {old_value} recorded, {new_value} here")
    if not (engine.get("deterministic") and engine_here.get("deterministic")):
        lines.append("the device is not deterministic")
    if _last_split(recorded) != _last_split(here):
        lines.append("one of them ran out of memory and split its batches")
    hosts = {session.get("host") for session in recorded.get("sessions") or []}
    if len(hosts) > 1:
        lines.append(f"recorded on {len(hosts)} hosts in turn")
    return lines


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _kinds(meta: Mapping[str, Any]) -> str | None:
    """Return ``cpu`` or ``gpu``: device names contain numbers, which do not matter."""
    devices = " ".join(meta.get("devices") or []).lower()
    return None if not devices else "gpu" if "gpu" in devices or "cuda" in devices else "cpu"


def _last_split(meta: Mapping[str, Any]) -> int:
    return ((meta.get("micro_batches") or [{}])[-1]).get("count", 1)


def _curves(run: Run) -> Curves:
    """Return the metrics of a run, except those measured by a clock, and its test results."""
    rows, summary = run.metrics(), run.summary or {}
    keys = dict.fromkeys(key for row in rows for key in row if key not in MEASURED_BY_CLOCK)
    curves: Curves = {key: [row.get(key) for row in rows] for key in keys}
    return curves | {key: [summary.get(key)] for key in TESTED}


def _equal_weights(summary: Mapping[str, Any], summary_again: Mapping[str, Any]) -> bool | None:
    """Return whether the weights' hashes are equal; None if neither run has one."""
    pair = summary.get("weights_sha256"), summary_again.get("weights_sha256")
    return None if pair == (None, None) else pair[0] == pair[1]


def _difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Return the largest difference between two curves; infinite if only one has a value."""
    if len(one) != len(other):
        return math.inf
    largest = 0.0
    for a, b in zip(one, other, strict=True):
        if isinstance(a, int | float) and isinstance(b, int | float):
            largest = max(largest, abs(a - b))
        elif a != b:
            return math.inf
    return largest


def _differences(curves: Curves, curves_again: Curves) -> dict[str, float]:
    """Return the largest difference for each curve that either run has."""
    keys = dict.fromkeys([*curves, *curves_again])
    return {key: _difference(curves.get(key, []), curves_again.get(key, [])) for key in keys}


def _first_difference(
    curves: Curves,
    curves_again: Curves,
    summary: Mapping[str, Any],
    summary_again: Mapping[str, Any],
    weights: bool | None,
) -> str:
    """Describe the first difference between two runs under equal conditions."""
    endings = {True: ", though the weights are equal", False: "; the weights differ", None: ""}
    ending = endings[weights]
    epochs = max(len(curves.get("epoch", [])), len(curves_again.get("epoch", [])))
    for epoch in range(epochs):
        for key in dict.fromkeys([*curves, *curves_again]):
            old_value = curves.get(key, [])[epoch : epoch + 1]
            new_value = curves_again.get(key, [])[epoch : epoch + 1]
            if old_value != new_value and key not in TESTED:
                return (
                    f"{key} of epoch {epoch + 1} is {_value(old_value)} in the record, "
                    f"{_value(new_value)} here{ending}"
                )
    for key in (*TESTED, "status", "parameters"):
        if summary.get(key) != summary_again.get(key):
            old_value, new_value = summary.get(key), summary_again.get(key)
            return f"{key} is {_shown(old_value)} in the record, {_shown(new_value)} here{ending}"
    return "the metrics are equal, but the weights differ"


def _value(values: Sequence[Any]) -> str:
    return "missing" if not values else _shown(values[0])


def _other_code(meta: Mapping[str, Any], meta_again: Mapping[str, Any]) -> str:
    """Name the commits of two trainings if they are known and differ."""
    states = [record.get("git") or {} for record in (meta, meta_again)]
    old_commit, new_commit = (state.get("commit") for state in states)
    has_changes = any(state.get("dirty") for state in states)
    if old_commit and new_commit and old_commit != new_commit:
        return f" (trained at commit {old_commit[:10]}, this is {new_commit[:10]})"
    return " (one of the two was trained with uncommitted changes)" if has_changes else ""


def _judged(
    run: Run,
    store: Store,
    curves: Curves,
    curves_again: Curves,
    largest: Mapping[str, float],
    other_conditions: Sequence[str],
    same_end: bool,
) -> dict[str, Any]:
    """Judge differences under other conditions by the spread over the seeds of the run's cell.

    The spread of a curve is the largest difference between any two of the other seeds and the run
    trained again. The recorded run is left out, because edited numbers would widen the spread.
    """
    other_curves = _other_curves(run, store)
    spread = {
        key: max(
            (
                _difference(one.get(key, []), other.get(key, []))
                for index, one in enumerate([*other_curves, curves_again])
                for other in other_curves[:index]
            ),
            default=0.0,
        )
        for key in largest
    }
    words = _listed(largest, spread if len(other_curves) >= LEAST_SEEDS else {})
    suffix = f"other conditions: {'; '.join(other_conditions)}"
    result: dict[str, Any] = {"seeds": len(other_curves), "spread": spread if other_curves else {}}
    if len(other_curves) < LEAST_SEEDS:
        seeds = counted(len(other_curves), "other seed")
        reason = (
            f"cannot be judged ({seeds} in the store, {LEAST_SEEDS} are needed): {words}; {suffix}"
        )
        return result | {"verdict": "unjudged", "reason": reason}
    outliers = [key for key, difference in largest.items() if difference > spread[key]]
    if outliers or not same_end:
        subject = ", ".join(outliers) or "how the run ended"
        reason = f"does not verify: {subject} beyond the spread of {len(other_curves)} other seeds"
        return result | {"verdict": "differs", "reason": f"{reason}: {words}; {suffix}"}
    reason = f"verifies within the spread of {len(other_curves)} other seeds: {words}; {suffix}"
    return result | {"verdict": "within", "reason": reason}


def _listed(largest: Mapping[str, float], spread: Mapping[str, float]) -> str:
    """List the largest difference of each curve that differs, with its spread over seeds."""
    texts = [
        f"{key} {difference:.3g}" + (f" (seeds {spread[key]:.3g})" if key in spread else "")
        for key, difference in largest.items()
        if difference
    ]
    return f"largest differences {', '.join(texts)}" if texts else "only the weights differ"


def _other_curves(run: Run, store: Store) -> list[Curves]:
    """Return the curves of those other seeds of a run's cell that have as many epochs."""
    epochs = len(run.metrics())
    all_curves = [_curves(other) for other in _other_seeds(run, store)]
    return [curves for curves in all_curves if len(curves.get("epoch", [])) == epochs]


def _other_seeds(run: Run, store: Store) -> list[Run]:
    """Return the finished runs of a store that differ from a run only in the seed."""
    cell = _cell(run)
    runs = []
    for other in store.runs():
        with suppress(StoreError):
            if other.name != run.name and _cell(other) == cell and other.verify() == "finished":
                runs.append(other)
    return runs


def _cell(run: Run) -> dict[str, Any]:
    """Return a run's config without its seed and without keys that do not affect its results."""
    irrelevant = ("store", "label", "logger", "probe", "stream")
    left_out_keys = ("seed", "signature", "schema", *irrelevant)
    return {key: value for key, value in (run.config or {}).items() if key not in left_out_keys}
