"""How long a run may take, from the runs that this machine has left in the store."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from normbench.config import Config
from normbench.store import Run, Store, StoreError

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
