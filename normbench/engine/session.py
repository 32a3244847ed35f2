"""One run from its first step to its last, wherever it was left before."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from normbench.config import Config
from normbench.engine.interrupts import held_back, raise_lost
from normbench.engine.loop import Loop, Steps
from normbench.engine.observer import Observer
from normbench.provenance import utc_now
from normbench.store import Run

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
            except KeyboardInterrupt:
                self.checkpoint()
                raise
            self._finish_epoch()

    def _train_epoch(self) -> None:
        start = self.epoch * self.steps_per_epoch
        count = 1 if not len(self.partial) else self.steps_per_epoch
        while (first := len(self.partial)) < self.steps_per_epoch:
            last = min(first + count, self.steps_per_epoch)
            began = time.perf_counter()
            with held_back():  # the weights and the steps that are counted change together
                steps = self.loop.train(first, self.rates[start + first : start + last])
                seconds = time.perf_counter() - began
                self.partial = self.partial.then(steps)
                self.partial_seconds += seconds
            raise_lost()
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

    def _finish_epoch(self) -> None:
        began = time.perf_counter()
        self.loop.recompute()
        val = self.loop.evaluate("validation")
        row = self._row(val=val, eval_seconds=time.perf_counter() - began)
        self.loop.rate = row["lr"]
        row |= self.measure(self.epoch + 1)
        self.epoch += 1
        self.partial, self.partial_seconds = Steps.none(), 0.0
        # First the row, then the checkpoint: going on from the one before drops the row again.
        self.run.append_metrics(row)
        if self.best["epoch"] is None or val[1] > self.best["val_acc"]:
            self.best = {"epoch": self.epoch, "val_acc": val[1]}
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
