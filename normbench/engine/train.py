"""Training of one run, from its config to the evidence in its folder: :func:`train`.

A run passes through this module from top to bottom::

    train            check the folder and the config, build, trace, lock
    _train_locked    write meta.json, train, write summary.json, record how the session ended
    Session.train    train the remaining epochs; split the batch if memory runs out
    Session          restore; for each epoch: steps, evaluation, row, checkpoint; then the test
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from normbench.config import SCHEMA, Config
from normbench.engine import backend
from normbench.engine.interrupts import delay_interrupts, raise_remembered, remember_interrupts
from normbench.engine.longer import hindrance, shorter_run, take_over
from normbench.engine.micro_batches import MicroBatches
from normbench.engine.observer import (
    LoggingObserver,
    Observer,
    described_values,
    due_probes,
    make_loggers,
    measure_probes,
)
from normbench.engine.reuse import WarmState
from normbench.engine.setup import (
    load_dataset,
    prepare_and_trace,
    refuse_augmentation,
    refuse_batch,
)
from normbench.engine.weights import weights_hash
from normbench.errors import NormbenchError, UserError, details
from normbench.formats import counted
from normbench.machine import is_native
from normbench.store.provenance import collect, own_changes, own_code, own_data, utc_now
from normbench.store.store import Run, Store, StoreError

if TYPE_CHECKING:  # these import Keras, which must not happen before the backend is chosen
    from normbench.engine.loop import Steps
    from normbench.engine.setup import TrainingSetup

log = logging.getLogger("normbench")

CHUNK_SECONDS = 1.0
"""Seconds of compiled steps between two checks for progress, divergence and Ctrl-C."""

COMPLETE = ("finished", "diverged")
"""Statuses of a run that needs no further training."""


@dataclass(frozen=True)
class TrainResult:
    """Result of :func:`train`.

    Attributes:
        run: The run's folder.
        trained: False if the run was already complete, so that nothing was trained.
        summary: Summary of the complete run; its ``status`` is finished or diverged.
    """

    run: Run
    trained: bool
    summary: dict[str, Any]


class Diverged(Exception):
    """The loss of a step is not finite or exceeds the config's ``max_loss``."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"diverged in step {step} (epoch {epoch})")
        self.epoch = epoch
        self.step = step


def train(
    config: Config,
    store: Store | None = None,
    *,
    observer: Observer | None = None,
    command: Sequence[str] | None = None,
    must_exist: bool = False,
    warm: WarmState | None = None,
    may_split: bool = True,
    again: bool = False,
    tuned: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train the run that ``config`` describes, or the rest of it, and record the evidence.

    A complete run is not trained again. An interrupted run continues from its last checkpoint; on
    a CPU it is bit-identical to a run that was never interrupted. If the first epochs would be
    bit-identical to a finished run, this run continues from it (:mod:`normbench.engine.longer`).

    Args:
        config: Config of the run.
        store: Store that holds the run's folder; ``config.store`` by default.
        observer: Receives progress, rows and notes.
        command: Command line for the record; this process's ``sys.argv`` by default.
        must_exist: Refuse to start a run that has no folder yet.
        warm: Data set and compiled loop of this process's previous run. They are reused if
            possible, else replaced by this run's.
        may_split: Allow ``accumulate=auto`` to split the batch when memory runs out.
        again: Set an existing folder of the run aside and train from the first step.
        tuned: The trials that chose the values of the run, for its ``meta.json``. A run that is
            continued without them keeps its recorded ones.

    Raises:
        UserError: The config cannot be trained, or its backend or a logger's library is not
            installed; nothing was written.
        RunLocked: Another process is training this run.
        NormbenchError: The store cannot be written.
        KeyboardInterrupt: Re-raised after a checkpoint.
    """
    store = Store(config.store) if store is None else store
    run = store.run(config)
    command = list(sys.argv if command is None else command)
    try:
        status = run.status
    except StoreError as error:
        if not again:
            raise StoreError(f"{error}: --again sets the folder aside and trains again") from error
        status = "unreadable"
    if status in COMPLETE and not again:
        return TrainResult(run, False, run.summary or {})
    if status == "missing" and must_exist:
        raise UserError(f"there is no run {run.name} in {store.root} to resume")
    if status == "running":
        # Raises RunLocked, which names the owner, unless that process has just ended. Check here,
        # rather than after a minute of compiling.
        with run.lock(command):
            pass

    # Run all checks that take less than a second before the backend is imported.
    backend.refuse_missing(config.backend, backend.OTHER)
    warm = WarmState() if warm is None else warm
    dataset = warm.dataset(config, load_dataset)
    refuse_batch(config, dataset.name, len(dataset.train.labels))
    refuse_augmentation(config, dataset.shape)
    loggers = make_loggers(config.logger)
    observer = LoggingObserver(observer or Observer(), loggers, run, config)

    # Build the network and trace its steps before the lock is taken and anything is written: a
    # layer that does not support these mini-batches raises here and leaves no folder behind.
    engine = backend.start(config.backend, config.precision)
    micro_batches = MicroBatches(config, run.meta if run.exists and not again else None, may_split)
    warm.drop_other_loop(config, micro_batches.count)
    begins = again or run.checkpoint_info() is None
    session = Session(run, config, dataset, warm, micro_batches, observer, begins)
    if begins and not again:
        session.shorter = shorter_run(config, store)

    if again:  # all checks of the new run have passed, so the old one can be set aside
        run.set_aside("replaced", command)
    with run.lock(command):
        if run.status in COMPLETE:  # completed by another process while this one was building
            return TrainResult(run, False, run.summary or {})
        with _log_to(run, observer.on_note), remember_interrupts():
            facts = {"engine": engine, **({"tuned": dict(tuned)} if tuned else {})}
            return _train_locked(session, facts, command)


def _train_locked(session: Session, facts: dict[str, Any], command: list[str]) -> TrainResult:
    """Train a run whose lock this process holds, and record how the session ended.

    Args:
        session: This process's session of the run.
        facts: Keys of ``meta.json`` that this process adds to the provenance.
        command: Command line for the record.
    """
    run, observer = session.run, session.observer
    session.begin(collect(command) | facts)
    try:
        summary = session.train()
        summary["wall_seconds"] = session.earlier_seconds + session.seconds
        run.write_summary(summary)
    except KeyboardInterrupt:
        log.info("interrupted")
        session.end("interrupted")
        observer.on_end({"status": "interrupted"}, run.path)
        raise
    except Exception as failure:
        log.error("%s", traceback.format_exc())
        kind, message = details(failure)
        error = {"type": kind, "message": message}
        try:
            session.end("failed", error)
        except NormbenchError as another:  # a full disk must not hide the error that ended the run
            log.error("%s", another)
        observer.on_end({"status": "failed", "error": error}, run.path)
        raise
    finally:
        session.release()
    # summary.json is written before meta.json: a run that is killed in between is complete.
    session.end(summary["status"])
    observer.on_end(summary, run.path)
    return TrainResult(run, True, summary)


class Session:
    """One process's work on a run: trains the remaining epochs and records each.

    All writes happen between :meth:`begin` and :meth:`end`, while the caller holds the run's lock.

    Args:
        run: Folder of the run.
        config: Config of the run.
        dataset: Data set of the run, split.
        warm: Stores the compiled loop for the process's next run.
        micro_batches: Number of micro-batches that the run's batches are split into.
        observer: Receives progress, rows and notes.
        begins: Whether training starts here: the run has no checkpoint, or its folder is set aside.

    Attributes:
        shorter: A finished run of fewer epochs, with which this run may start; or None.
        setup: Network, compiled loop and learning rates; replaced when the batch is split.
        epoch: Number of completed epochs.
        partial: Steps taken in the epoch in progress.
        partial_seconds: Duration of those steps in seconds.
        best: The epoch with the best validation accuracy, and that accuracy.

    Raises:
        UserError: The config cannot be trained.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        dataset: Any,
        warm: WarmState,
        micro_batches: MicroBatches,
        observer: Observer,
        begins: bool,
    ) -> None:
        self.run = run
        self.config = config
        self.dataset = dataset
        self.warm = warm
        self.micro_batches = micro_batches
        self.observer = observer
        self.setup = self._prepare(begins)
        self.shorter: Run | None = None
        self.epoch = 0
        self.partial: Steps
        self.partial_seconds = 0.0
        self.best: dict[str, Any] = {"epoch": None, "val_acc": None}

    # --- the record of the session in meta.json ---------------------------------------------------

    def begin(self, provenance: dict[str, Any]) -> None:
        """Write ``config.yaml`` and a ``meta.json`` with the status "running".

        Args:
            provenance: Host, versions, command and others, and the facts of the engine.
        """
        self._began = time.perf_counter()
        old_meta = self.run.meta if self.run.exists else {}
        old_meta = old_meta or {}
        has_checkpoint = self.run.checkpoint_info() is not None
        # A session that was killed could not record its seconds, so it counts as 0. Sessions of a
        # shorter run only count if its checkpoint was taken over.
        sessions = [s for s in old_meta.get("sessions", []) if has_checkpoint or "run" not in s]
        continued_run = old_meta.get("continues") if has_checkpoint else None
        self.earlier_seconds = sum(session.get("seconds") or 0.0 for session in sessions)
        now = utc_now()
        session = {
            "started": now,
            "ended": None,
            "host": provenance["host"],
            "pid": os.getpid(),
            "from_epoch": 0,
            "seconds": None,
        }
        self.meta = {
            "status": "running",
            "signature": self.config.signature,
            "started": old_meta.get("started", now),
            "ended": None,
            **({"tuned": old_meta["tuned"]} if old_meta.get("tuned") else {}),
            **provenance,
            "devices": self.setup.loop.devices(),
            **self._own_versions(old_meta),
            **self._probe_values(old_meta),
            **({"init": init} if (init := self.setup.init or old_meta.get("init")) else {}),
            **({"continues": continued_run} if continued_run else {}),
            "micro_batches": self.micro_batches.history,
            "streamed": self.dataset.streamed,
            "error": None,
            "sessions": [*sessions, session],
        }
        stamp = {"signature": self.config.signature, "schema": SCHEMA}
        self.run.create({**self.config.to_dict(), **stamp}, self.meta)

    def _probe_values(self, old_meta: dict[str, Any]) -> dict[str, Any]:
        """Return how reports show the values of the run's probes, if it has any."""
        descriptions = {
            **(old_meta.get("probe_values") or {}),
            **described_values(self.setup.probes),
        }
        return {"probe_values": descriptions} if descriptions else {}

    def _own_versions(self, old_meta: dict[str, Any]) -> dict[str, Any]:
        """Return the versions of the user's own code and data that the run is trained with.

        A run that continues with a different version than before records all versions, in order,
        and a report says so.
        """
        current = own_code(self.config.to_dict())
        current |= own_data(self.config.dataset, self.dataset.fingerprint)
        if not current:
            return {}
        # Earlier versions only count once there is a checkpoint that was trained with them.
        old_versions: dict[str, Any] = {}
        if self.run.checkpoint_info() is not None:
            old_versions = old_meta.get("own") or {}
            for change in own_changes(old_versions, current):
                log.warning("%s", change)
                self.observer.on_note(f"{change}: --again trains the run from its first step")
        versions = {}
        for name, version in current.items():
            history = list(old_versions.get(name) or [])
            versions[name] = history if history[-1:] == [version] else [*history, version]
        return {"own": versions}

    @property
    def seconds(self) -> float:
        """Seconds since :meth:`begin`."""
        return time.perf_counter() - self._began

    def end(self, status: str, error: dict[str, Any] | None = None) -> None:
        """Record in ``meta.json`` how the session ended."""
        now = utc_now()
        self.meta["sessions"][-1].update(ended=now, seconds=round(self.seconds, 3))
        self.run.update_meta(status=status, ended=now, error=error, sessions=self.meta["sessions"])

    # --- the network and its compiled loop --------------------------------------------------------

    def _prepare(self, begins: bool) -> TrainingSetup:
        """Build the network and trace its steps.

        Args:
            begins: Whether training starts here. Otherwise a checkpoint replaces the weights of the
                run that ``init`` names, which may no longer exist.
        """
        config = self.config if begins else replace(self.config, init="", init_head="trained")
        return prepare_and_trace(config, self.dataset, self.warm, self.micro_batches.count)

    def rebuild(self) -> None:
        """Replace the setup by one for the present number of micro-batches.

        Raises:
            NormbenchError: The network does not support the smaller micro-batches.
        """
        del self.setup  # free it before the next one is built: memory may not fit both
        self.warm.drop_loop()
        try:
            self.setup = self._prepare(begins=self.run.checkpoint_info() is None)
        except UserError as error:  # not the user's mistake: ``auto`` chose the size
            raise NormbenchError(f"memory is short, and {error}") from error

    def release(self) -> None:
        """Stop the loop's background work.

        A loop for a batch that ``accumulate=auto`` split is not passed to the process's next run.
        """
        if hasattr(self, "setup"):  # gone if it could not be rebuilt
            self.setup.loop.close()
        if self.config.accumulate == "auto" and self.micro_batches.count > 1:
            self.warm.drop_loop()

    # --- training ---------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train the rest of the run and return its summary.

        With ``accumulate=auto``, when a step runs out of memory, training restarts from the last
        checkpoint with smaller micro-batches.
        """
        self._take_over()
        self._note_slow_precision()
        while True:
            try:
                return self._train_remaining()
            except Exception as error:
                if not self.micro_batches.helps_against(error):
                    raise
            # Outside of the handler, where the traceback, which keeps the failed step's tensors
            # alive, is gone.
            info = self.run.checkpoint_info()
            self.micro_batches.split(info["epoch"] if info else 0)
            note = f"memory is short: from here on {self.micro_batches.words}"
            log.info("%s", note)
            self.observer.on_note(f"{note}, so batch statistics are computed per micro-batch")
            self.run.update_meta(micro_batches=self.micro_batches.history)
            self.rebuild()

    def _take_over(self) -> None:
        """Start with the epochs of a shorter run if that is bit-identical, else say why not."""
        shorter = self.shorter
        if shorter is None or self.run.checkpoint_info() is not None:
            return
        epochs = (shorter.config or {})["epochs"]
        reason = hindrance(shorter, self.config, self.setup.rates, self.meta)
        if reason is None:
            sessions = [{"run": shorter.name, **s} for s in (shorter.meta or {})["sessions"]]
            self.earlier_seconds += sum(s.get("seconds") or 0.0 for s in sessions)
            self.meta["sessions"][:0] = sessions
            self.meta["continues"] = {"run": shorter.name, "epochs": epochs}
            self.run.update_meta(sessions=self.meta["sessions"], continues=self.meta["continues"])
            take_over(shorter, self.run, self.setup.probes, self.config.epochs)
            note = (
                f"continues from {shorter.name} after {counted(epochs, 'epoch')}, bit-identical to "
                "training from the start"
            )
        else:
            note = (
                f"trains from the start, although {shorter.name} has {epochs} of these "
                f"{self.config.epochs} epochs: {reason}"
            )
        log.info("%s", note)
        self.observer.on_note(note)

    def _note_slow_precision(self) -> None:
        precision = self.config.precision
        if backend.on_cpu() and not is_native(precision):
            note = (
                f"this processor has no instructions for precision={precision}: it may take ten "
                "times as long as float32"
            )
            log.warning("%s", note)
            self.observer.on_note(note)

    def _train_remaining(self) -> dict[str, Any]:
        """Train from the last checkpoint to the end of the run and return its summary."""
        from normbench.network import parameter_count

        setup = self.setup
        # Compile before restoring, because compiling draws the order of an epoch.
        start = time.perf_counter()
        setup.loop.compile()
        log.info("compiled in %.1f s", time.perf_counter() - start)
        if self._restore():
            self.meta["sessions"][-1]["from_epoch"] = self.epoch
            self.run.update_meta(sessions=self.meta["sessions"])
            log.info("resumed after epoch %d, step %d of the next", self.epoch, len(self.partial))
        parameters = parameter_count(setup.model)
        self.observer.on_start(
            {
                "name": self.run.name,
                "parameters": parameters,
                "images": len(self.dataset.train.labels),
                "steps_per_epoch": setup.steps_per_epoch,
                "epochs": self.config.epochs,
                "devices": setup.loop.devices(),
                "resumed_from": self.epoch,
            }
        )
        try:
            self._train_epochs()
            results = {"status": "finished"} | self._test()
        except Diverged as divergence:
            # A result, not a failure: it is recorded with the step, and has no test accuracy.
            log.info("%s", divergence)
            self._record_divergence(divergence)
            results = {"status": "diverged"} | self._untested()
            results |= {"diverged_epoch": divergence.epoch, "diverged_step": divergence.step}
        results["micro_batches"] = self.micro_batches.count
        results |= self._totals()
        return results | {"parameters": parameters, "classes": self.dataset.classes}

    def _restore(self) -> bool:
        """Load the last checkpoint, if there is one, and drop rows written after it."""
        from normbench.engine.loop import Steps

        checkpoint = self.run.load_checkpoint()
        if checkpoint is None:
            self.run.truncate_metrics(0)
            self.epoch, self.partial, self.partial_seconds = 0, Steps.empty(), 0.0
            self.best = {"epoch": None, "val_acc": None}
            return False
        arrays, info = checkpoint
        self.partial = Steps(**{name: arrays.pop(f"partial/{name}") for name in Steps.NAMES})
        self.partial_seconds = float(info["partial_seconds"])
        self.setup.loop.load(arrays)
        self.epoch = int(info["epoch"])
        self.best = dict(info["best"])
        self.run.truncate_metrics(self.epoch, info.get("metrics_sha256"))
        return True

    def _train_epochs(self) -> None:
        """Train to the last epoch.

        Raises:
            Diverged: A step's loss was not finite or too high.
            KeyboardInterrupt: Re-raised after a checkpoint of the steps taken so far.
        """
        while self.epoch < self.config.epochs:
            self.setup.loop.begin_epoch(self.epoch)
            try:
                self._train_epoch()
                row = self._evaluate_epoch()
            except KeyboardInterrupt:
                self._save_checkpoint()
                raise
            self._finish_epoch(row)

    def _train_epoch(self) -> None:
        """Take the remaining steps of the epoch, in compiled chunks of about a second."""
        setup = self.setup
        self._refuse_divergence()  # an interrupt may have come before the last chunk was checked
        start = self.epoch * setup.steps_per_epoch
        # Time a single step first. A resumed epoch takes all remaining steps in one call.
        count = setup.steps_per_epoch if len(self.partial) else 1
        while (first := len(self.partial)) < setup.steps_per_epoch:
            last = min(first + count, setup.steps_per_epoch)
            start_time = time.perf_counter()
            # The weights and the step count must change together: after a checkpoint between the
            # two, the same steps would be trained twice.
            with delay_interrupts():
                steps = setup.loop.train(first, setup.rates[start + first : start + last])
                seconds = time.perf_counter() - start_time
                self.partial = self.partial.followed_by(steps)
                self.partial_seconds += seconds
            raise_remembered()
            count = max(1, round(CHUNK_SECONDS * len(steps) / max(seconds, 1e-9)))
            self._refuse_divergence()
            steps_taken = len(self.partial)
            self.observer.on_progress(
                self.epoch + 1,
                steps_taken,
                setup.steps_per_epoch,
                float(np.mean(self.partial.loss)),
                float(np.sum(self.partial.correct)) / (steps_taken * self.config.batch),
                steps_taken * self.config.batch / self.partial_seconds,
            )

    def _refuse_divergence(self) -> None:
        """Raise if a step of the epoch diverged.

        Raises:
            Diverged: For the first such step; nothing is recorded yet.
        """
        losses = self.partial.loss
        indices = np.flatnonzero(~(np.isfinite(losses) & (losses <= self.config.max_loss)))
        if len(indices):
            step = self.epoch * self.setup.steps_per_epoch + int(indices[0]) + 1
            raise Diverged(self.epoch + 1, step)

    def _record_divergence(self, divergence: Diverged) -> None:
        """Append the row of the epoch that diverged.

        It covers the steps before the one that diverged, independent of the lengths of chunks. The
        weights, however, include later steps of the last chunk, so no checkpoint may be written
        from here on; if interrupted, the run diverges again from its last checkpoint.
        """
        count = divergence.step - 1 - self.epoch * self.setup.steps_per_epoch
        self.partial = self.partial.first(count)
        row = self._row(val=(math.nan, math.nan), eval_seconds=0.0)
        self.run.append_metrics(row)
        self.observer.on_epoch(row)

    def _evaluate_epoch(self) -> dict[str, Any]:
        """Evaluate the network after the last step of an epoch and return the epoch's row.

        If this is interrupted, the checkpoint has all steps of the epoch, and a resumed run repeats
        the evaluation.
        """
        loop = self.setup.loop
        start = time.perf_counter()
        loop.recompute()
        val = loop.evaluate("validation")
        row = self._row(val=val, eval_seconds=time.perf_counter() - start)
        loop.rate = row["lr"]
        probes = due_probes(self.setup.probes, self.epoch + 1, self.config.epochs)
        return row | measure_probes(probes, loop, self.dataset)

    def _row(self, val: tuple[float, float], eval_seconds: float) -> dict[str, Any]:
        """Return the epoch's line of ``metrics.jsonl``.

        All metrics of an epoch are defined here. To add one, add its value here, and its label and
        unit to ``METRICS`` in ``report/metrics.py``.
        """
        steps, batch = len(self.partial), self.config.batch
        step = self.epoch * self.setup.steps_per_epoch + steps
        norms = self.partial.grad_norm.astype(np.float64)
        finite = norms[np.isfinite(norms)]  # with a scaled loss, steps that overflow are skipped
        return {
            "epoch": self.epoch + 1,
            "step": step,
            "images_seen": step * batch,
            "train_loss": _mean(self.partial.loss),
            "train_acc": float(np.sum(self.partial.correct)) / (steps * batch) if steps else None,
            "val_loss": val[0],
            "val_acc": val[1],
            "lr": float(self.setup.rates[max(step - 1, 0)]),
            "grad_norm": _mean(finite),
            "grad_norm_max": float(np.max(finite)) if len(finite) else None,
            "images_per_s": steps * batch / self.partial_seconds if steps else None,
            "train_seconds": self.partial_seconds,
            "eval_seconds": eval_seconds,
            "time": utc_now(),
        }

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        """Record a complete epoch: its row, then the checkpoints."""
        # An interrupt between the row and its checkpoint would lose the epoch.
        with delay_interrupts():
            self.epoch += 1
            self.partial, self.partial_seconds = self.partial.first(0), 0.0
            # Write the row before the checkpoint: if the process is killed between them, the run
            # resumes from the previous checkpoint, which drops the row. In the opposite order the
            # row would be lost.
            self.run.append_metrics(row)
            if self.best["epoch"] is None or row["val_acc"] > self.best["val_acc"]:
                self.best = {"epoch": self.epoch, "val_acc": row["val_acc"]}
                self._save_checkpoint(best=True)
            self._save_checkpoint()
        self.observer.on_epoch(row)

    def _save_checkpoint(self, best: bool = False) -> None:
        """Write everything that a bit-identical continuation needs."""
        arrays = self.setup.loop.state()
        arrays |= {f"partial/{name}": values for name, values in self.partial.arrays().items()}
        info = {
            "epoch": self.epoch,
            "step": self.epoch * self.setup.steps_per_epoch + len(self.partial),
            "partial_seconds": self.partial_seconds,
            "best": self.best,
            "metrics_sha256": self.run.metrics_checksum(),
        }
        self.run.save_checkpoint(arrays, info, best=best)

    # --- the end of the run -----------------------------------------------------------------------

    def _test(self) -> dict[str, Any]:
        """Evaluate the test split with the final weights and with those best on validation."""
        loop = self.setup.loop
        loss, accuracy = loop.evaluate("test")
        final = loop.state()
        results = self._untested()
        results |= {
            "test_loss": loss,
            "test_acc": accuracy,
            "weights_sha256": weights_hash(final),
        }
        if self.best["epoch"] == self.epoch:
            results.update(best_val_test_loss=loss, best_val_test_acc=accuracy)
        elif (best := self.run.load_checkpoint(best=True)) is not None:
            loop.load(best[0])
            loss, accuracy = loop.evaluate("test")
            results.update(best_val_test_loss=loss, best_val_test_acc=accuracy)
            loop.load(final)
        return results

    def _untested(self) -> dict[str, Any]:
        """Return the results of a run that has no final epoch to test."""
        return {
            "test_loss": None,
            "test_acc": None,
            "best_val_epoch": self.best["epoch"],
            "best_val_acc": self.best["val_acc"],
            "best_val_test_loss": None,
            "best_val_test_acc": None,
            "weights_sha256": None,
        }

    def _totals(self) -> dict[str, Any]:
        """Return the summary's totals over all epochs, and its values of the last epoch."""
        rows = self.run.metrics()
        last = rows[-1] if rows else {}
        seconds = sum(row["train_seconds"] for row in rows)
        images = last.get("images_seen", 0)
        return {
            "epochs": last.get("epoch", 0),
            "steps": last.get("step", 0),
            "images_seen": images,
            **{key: last.get(key) for key in ("train_loss", "train_acc", "val_loss", "val_acc")},
            "train_seconds": seconds,
            "images_per_s": images / seconds if seconds else None,
        }


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None


# --- the run's log.txt ----------------------------------------------------------------------------


class _RunLog(logging.FileHandler):
    """Appends to a run's ``log.txt``; if that fails, notifies once and lets the run continue.

    Python's own handler would print a stack trace for every line that it cannot write.
    """

    def __init__(self, run: Run, notify: Callable[[str], None]) -> None:
        super().__init__(run.log_path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._notify = notify

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        self.addFilter(lambda record: False)  # no further attempts
        reason = getattr(error, "strerror", None) or error
        self._notify(f"cannot write {self.baseFilename}: {reason}; the run continues without a log")

    def close(self) -> None:
        # Closing tries again to write the remaining buffer.
        with suppress(OSError):
            super().close()


@contextmanager
def _log_to(run: Run, notify: Callable[[str], None]) -> Iterator[None]:
    """Append the package's log messages to the run's ``log.txt``.

    Args:
        notify: Receives one line if the log cannot be written.
    """
    handler = _RunLog(run, notify)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
