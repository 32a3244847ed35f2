"""``train``: one run from its config to the evidence in its folder."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from normbench.config import SCHEMA, Config
from normbench.engine import backend
from normbench.engine.interrupts import delay_interrupts, raise_remembered, remember_interrupts
from normbench.engine.loop import Loop, Steps
from normbench.engine.micro_batches import MicroBatches
from normbench.engine.observer import LoggingObserver, Observer, make_loggers
from normbench.engine.reuse import WarmState
from normbench.engine.setup import (
    Bench,
    TrainingSetup,
    load_dataset,
    refuse_augmentation,
    refuse_batch,
)
from normbench.errors import NormbenchError, UserError, details
from normbench.store.provenance import collect, own_changes, own_code, own_data, utc_now
from normbench.store.store import Run, Store, StoreError

log = logging.getLogger("normbench")


@dataclass(frozen=True)
class TrainResult:
    """What became of a call of :func:`train`.

    Attributes:
        run: The run's folder.
        trained: Whether anything was trained; False where the run was complete already.
        summary: Of the complete run; its ``status`` is finished or diverged.
    """

    run: Run
    trained: bool
    summary: dict[str, Any]


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
) -> TrainResult:
    """Train the run that ``config`` describes, or what is left of it, and keep the evidence.

    A complete run is not trained again. One that was cut off goes on from its last checkpoint,
    on a CPU to the same bits as if it had not been.

    Args:
        config: Of the run.
        store: Where it is kept; ``config.store`` by default.
        observer: Is told how it goes.
        command: What the record names as the command; this process's by default.
        must_exist: Refuse to begin a run that has no folder yet.
        warm: The data set and the compiled loop of the run before in this process, for this run to
            use where it can, and where its own are left.
        may_split: Whether ``accumulate=auto`` may split the batch where memory is short.
        again: Set the run's folder aside, if there is one, and train the run from its first step.

    Raises:
        UserError: The config cannot be trained; nothing was written.
        RunLocked: Another process trains this very run.
        NormbenchError: The backend or what a logger writes with is missing, or the store cannot be
            written.
        KeyboardInterrupt: Passed on, after a checkpoint.
    """
    store = Store(config.store) if store is None else store
    run = store.run(config)
    command = list(sys.argv if command is None else command)
    try:
        status = run.status
    except StoreError as error:
        if not again:
            raise StoreError(f"{error}: --again sets the folder aside and trains anew") from error
        status = "unreadable"
    if status in ("finished", "diverged") and not again:
        return TrainResult(run, False, run.summary or {})
    if status == "missing" and must_exist:
        raise UserError(f"there is no run {run.name} in {store.root} to resume")
    if status == "running":
        with run.lock(command):  # says who trains it, unless that ended just now
            pass
    warm = WarmState() if warm is None else warm
    # Before the backend: what is missing is said within a second.
    dataset = warm.dataset(config, load_dataset)
    refuse_batch(config, dataset.name, len(dataset.train.labels))
    refuse_augmentation(config, dataset.shape)
    loggers = make_loggers(config.logger)
    record = {"engine": backend.start(config.backend, config.precision)}
    splitting = MicroBatches(config, run.meta if run.exists and not again else None, may_split)
    warm.drop_other_loop(config, splitting.count)
    bench = Bench(config, dataset, warm, splitting)
    if again:  # nothing refuses the run any more
        run.set_aside("replaced", command)
    with run.lock(command):
        if run.status in ("finished", "diverged"):
            return TrainResult(run, False, run.summary or {})
        watcher = LoggingObserver(observer or Observer(), loggers, run, config)
        with _log_to(run, watcher.on_note), remember_interrupts():
            return _train_locked(run, config, bench, record, watcher, command)


def _train_locked(
    run: Run,
    config: Config,
    bench: Bench,
    record: dict[str, Any],
    observer: Observer,
    command: list[str],
) -> TrainResult:
    began = time.perf_counter()
    earlier = run.meta if run.exists else None
    provenance = collect(command) | record | {"devices": bench.prepared.loop.devices()}
    provenance |= _own(run, config, bench.prepared.dataset, earlier, observer)
    meta = _begin(run, config, earlier, provenance, bench.splitting)
    try:
        summary = _trained_split(run, config, bench, meta, observer)
        summary["wall_seconds"] = _wall_seconds(earlier) + time.perf_counter() - began
        run.write_summary(summary)
    except KeyboardInterrupt:
        log.info("interrupted")
        _end(run, meta, "interrupted", None, time.perf_counter() - began)
        observer.on_end({"status": "interrupted"}, run.path)
        raise
    except Exception as failure:
        log.error("%s", traceback.format_exc())
        kind, message = details(failure)
        error = {"type": kind, "message": message}
        try:
            _end(run, meta, "failed", error, time.perf_counter() - began)
        except NormbenchError as another:  # a full disk must not hide what ended the run
            log.error("%s", another)
        observer.on_end({"status": "failed", "error": error}, run.path)
        raise
    finally:
        bench.close()
    _end(run, meta, summary["status"], None, time.perf_counter() - began)
    observer.on_end(summary, run.path)
    return TrainResult(run, True, summary)


def _own(
    run: Run, config: Config, dataset: Any, earlier: dict[str, Any] | None, observer: Observer
) -> dict[str, Any]:
    """Return the record of code and data of one's own: each with the versions that train the run.

    A run that goes on with another version than it began with has several, which a report tells.
    """
    now = own_code(config.to_dict()) | own_data(config.dataset, dataset.fingerprint)
    if not now:
        return {}
    trained = run.checkpoint_info() is not None
    before = ((earlier or {}).get("own") or {}) if trained else {}
    if trained:
        for line in own_changes(before, now):
            log.warning("%s", line)
            observer.on_note(f"{line}: --again trains the run from its first step")
    versions = {}
    for name, version in now.items():
        then = list(before.get(name) or [])
        versions[name] = then if then[-1:] == [version] else [*then, version]
    return {"own": versions}


def _trained_split(
    run: Run, config: Config, bench: Bench, meta: dict[str, Any], observer: Observer
) -> dict[str, Any]:
    """As :func:`_trained`; where memory is short and ``accumulate=auto``, with smaller parts."""
    while True:
        try:
            return _trained(run, config, bench.prepared, meta, observer)
        except Exception as failure:
            if not bench.splitting.helps_against(failure):
                raise
        # Here the failure is gone, and with it what its traceback held on to.
        kept = run.checkpoint_info()
        bench.splitting.split(kept["epoch"] if kept else 0)
        said = f"memory is short: from here on {bench.splitting.words}"
        log.info("%s", said)
        observer.on_note(f"{said}, which batch statistics are of")
        run.update_meta(micro_batches=bench.splitting.history)
        bench.again()


def _trained(
    run: Run, config: Config, prepared: TrainingSetup, meta: dict[str, Any], observer: Observer
) -> dict[str, Any]:
    """Train what is left of the run and return its summary."""
    from normbench.engine.observer import due_probes, measure_probes
    from normbench.engine.train import Diverged, Session
    from normbench.network import parameter_count

    began = time.perf_counter()
    session = Session(
        run,
        config,
        prepared.loop,
        prepared.rates,
        prepared.steps_per_epoch,
        observer,
        lambda epoch: measure_probes(
            due_probes(prepared.probes, epoch, config.epochs), prepared.loop, prepared.dataset
        ),
    )
    # Compiled first: it leaves the state as it was, and what it draws is drawn anew.
    prepared.loop.compile()
    log.info("compiled in %.1f s", time.perf_counter() - began)
    if session.restore():
        meta["sessions"][-1]["from_epoch"] = session.epoch
        run.update_meta(sessions=meta["sessions"])
        log.info("resumed after epoch %d, step %d of the next", session.epoch, len(session.partial))
    parameters = parameter_count(prepared.model)
    observer.on_start(
        {
            "name": run.name,
            "parameters": parameters,
            "images": len(prepared.dataset.train.labels),
            "steps_per_epoch": prepared.steps_per_epoch,
            "epochs": config.epochs,
            "devices": prepared.loop.devices(),
            "resumed_from": session.epoch,
        }
    )
    try:
        session.train()
        summary = {"status": "finished"} | session.conclude()
    except Diverged as divergence:
        log.info("%s", divergence)
        summary = {"status": "diverged"} | _unknown_results(session)
        summary |= {"diverged_epoch": divergence.epoch, "diverged_step": divergence.step}
    summary["micro_batches"] = prepared.loop.settings.micro_batches
    return summary | _totals(run, parameters, prepared.dataset.classes)


def _begin(
    run: Run,
    config: Config,
    earlier: dict[str, Any] | None,
    provenance: dict[str, Any],
    splitting: MicroBatches,
) -> dict[str, Any]:
    """Write what the run is and that it runs; sessions before this one are kept."""
    now = utc_now()
    session = {
        "started": now,
        "ended": None,
        "host": provenance["host"],
        "pid": os.getpid(),
        "from_epoch": 0,
        "seconds": None,
    }
    meta = {
        "status": "running",
        "signature": config.signature,
        "started": (earlier or {}).get("started", now),
        "ended": None,
        **provenance,
        "micro_batches": splitting.history,
        "error": None,
        "sessions": [*(earlier or {}).get("sessions", []), session],
    }
    run.create({**config.to_dict(), "signature": config.signature, "schema": SCHEMA}, meta)
    return meta


def _end(
    run: Run, meta: dict[str, Any], status: str, error: dict[str, Any] | None, seconds: float
) -> None:
    now = utc_now()
    meta["sessions"][-1].update(ended=now, seconds=round(seconds, 3))
    run.update_meta(status=status, ended=now, error=error, sessions=meta["sessions"])


def _totals(run: Run, parameters: int, classes: int) -> dict[str, Any]:
    rows = run.metrics()
    last = rows[-1] if rows else {}
    seconds = sum(row["train_seconds"] for row in rows)
    images = last.get("images_seen", 0)
    return {
        "epochs": last.get("epoch", 0),
        "steps": last.get("step", 0),
        "images_seen": images,
        **{key: last.get(key) for key in ("train_loss", "train_acc", "val_loss", "val_acc")},
        "parameters": parameters,
        "classes": classes,
        "train_seconds": seconds,
        "images_per_s": images / seconds if seconds else None,
    }


def _unknown_results(session: Any) -> dict[str, Any]:
    """Results that a diverged run lacks: it has no final epoch to test."""
    return {
        "test_loss": None,
        "test_acc": None,
        "best_val_epoch": session.best["epoch"],
        "best_val_acc": session.best["val_acc"],
        "best_val_test_loss": None,
        "best_val_test_acc": None,
        "weights_sha256": None,
    }


def _wall_seconds(earlier: dict[str, Any] | None) -> float:
    """Seconds of the sessions before; one that was killed did not say and counts none."""
    return sum(each.get("seconds") or 0.0 for each in (earlier or {}).get("sessions", []))


class _RunLog(logging.FileHandler):
    """Appends to a run's ``log.txt``; where that fails it says so once and lets the run go on.

    Python's own handler prints the stack of every line that it could not write.
    """

    def __init__(self, run: Run, tell: Callable[[str], None]) -> None:
        super().__init__(run.log_path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        self.addFilter(lambda record: False)  # nothing more is tried
        reason = getattr(error, "strerror", None) or error
        self._tell(f"cannot write {self.baseFilename}: {reason}; the run goes on without its log")

    def close(self) -> None:
        # What could not be written is still in the buffer, and closing tries it again.
        with suppress(OSError):
            super().close()


@contextmanager
def _log_to(run: Run, tell: Callable[[str], None]) -> Iterator[None]:
    """Append what the package logs to the run's ``log.txt``.

    Args:
        tell: Is told in a line if that cannot be done.
    """
    handler = _RunLog(run, tell)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


# --- one run from its first step to its last, wherever it was left before -------------------------

CHUNK_SECONDS = 1.0  # of compiled steps between two looks at progress and at Ctrl-C


class Diverged(Exception):
    """The loss of a step is not finite, or above what the config allows."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"diverged in step {step} (epoch {epoch})")
        self.epoch = epoch
        self.step = step


class Session:
    """Trains a run's remaining epochs and leaves each in the run's folder.

    Args:
        run: Locked by the caller and created.
        config: Of the run.
        loop: On the run's model and data.
        rates: Learning rate of each step of the whole run, float32.
        steps_per_epoch: Steps of an epoch; a last part smaller than a batch is left out.
        observer: Is told how it goes.
        measure: Gives what probes measure after an epoch, counted from 1, for its row of metrics.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        loop: Loop,
        rates: np.ndarray,
        steps_per_epoch: int,
        observer: Observer,
        measure: Callable[[int], dict[str, float]] = lambda epoch: {},
    ) -> None:
        self.run = run
        self.config = config
        self.loop = loop
        self.rates = rates
        self.steps_per_epoch = steps_per_epoch
        self.observer = observer
        self.measure = measure
        self.epoch = 0  # completed
        self.partial = Steps.none()  # steps taken in the epoch in progress
        self.partial_seconds = 0.0
        self.best: dict[str, Any] = {"epoch": None, "val_acc": None}

    def restore(self) -> bool:
        """Go back to the last checkpoint, if there is one, and drop what was written after it."""
        loaded = self.run.load_checkpoint()
        if loaded is None:
            self.run.truncate_metrics(0)
            return False
        arrays, info = loaded
        partial = {key: arrays.pop(f"partial/{key}") for key in ("loss", "correct", "grad_norm")}
        self.loop.load(arrays)
        self.partial = Steps(**partial)
        self.partial_seconds = float(info["partial_seconds"])
        self.epoch = int(info["epoch"])
        self.best = dict(info["best"])
        self.run.truncate_metrics(self.epoch, info.get("metrics_sha256"))
        return True

    def train(self) -> None:
        """Train to the last epoch.

        Raises:
            Diverged: A step's loss was not finite or too high; the epoch's row is written.
            KeyboardInterrupt: Passed on, after a checkpoint of the steps taken so far.
        """
        while self.epoch < self.config.epochs:
            self.loop.begin_epoch(self.epoch)
            try:
                self._train_epoch()
                row = self._evaluate_epoch()
            except KeyboardInterrupt:
                self.checkpoint()
                raise
            self._finish_epoch(row)

    def _train_epoch(self) -> None:
        start = self.epoch * self.steps_per_epoch
        count = 1 if not len(self.partial) else self.steps_per_epoch
        while (first := len(self.partial)) < self.steps_per_epoch:
            last = min(first + count, self.steps_per_epoch)
            began = time.perf_counter()
            with delay_interrupts():  # the weights and the steps that are counted change together
                steps = self.loop.train(first, self.rates[start + first : start + last])
                seconds = time.perf_counter() - began
                self.partial = self.partial.then(steps)
                self.partial_seconds += seconds
            raise_remembered()
            count = max(1, round(CHUNK_SECONDS * len(steps) / max(seconds, 1e-9)))
            self._refuse_divergence(first)
            done = len(self.partial)
            self.observer.on_progress(
                self.epoch + 1,
                done,
                self.steps_per_epoch,
                float(np.mean(self.partial.loss)),
                float(np.sum(self.partial.correct)) / (done * self.config.batch),
                done * self.config.batch / self.partial_seconds,
            )

    def _refuse_divergence(self, first: int) -> None:
        losses = self.partial.loss[first:]
        bad = np.flatnonzero(~(np.isfinite(losses) & (losses <= self.config.max_loss)))
        if not len(bad):
            return
        kept = first + int(bad[0])
        self.partial = Steps(
            self.partial.loss[:kept], self.partial.correct[:kept], self.partial.grad_norm[:kept]
        )
        row = self._row(val=(math.nan, math.nan), eval_seconds=0.0)
        self.run.append_metrics(row)
        self.observer.on_epoch(row)
        raise Diverged(self.epoch + 1, self.epoch * self.steps_per_epoch + kept + 1)

    def _evaluate_epoch(self) -> dict[str, Any]:
        """Evaluate the network after the last step of an epoch and return the epoch's row.

        May be interrupted: the checkpoint then has all steps of the epoch, and this is repeated.
        """
        began = time.perf_counter()
        self.loop.recompute()
        val = self.loop.evaluate("validation")
        row = self._row(val=val, eval_seconds=time.perf_counter() - began)
        self.loop.rate = row["lr"]
        return row | self.measure(self.epoch + 1)

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        # An interrupt between the row and its checkpoint would lose the whole epoch.
        with delay_interrupts():
            self.epoch += 1
            self.partial, self.partial_seconds = Steps.none(), 0.0
            # First the row, then the checkpoint: going on from the one before drops the row again.
            self.run.append_metrics(row)
            if self.best["epoch"] is None or row["val_acc"] > self.best["val_acc"]:
                self.best = {"epoch": self.epoch, "val_acc": row["val_acc"]}
                self.checkpoint(best=True)
            self.checkpoint()
        self.observer.on_epoch(row)

    def checkpoint(self, best: bool = False) -> None:
        """Write all that going on exactly needs."""
        arrays = self.loop.state()
        for key in ("loss", "correct", "grad_norm"):
            arrays[f"partial/{key}"] = getattr(self.partial, key)
        info = {
            "epoch": self.epoch,
            "step": self.epoch * self.steps_per_epoch + len(self.partial),
            "partial_seconds": self.partial_seconds,
            "best": self.best,
            "metrics_sha256": self.run.metrics_checksum(),
        }
        self.run.save_checkpoint(arrays, info, best=best)

    def _row(self, val: tuple[float, float], eval_seconds: float) -> dict[str, Any]:
        taken, batch = len(self.partial), self.config.batch
        step = self.epoch * self.steps_per_epoch + taken
        norms = self.partial.grad_norm.astype(np.float64)
        finite = norms[np.isfinite(norms)]  # a scaled loss may leave out steps that are not
        return {
            "epoch": self.epoch + 1,
            "step": step,
            "images_seen": step * batch,
            "train_loss": _mean(self.partial.loss),
            "train_acc": float(np.sum(self.partial.correct)) / (taken * batch) if taken else None,
            "val_loss": val[0],
            "val_acc": val[1],
            "lr": float(self.rates[max(step - 1, 0)]),
            "grad_norm": _mean(finite),
            "grad_norm_max": float(np.max(finite)) if len(finite) else None,
            "images_per_s": taken * batch / self.partial_seconds if taken else None,
            "train_seconds": self.partial_seconds,
            "eval_seconds": eval_seconds,
            "time": utc_now(),
        }

    def conclude(self) -> dict[str, Any]:
        """Evaluate the test split, of the final epoch and of the best on validation."""
        loss, accuracy = self.loop.evaluate("test")
        final = self.loop.state()
        results: dict[str, Any] = {
            "test_loss": loss,
            "test_acc": accuracy,
            "best_val_epoch": self.best["epoch"],
            "best_val_acc": self.best["val_acc"],
            "best_val_test_loss": None,
            "best_val_test_acc": None,
            "weights_sha256": weights_hash(final),
        }
        if self.best["epoch"] == self.epoch:
            results.update(best_val_test_loss=loss, best_val_test_acc=accuracy)
        elif (kept := self.run.load_checkpoint(best=True)) is not None:
            self.loop.load(kept[0])
            loss, accuracy = self.loop.evaluate("test")
            results.update(best_val_test_loss=loss, best_val_test_acc=accuracy)
            self.loop.load(final)
        return results


def weights_hash(state: dict[str, np.ndarray]) -> str:
    """SHA-256 over the model's variables: equal just where two runs ended in the same bits."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith("model/")):
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None
