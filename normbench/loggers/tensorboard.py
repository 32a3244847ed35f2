"""The logger for TensorBoard: event files in the run's folder."""

from __future__ import annotations

import calendar
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normbench.engine.observer import Logger, numbers

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.store.run import Run

FOLDER = "tensorboard"


class TensorBoard(Logger):
    """Scalars against steps, in ``tensorboard/`` of the run's folder.

    ``tensorboard --logdir runs`` shows all runs. Values of the training and of the validation
    split share a chart: ``loss/train`` and ``loss/val``.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    name = "tensorboard"

    def __init__(self) -> None:
        import tensorboard.summary.writer.event_file_writer as writer
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer_of: Any = writer.EventFileWriter
        self._event: Any = Event
        self._summary: Any = Summary
        self._writer: Any = None

    def start(self, run: Run, config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
        # Written anew from the run's rows: an event file cannot take back an epoch that was lost.
        folder = run.path / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = self._writer_of(os.fspath(folder))
        for row in rows:
            self._write(row)
        self._writer.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        self._write(row)
        self._writer.flush()

    def end(self, summary: Mapping[str, Any]) -> None:
        if self._writer is None:  # the run failed before its first step
            return
        values = {key: value for key, value in numbers(summary).items() if key.startswith("test_")}
        self._add(int(summary.get("steps") or 0), time.time(), values)
        self._writer.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        values = numbers(row)
        step = int(values.pop("step"))
        values.pop("epoch")
        at = calendar.timegm(time.strptime(row["time"], "%Y-%m-%dT%H:%M:%SZ"))
        self._add(step, at, values)

    def _add(self, step: int, at: float, values: Mapping[str, float]) -> None:
        if not values:
            return
        entries = [
            self._summary.Value(tag=_tag(key), simple_value=value) for key, value in values.items()
        ]
        event = self._event(wall_time=at, step=step, summary=self._summary(value=entries))
        self._writer.add_event(event)


def _tag(key: str) -> str:
    split, _, quantity = key.partition("_")
    return f"{quantity}/{split}" if split in ("train", "val", "test") else key
